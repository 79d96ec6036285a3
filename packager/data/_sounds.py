"""Makes samples of sounds: mono, at the recipe's rate, cut into windows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from packager.data._resample import resample
from packager.data._spool import Spool
from packager.data._wav import read_wav
from packager.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from packager.data._gather import Gathering
    from packager.data._samples import Samples
    from packager.model import Signature, TensorSpec
    from packager.recipe import AudioInput, Recipe


def add_sounds(
    paths: Sequence[Path], folder: Path, labels: Sequence[Any] | None, gathering: Gathering
) -> Samples:
    """Read every sound into samples of one window each, and finish.

    Raises:
        InputOutputError: a file cannot be read, or the disk is full.
        UsageError: no sound input, a sound that does not fit, or a transcript of one that was cut.
    """
    spec, audio = sound_input(folder, gathering.signature, gathering.recipe)
    spool = Spool()
    windows = 0
    for index, path in enumerate(paths):
        cut, changes = read_sound(path, spec, audio)
        name = path.relative_to(folder).as_posix()
        label = labels[index] if labels is not None else None
        for number, window in enumerate(cut):
            sample = {spec.name: window[None]}
            title = name if len(cut) == 1 else f"{name} window {number + 1}"
            load = spool.add(sample)
            gathering.add(sample, load, name=title, label=label, changes=changes)
        windows += len(cut)
        if len(cut) > 1 and label is not None and gathering.classes.texts:
            raise UsageError(
                f"`{path}` is cut into {len(cut)} windows, and its transcript cannot be",
                accepted=f"sounds of up to {len(cut[0])} samples at {audio.sample_rate} Hz",
            )
    noun = "sound" if len(paths) == 1 else "sounds"
    origin = f"{len(paths)} {noun}"
    if windows != len(paths):
        origin = f"{windows} windows of {origin}"
    return gathering.finish(kind="wav", origin=origin, noun="windows")


def read_sound(
    path: Path, spec: TensorSpec, audio: AudioInput
) -> tuple[list[NDArray[Any]], list[str]]:
    """Return a sound as float32 windows [samples], and what was changed.

    Raises:
        InputOutputError: the file is missing or cannot be read.
        UsageError: it is no sound that can be decoded, or of a length that the input refuses.
    """
    import numpy as np

    notes: list[str] = []
    sound = read_wav(path)
    if sound.channels > 1:
        notes.append(f"{sound.channels} channels were averaged")
    if sound.rate != audio.sample_rate:
        notes.append(f"{sound.rate} Hz was resampled to {audio.sample_rate} Hz")
    values = resample(sound.values, sound.rate, audio.sample_rate).astype(np.float32)
    window = window_of(spec, audio)
    if window is None:
        _check_length(len(values), spec, audio, path)
        return [values], notes
    if len(values) < window:
        notes.append("silence was added at the end")
        return [np.pad(values, (0, window - len(values)))], notes
    count = len(values) // window
    if count * window < len(values):
        notes.append("what is left behind the last whole window was left out")
    return list(values[: count * window].reshape(count, window)), notes


def window_of(spec: TensorSpec, audio: AudioInput) -> int | None:
    """Return how many samples one inference takes; None for any number.

    Without `window` it is the size of a model that takes the samples themselves.
    """
    if audio.window is not None or audio.features != "waveform":
        return audio.window
    sizes = [dim.size for dim in spec.shape[1:] if dim.size != 1]
    return sizes[0] if len(sizes) == 1 else None


def sound_input(path: Path, signature: Signature, recipe: Recipe) -> tuple[TensorSpec, AudioInput]:
    """Return the input that a sound fills, and how.

    Raises:
        UsageError: there is none, or the model has other inputs too.
    """
    found = [spec for spec in signature.inputs if spec.name in recipe.audio]
    if not found:
        name = signature.inputs[0].name if signature.inputs else "NAME"
        raise UsageError(
            f"`{path}` holds sound, but the recipe declares no sound input",
            hint=f"declare `[input.{name}.audio]` with `sample_rate = 16000` in the recipe",
        )
    if len(signature.inputs) > 1:
        others = ", ".join(f"`{s.name}`" for s in signature.inputs if s is not found[0])
        raise UsageError(
            f"sound fills only the input `{found[0].name}`, and nothing is given for {others}",
            accepted="`.npz` files with one array per input name",
        )
    return found[0], recipe.audio[found[0].name]


def _check_length(length: int, spec: TensorSpec, audio: AudioInput, path: Path) -> None:
    if audio.features != "waveform":
        return  # how many frames come out is for the graph to say
    free = [dim for dim in spec.shape[1:] if dim.size is None]
    for dim in free[:1]:
        if length < dim.min or (dim.max is not None and length > dim.max):
            raise UsageError(
                f"`{path}` has {length} samples at {audio.sample_rate} Hz",
                accepted=str(spec),
                hint=f"`window` in `[input.{spec.name}.audio]` cuts sounds",
            )
