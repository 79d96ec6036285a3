"""Sound as an input: its features in the graph, from float32 [batch, samples] in -1..1."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Final

from packager.errors import UsageError
from packager.model import Dim, TensorSpec
from packager.passes.mel import frame_length, mel_steps
from packager.passes.steps import Steps, compile_steps

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from packager.model import Signature
    from packager.recipe import AudioInput

LEAST_OPSET: Final = 13


def check_sound(audio: AudioInput, spec: TensorSpec) -> dict[str, int]:
    """Check that sound, made into features, is what an input takes.

    Returns:
        The size of each named dimension that is fixed thereby.

    Raises:
        UsageError: it is not.
    """
    where = f"input.{spec.name}.audio"
    if "float" not in spec.dtype:
        raise UsageError(f"the input `{spec.name}` is {spec.dtype}", accepted="a float input")
    if audio.features == "mel":
        _check_mel(audio, where)
    axes = _feature_axes(audio, spec)
    fixed = {}
    time = spec.shape[axes["time"]]
    if audio.window is not None:
        count = _frames(audio, audio.window)
        _check_fits(time, count, audio, where, spec)
        if time.size is None and time.name is not None:
            fixed[time.name] = count
    elif time.size is not None and audio.features == "mel":
        raise UsageError(
            f"`{where}` has no `window`, and the model takes {time.size} frames",
            accepted=f"what the model takes, `{spec}`",
            hint=f"set `window = {_least_samples(audio, time.size)}`",
        )
    if "mels" in axes:
        mels = spec.shape[axes["mels"]]
        if mels.size not in {None, audio.mels}:
            raise UsageError(
                f"`{where}` makes {audio.mels} mels where the model takes {mels.size}",
                accepted=f"what the model takes, `{spec}`",
                hint=f"set `mels = {mels.size}`, or turn `layout` round",
            )
        if mels.size is None and mels.name is not None:
            fixed[mels.name] = audio.mels
    return fixed


def sound_spec(spec: TensorSpec, audio: AudioInput, signature: Signature, count: int) -> TensorSpec:
    """Return the input as clients see it: float32 [batch, samples].

    Args:
        spec: The model's own.
        audio: With a `window`, every request has exactly so many samples.
        signature: The model's; names of its dimensions are not taken again.
        count: How many sound inputs there are.
    """
    time = spec.shape[_feature_axes(audio, spec)["time"]]
    if audio.window is not None:
        samples = Dim(size=audio.window)
    elif audio.features == "waveform":
        samples = time
    else:
        alone = count == 1 and "samples" not in signature.dims()
        least = max(_least_samples(audio, max(time.min, 1)), _shortest(audio))
        opt = max(_least_samples(audio, time.opt or max(time.min, 1)), least)
        most = None if time.max is None else _least_samples(audio, time.max + 1) - 1
        name = "samples" if alone else f"{spec.name}_samples"
        samples = Dim(name=name, min=least, max=most, opt=opt)
    return dataclasses.replace(spec, dtype="float32", shape=(spec.shape[0], samples))


def sound_steps(
    steps: Steps, audio: AudioInput, source: str, result: str, spec: TensorSpec
) -> None:
    """Append the steps from `source`, float32 [batch, samples], to `result`."""
    values = mel_steps(steps, audio, source) if audio.features == "mel" else source
    if audio.mean != 0.0:
        values = steps.add("Sub", [values, steps.number("mean", audio.mean)])
    if audio.std != 1.0:
        values = steps.add("Div", [values, steps.number("std", audio.std)])
    if audio.features == "mel" and audio.layout == "frames-mels":
        values = steps.add("Transpose", [values], perm=[0, 2, 1])
    channel = _channel_axis(audio, spec)
    if channel is not None:
        values = steps.add("Unsqueeze", [values, steps.ints("channel", [channel])])
    if spec.dtype == "float32":
        steps.add("Identity", [values], result)
    else:
        steps.cast(values, spec.dtype, result)


def is_sound_array(array: NDArray[Any], audio: AudioInput, spec: TensorSpec) -> bool:
    """Tell sound from an array that is already in the model's own form.

    Where a model takes [batch, samples] as well, every array is sound.
    """
    return array.ndim == 2 and (len(spec.shape) != 2 or audio.features == "waveform")


def sound_session(audio: AudioInput, spec: TensorSpec) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """Return a function from float32 [n, samples] to what the model takes.

    It runs the very nodes that `inputs.attach` puts into the graph.
    """
    steps = Steps(prefix="sound", opset=LEAST_OPSET)
    sound_steps(steps, audio, "sound", "prepared", spec)
    source = TensorSpec(name="sound", dtype="float32", shape=(Dim(name="n"), Dim(name="samples")))
    made = TensorSpec(name="prepared", dtype=spec.dtype, shape=tuple(Dim() for _ in spec.shape))
    run = compile_steps(steps, [source], [made])
    return lambda sound: run({"sound": sound})["prepared"]


def _check_mel(audio: AudioInput, where: str) -> None:
    frame = frame_length(audio)
    if not 2 <= frame <= audio.n_fft:
        raise UsageError(f"`{where}.frame` is {frame}", accepted=f"2 to `n_fft`, {audio.n_fft}")
    if audio.hop < 1 or audio.mels < 1:
        raise UsageError(f"`{where}.hop` and `{where}.mels` must be at least 1")
    if audio.power <= 0 or (audio.logarithm != "none" and audio.floor <= 0):
        raise UsageError(f"`{where}.power` and `{where}.floor` must be above 0")
    nyquist = audio.sample_rate / 2
    high = nyquist if audio.high_hz is None else audio.high_hz
    if not 0 <= audio.low_hz < high <= nyquist:
        raise UsageError(
            f"`{where}` has filters from {audio.low_hz:g} to {high:g} Hz",
            accepted=f"0 to half the sample rate, {nyquist:g} Hz",
        )
    if audio.window is not None and audio.window < _shortest(audio):
        raise UsageError(
            f"`{where}.window` is {audio.window} samples",
            accepted=f"at least {_shortest(audio)} for `n_fft = {audio.n_fft}`",
        )


def _check_fits(time: Dim, count: int, audio: AudioInput, where: str, spec: TensorSpec) -> None:
    fits = count == time.size if time.size is not None else time.min <= count <= (time.max or count)
    if fits:
        return
    unit = "samples" if audio.features == "waveform" else "frames"
    nearest = time.size if time.size is not None else max(time.min, min(count, time.max or count))
    raise UsageError(
        f"`{where}` makes {count} {unit} of `window = {audio.window}`",
        accepted=f"what the model takes, `{spec}`",
        hint=f"set `window = {_least_samples(audio, nearest)}`",
    )


def _feature_axes(audio: AudioInput, spec: TensorSpec) -> dict[str, int]:
    """Return at which axes of the model's input time and mels stand.

    Raises:
        UsageError: the input has another rank.
    """
    rank = 2 if audio.features == "waveform" else 3
    channel = _channel_axis(audio, spec)
    if len(spec.shape) != rank + (channel is not None):
        made = {
            "waveform": "[batch, samples]",
            "mel": "[batch, mels, frames]"
            if audio.layout == "mels-frames"
            else "[batch, frames, mels]",
        }
        raise UsageError(
            f"`input.{spec.name}.audio` makes {made[audio.features]}, perhaps with an axis of one "
            "channel",
            accepted=f"what the model takes, `{spec}`",
        )
    rest = [axis for axis in range(1, len(spec.shape)) if axis != channel]
    if rank == 2:
        return {"time": rest[0]}
    mels, frames = rest if audio.layout == "mels-frames" else reversed(rest)
    return {"mels": mels, "time": frames}


def _channel_axis(audio: AudioInput, spec: TensorSpec) -> int | None:
    """Return where the model has an axis of one channel: behind the batch, or last."""
    rank = 2 if audio.features == "waveform" else 3
    if len(spec.shape) != rank + 1:
        return None
    return next((axis for axis in (1, rank) if spec.shape[axis].size == 1), None)


def _frames(audio: AudioInput, samples: int) -> int:
    if audio.features == "waveform":
        return samples
    padded = samples + 2 * (audio.n_fft // 2) if audio.center else samples
    return 1 + (padded - audio.n_fft) // audio.hop


def _least_samples(audio: AudioInput, frames: int) -> int:
    """Return the fewest samples that make so many frames."""
    if audio.features == "waveform":
        return frames
    padding = 2 * (audio.n_fft // 2) if audio.center else 0
    return max((frames - 1) * audio.hop + audio.n_fft - padding, 1)


def _shortest(audio: AudioInput) -> int:
    """Return the fewest samples that can be framed: a reflection needs more than it reflects."""
    if audio.features == "waveform":
        return 1
    return audio.n_fft // 2 + 1 if audio.center else audio.n_fft
