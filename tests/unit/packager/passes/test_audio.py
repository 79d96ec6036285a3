"""Sound in the graph: the spectrogram of plain formulas in numpy, and what torch computes."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import pytest

from packager.data import Samples
from packager.errors import UsageError
from packager.model import Dim, TensorSpec
from packager.passes.audio import sound_session
from packager.passes.inputs import attach, check_transforms, prepare, served_signature
from packager.passes.mel import mel_filters
from packager.recipe import AudioInput, Recipe

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from packager.model import Model

MEL = AudioInput(sample_rate=16000, features="mel")
KINDS = [
    MEL,
    dataclasses.replace(MEL, n_fft=512, frame=400, mels=40, low_hz=20, logarithm="db", power=1.0),
    dataclasses.replace(MEL, mel_scale="slaney", logarithm="log10", high_hz=7600.0),
    dataclasses.replace(MEL, n_fft=401, hop=100, center=False, logarithm="none"),
    dataclasses.replace(MEL, n_fft=512, frame=301, center=False, power=3.0, mels=20),
    dataclasses.replace(MEL, mel_scale="slaney", logarithm="db", top_db=60.0, mean=-30, std=20),
]


def sound(samples: int, seed: int = 0, rows: int = 1) -> np.ndarray:
    """Return tones over noise, with a pause: bins of very different energy."""
    random = np.random.default_rng(seed)
    time = np.arange(samples) / 16000
    tones = 0.4 * np.sin(2 * np.pi * 440 * time) + 0.2 * np.sin(2 * np.pi * 3000 * time**1.1)
    values = tones + 0.01 * random.standard_normal((rows, samples))
    values[:, samples // 2 : samples // 2 + samples // 8] *= 0.01
    return values.astype(np.float32)


def filters(audio: AudioInput) -> np.ndarray:
    """Return the filters one by one, by the formulas of O'Shaughnessy and of Slaney."""
    high = audio.high_hz or audio.sample_rate / 2

    def to_mel(hz: float) -> float:
        if audio.mel_scale == "htk":
            return 2595 * np.log10(1 + hz / 700)
        return hz * 3 / 200 if hz < 1000 else 15 + 27 * np.log(hz / 1000) / np.log(6.4)

    def to_hz(mel: float) -> float:
        if audio.mel_scale == "htk":
            return 700 * (10 ** (mel / 2595) - 1)
        return mel * 200 / 3 if mel < 15 else 1000 * 6.4 ** ((mel - 15) / 27)

    low, top = to_mel(audio.low_hz), to_mel(high)
    edges = [to_hz(low + (top - low) * at / (audio.mels + 1)) for at in range(audio.mels + 2)]
    bank = np.zeros((audio.n_fft // 2 + 1, audio.mels))
    for number in range(audio.mels):
        left, middle, right = edges[number : number + 3]
        for at in range(len(bank)):
            hz = at * audio.sample_rate / audio.n_fft
            value = min((hz - left) / (middle - left), (right - hz) / (right - middle))
            area = 2 / (right - left) if audio.mel_scale == "slaney" else 1
            bank[at, number] = max(value, 0) * area
    return bank


def spectrogram(audio: AudioInput, values: np.ndarray) -> np.ndarray:
    """Return [mels, frames] of one sound by numpy's own Fourier transform, in float64."""
    frame = audio.frame or audio.n_fft
    window = np.zeros(audio.n_fft)
    start = (audio.n_fft - frame) // 2
    window[start : start + frame] = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(frame) / frame)
    padded = np.pad(values.astype(np.float64), audio.n_fft // 2, "reflect")
    padded = padded if audio.center else values.astype(np.float64)
    starts = range(0, len(padded) - audio.n_fft + 1, audio.hop)
    bins = np.stack([np.fft.rfft(padded[s : s + audio.n_fft] * window) for s in starts])
    mels = (np.abs(bins) ** audio.power @ filters(audio)).T
    if audio.logarithm != "none":
        mels = np.maximum(mels, audio.floor)
        mels = {"ln": np.log, "log10": np.log10, "db": lambda v: 10 * np.log10(v)}[audio.logarithm](
            mels
        )
        if audio.top_db is not None:
            mels = np.maximum(mels, mels.max() - audio.top_db)
    return (mels - audio.mean) / audio.std


def spec_of(*shape: int | Dim, dtype: str = "float32") -> TensorSpec:
    dims = tuple(axis if isinstance(axis, Dim) else Dim(size=axis) for axis in shape)
    return TensorSpec(name="mel", dtype=dtype, shape=dims)


BATCH, TIME = Dim(name="batch", min=1, max=4, opt=1), Dim(name="time", min=1, max=50, opt=20)


@pytest.mark.parametrize("audio", KINDS, ids=range(len(KINDS)))
@pytest.mark.parametrize("samples", [4000, 5123])
def test_the_spectrogram_is_that_of_the_formulas(audio: AudioInput, samples: int) -> None:
    values = sound(samples, rows=2)
    got = sound_session(audio, spec_of(BATCH, audio.mels, TIME))(values)
    for row, value in zip(got, values, strict=True):
        wanted = spectrogram(audio, value)
        assert row.shape == wanted.shape
        # float32 carries seven digits of the loudest bin into a logarithm of the quietest
        assert np.abs(row - wanted).max() <= 2e-3 * max(1.0, np.abs(wanted).max() / 30)


def test_the_spectrogram_is_torchs() -> None:
    torch = pytest.importorskip("torch")
    values = sound(6000)
    window = torch.hann_window(400)
    bins = torch.stft(
        torch.from_numpy(values), 512, 160, 400, window, center=True, return_complex=True
    )
    audio = dataclasses.replace(MEL, n_fft=512, frame=400, mels=64)
    wanted = torch.log(
        torch.from_numpy(filters(audio)).float().T @ bins.abs().square() + 0.0
    ).numpy()
    got = sound_session(audio, spec_of(BATCH, 64, TIME))(values)
    assert np.abs(got - wanted).max() < 2e-3


@pytest.mark.parametrize("scale", ["htk", "slaney"])
def test_the_filters_are_those_of_the_formulas(scale: str) -> None:
    audio = dataclasses.replace(MEL, mel_scale=scale, low_hz=50.0, high_hz=7000.0)
    assert np.abs(mel_filters(audio) - filters(audio)).max() < 1e-12


def test_axes_stand_as_the_model_wants_them() -> None:
    values = sound(4000)
    plain = sound_session(MEL, spec_of(BATCH, 80, TIME))(values)
    turned = dataclasses.replace(MEL, layout="frames-mels")
    got = sound_session(turned, spec_of(BATCH, 1, TIME, 80))(values)
    assert np.array_equal(got[:, 0], plain.transpose(0, 2, 1))
    got = sound_session(MEL, spec_of(BATCH, 80, TIME, 1, dtype="float16"))(values)
    assert got.dtype == np.float16
    assert np.allclose(got[..., 0], plain, rtol=1e-3, atol=1e-2)


def test_a_waveform_is_only_scaled() -> None:
    audio = AudioInput(sample_rate=16000, mean=0.5, std=0.25)
    values = sound(100, rows=3)
    got = sound_session(audio, spec_of(BATCH, 100, 1))(values)
    assert np.allclose(got[..., 0], (values - 0.5) / 0.25, atol=1e-6)
    assert sound_session(audio, spec_of(BATCH, 1, 100))(values).shape == (3, 1, 100)


@pytest.fixture
def make_model(drawing: Any, make_spec: Callable, tmp_path: Path) -> Callable[..., Model]:
    """Make `mel` [batch, 80, …] → `y` [batch, time, 5]."""

    def make(time: int | Dim, opset: int = 13) -> Model:
        d = drawing(opset=opset)
        value = d.add("Transpose", "mel", perm=[0, 2, 1])
        d.add("MatMul", value, d.weight(80, 5), out="y")
        return d.save(
            tmp_path / "m.onnx",
            (make_spec("mel", "float32", BATCH, 80, time),),
            make_spec("y", "float32", BATCH, time, 5),
        )

    return make


def recipe_of(audio: AudioInput) -> Recipe:
    return Recipe(model="m.onnx", name="m", audio={"mel": audio})


@pytest.mark.parametrize("opset", [9, 13, 18])
def test_the_attached_model_answers_sound_as_the_parts_do(
    opset: int, make_model: Callable, tmp_path: Path
) -> None:
    model = make_model(TIME, opset)
    out = tmp_path / "out.onnx"
    recipe = recipe_of(dataclasses.replace(MEL, top_db=80.0))
    signature = attach(model.path, model.signature, recipe, out)
    # 50 frames end before the 51st begins: 50 hops of 160 samples
    assert str(signature.inputs[0]) == "mel: float32[batch=1..4, samples=201..7999]"
    assert str(signature.outputs[0]) == "y: float32[batch=1..4, ?=0.., 5]"
    values = sound(5000, rows=2)
    samples = Samples([lambda: {"mel": values}], digest="", origin="", kind="audio")
    prepared = prepare(samples, recipe, model.signature)[0]
    wanted = run(model.path, prepared)
    assert wanted.shape == (2, 32, 5)
    assert np.allclose(run(out, {"mel": values}), wanted, atol=1e-4)


def run(path: Path, feeds: dict[str, np.ndarray]) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0]


def test_a_window_settles_the_number_of_frames(make_model: Callable) -> None:
    audio = dataclasses.replace(MEL, window=4000)
    signature = served_signature(make_model(TIME).signature, recipe_of(audio))
    assert str(signature.inputs[0]) == "mel: float32[batch=1..4, 4000]"
    assert str(signature.outputs[0]) == "y: float32[batch=1..4, 26, 5]"


def test_arrays_in_the_models_own_form_stay(make_model: Callable) -> None:
    model = make_model(TIME)
    own = np.zeros((1, 80, 7), np.float32)
    samples = Samples([lambda: {"mel": own}], digest="", origin="", kind="npz")
    assert prepare(samples, recipe_of(MEL), model.signature)[0]["mel"] is own


@pytest.mark.parametrize(
    ("time", "settings", "message", "hint"),
    [
        (26, {}, "has no `window`, and the model takes 26 frames", "set `window = 4000`"),
        (26, {"window": 9000}, "makes 57 frames of `window = 9000`", "set `window = 4000`"),
        (TIME, {"window": 9000}, "makes 57 frames", "set `window = 7840`"),
        (TIME, {"window": 150}, "`input.mel.audio.window` is 150 samples", None),
        (TIME, {"mels": 40}, "makes 40 mels where the model takes 80", "set `mels = 80`"),
        (TIME, {"frame": 401}, "`input.mel.audio.frame` is 401", None),
        (TIME, {"high_hz": 9000.0}, "filters from 0 to 9000 Hz", None),
        (TIME, {"hop": 0}, "must be at least 1", None),
        (TIME, {"floor": 0.0}, "must be above 0", None),
        (TIME, {"features": "waveform"}, "makes [batch, samples]", None),
    ],
)
def test_settings_that_do_not_fit_the_model_are_refused(
    time: int | Dim,
    settings: dict[str, Any],
    message: str,
    hint: str | None,
    make_model: Callable,
) -> None:
    recipe = recipe_of(dataclasses.replace(MEL, **settings))
    with pytest.raises(UsageError) as caught:
        served_signature(make_model(time).signature, recipe)
    assert message in caught.value.message
    assert (caught.value.hint or "").startswith(hint or "")


def test_the_training_transform_is_called_with_samples(
    make_model: Callable, tmp_path: Path
) -> None:
    (tmp_path / "training.py").write_text(
        "import numpy as np\n"
        "def frames(sound):\n"
        "    assert sound.dtype == np.float32 and sound.ndim == 1\n"
        "    return np.zeros((80, 1 + len(sound) // 160))\n"
    )
    audio = dataclasses.replace(
        MEL, transform=f"{tmp_path / 'training.py'}:frames", floor=1.0, logarithm="ln"
    )
    silence = np.zeros((1, 4000), np.float32)
    samples = Samples([lambda: {"mel": silence}], digest="", origin="", kind="audio")
    found = check_transforms(recipe_of(audio), samples, make_model(TIME).signature)
    assert found == {"mel": {"samples": 1, "max_abs": 0.0, "relative": 0.0}}
