"""How photos, sound, text and tables become inputs of a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class ImageInput:
    """How a photo becomes an input; everything after decoding is compiled into the graph.

    The order is: resize, center crop or letterbox, scale to 0..1 (where `scale`), subtract mean,
    divide by std.

    Attributes:
        size: Height and width that the model gets.
        resize: Size of the shorter side before the crop; None resizes both sides to `size`.
        letterbox: Keep the proportions: resize until the photo fits into `size` and fill the rest
            with `fill`, half on each side; excludes `resize`.
        fill: Grey level of the letterbox's bars, 0..255.
        interpolation: `bilinear` or `bicubic`, as Pillow computes them.
        antialias: Filter before shrinking, as Pillow and torchvision do; False computes as OpenCV
            does, which Ultralytics' and PaddlePaddle's models are trained with.
        scale: Divide by 255 first, so that mean and std are in 0..1.
        mean: Per channel, in the unit of the values at that point.
        std: Per channel.
        layout: `nchw` or `nhwc`, as the model wants it.
        channels: `rgb` or `bgr`.
        labels: A text file with one class name per line, for the first output.
        transform: The training transform as `file.py:function` (PIL image → array like the
            model's input, without the batch axis), which the compiled one is compared with.
    """

    size: tuple[int, int]
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    resize: int | None = None
    letterbox: bool = False
    fill: int = 114
    interpolation: str = "bilinear"
    antialias: bool = True
    scale: bool = True
    layout: str = "nchw"
    channels: str = "rgb"
    labels: Path | None = None
    transform: str | None = None


@dataclass(frozen=True, kw_only=True)
class AudioInput:
    """How sound becomes an input; everything after decoding is compiled into the graph.

    Sound is mono, float32 in -1..1, [batch, samples]. The order is: frame, window, spectrum, mel
    filters, logarithm, subtract mean, divide by std. An axis of one channel that the model has
    behind the batch axis, or last, is put there.

    Attributes:
        sample_rate: In Hz; other rates are resampled by the host, and refused by the device.
        window: Samples that one inference takes; a longer sound is cut into as many as fit, a
            shorter one is filled with silence. None takes any length that the input allows.
        features: `waveform` leaves the samples as they are; `mel` makes [batch, mels, frames], or
            what `layout` says.
        n_fft: Length of the Fourier transform, in samples.
        frame: Length of the analysis window (Hann, periodic), in samples; None for `n_fft`.
        hop: Samples between two frames.
        mels: Number of mel filters.
        low_hz, high_hz: Range of the filters; None for half the sample rate.
        mel_scale: `htk` or `slaney`, the latter with area-normalized filters.
        power: 1 for magnitudes, 2 for energies.
        center: Pad by half a frame with reflected samples, as librosa and torchaudio do.
        logarithm: `none`, `ln`, `log10` or `db` (10 log10).
        floor: Smallest value before the logarithm.
        top_db: What is so many decibels below a sample's loudest value is raised to that; None
            for no such limit.
        layout: `mels-frames` or `frames-mels`.
        transform: The training transform as `file.py:function` (float32 [samples] → array like the
            model's input, without the batch axis), which the compiled one is compared with.
    """

    sample_rate: int
    window: int | None = None
    features: str = "waveform"
    n_fft: int = 400
    frame: int | None = None
    hop: int = 160
    mels: int = 80
    low_hz: float = 0.0
    high_hz: float | None = None
    mel_scale: str = "htk"
    power: float = 2.0
    center: bool = True
    logarithm: str = "ln"
    floor: float = 1e-10
    top_db: float | None = None
    mean: float = 0.0
    std: float = 1.0
    layout: str = "mels-frames"
    transform: str | None = None


@dataclass(frozen=True, kw_only=True)
class TextInput:
    """How text becomes inputs: `[text]` in a recipe. Tokens are found outside the graph.

    Attributes:
        tokenizer: A `tokenizer.json` (WordPiece) or `vocab.txt` of a BERT tokenizer.
        max_length: Longest sequence in tokens, the special ones included; longer text is cut.
        ids: Name of the model's input with token numbers.
        mask: Name of the input that is 1 for tokens and 0 for padding; empty for none.
        types: Name of the input with segment numbers, all 0; empty for none.
        pad: Fill up to `max_length`; else only to the longest text of a batch.
        lower_case: For a `vocab.txt`, which does not say it.
    """

    tokenizer: Path
    max_length: int = 128
    ids: str = "input_ids"
    mask: str = "attention_mask"
    types: str = ""
    pad: bool = False
    lower_case: bool = True


@dataclass(frozen=True, kw_only=True)
class ColumnsInput:
    """How columns of a CSV or Parquet file become an input [batch, columns].

    Attributes:
        names: The columns, in the order of the input's last axis.
        mean, std: Per column; subtracted and divided by in the graph. Empty for none.
    """

    names: tuple[str, ...]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
