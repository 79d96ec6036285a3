"""Sounds as samples: formats, channels, rates, windows, and what is refused."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from packager.data._resample import resample
from packager.data._wav import read_wav
from packager.errors import UsageError
from packager.model import Dim
from packager.recipe import AudioInput

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

RAMP = np.linspace(-0.9, 0.9, 64)


def tone(hertz: float, rate: int, seconds: float = 0.5) -> Any:
    return np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)


@pytest.mark.parametrize(
    ("kind", "bits", "step"),
    [(1, 8, 2**-7), (1, 16, 2**-15), (1, 24, 2**-23), (1, 32, 2**-31), (3, 32, 2**-24), (3, 64, 0)],
)
@pytest.mark.parametrize("extensible", [False, True])
def test_every_format_is_read_to_its_last_bit(
    tmp_path: Path, save_wav: Callable, kind: int, bits: int, step: float, *, extensible: bool
) -> None:
    save_wav(tmp_path / "a.wav", RAMP, kind=kind, bits=bits, extensible=extensible)
    sound = read_wav(tmp_path / "a.wav")
    assert np.abs(sound.values - RAMP).max() <= step / 2
    assert (sound.rate, sound.channels) == (16000, 1)


def test_what_python_writes_is_read(tmp_path: Path) -> None:
    import wave

    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(np.array([0, 16384, -32768], "<i2").tobytes())
    sound = read_wav(tmp_path / "a.wav")
    assert sound.values.tolist() == [0.0, 0.5, -1.0]
    assert sound.rate == 8000


def test_other_chunks_are_passed_over(tmp_path: Path, save_wav: Callable) -> None:
    # A chunk of odd length is filled up with one byte.
    save_wav(tmp_path / "a.wav", RAMP, chunks=b"LIST" + struct.pack("<I", 3) + b"abc\0")
    assert len(read_wav(tmp_path / "a.wav").values) == 64


def test_a_length_that_the_recorder_did_not_know_is_the_rest(
    tmp_path: Path, save_wav: Callable
) -> None:
    save_wav(tmp_path / "a.wav", RAMP, length=0xFFFFFFFF)
    assert len(read_wav(tmp_path / "a.wav").values) == 64


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a `.wav` file"),
        (b"OggS" + b"\0" * 60, "is not a `.wav` file"),
        (b"RF64" + b"\0" * 60, "is an RF64 file"),
        (b"RIFF\0\0\0\0WAVE", "holds no sound"),
        (b"RIFF\0\0\0\0WAVEdata\4\0\0\0abcd", "does not say its format"),
        (b"RIFF\0\0\0\0WAVEfmt \4\0\0\0abcd", "its header is cut short"),
    ],
)
def test_what_is_no_wav_file_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "bad.wav").write_bytes(content)
    with pytest.raises(UsageError, match=message) as caught:
        read_wav(tmp_path / "bad.wav")
    assert "bad.wav" in caught.value.message


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"length": 1000}, "is cut short: 128 of 1000 bytes"),
        ({"length": 0}, "holds no sound"),
        ({"kind": 3, "bits": 16}, "is 16-bit float"),
        ({"kind": 7, "bits": 8}, "is µ-law"),
        ({"kind": 0x55}, "is MP3"),
        ({"rate": 3}, "has 3 samples per second"),
    ],
)
def test_a_wav_file_that_cannot_be_decoded_is_refused(
    tmp_path: Path, save_wav: Callable, settings: dict[str, Any], message: str
) -> None:
    save_wav(tmp_path / "bad.wav", RAMP, **settings)
    with pytest.raises(UsageError, match=message):
        read_wav(tmp_path / "bad.wav")


def test_a_float_sound_with_nan_is_refused(tmp_path: Path, save_wav: Callable) -> None:
    save_wav(tmp_path / "bad.wav", [0.0, np.nan], kind=3, bits=32)
    with pytest.raises(UsageError, match="holds NaN or infinity"):
        read_wav(tmp_path / "bad.wav")


@pytest.mark.parametrize(("rate", "wanted"), [(44100, 16000), (8000, 16000), (48000, 22050)])
def test_a_tone_keeps_its_pitch_and_level(rate: int, wanted: int) -> None:
    out = resample(tone(1000, rate), rate, wanted)
    expected = tone(1000, wanted)
    assert len(out) == len(expected)
    inner = slice(wanted // 20, -wanted // 20)
    assert np.abs(out[inner] - expected[inner]).max() < 1e-4


def test_what_would_alias_is_a_hundred_decibels_down() -> None:
    # 9.5 kHz lies above what 16 kHz can hold, and would come back as 6.5 kHz.
    out = resample(tone(9500, 44100), 44100, 16000)
    assert np.abs(out[800:-800]).max() < 2e-5


def test_what_the_lower_rate_can_hold_is_kept() -> None:
    out = resample(tone(7000, 44100), 44100, 16000)
    assert np.abs(out[800:-800]).max() == pytest.approx(1.0, abs=2e-3)


def test_it_agrees_with_scipys_polyphase_filter() -> None:
    from scipy import signal

    noise = np.random.default_rng(0).standard_normal(20000)
    soft = signal.sosfiltfilt(signal.butter(8, 3000, fs=44100, output="sos"), noise)
    ours = resample(soft, 44100, 16000)
    theirs = signal.resample_poly(soft, 160, 441, window=("kaiser", 12.0))
    inner = slice(400, -400)
    error = np.sqrt(np.mean((ours[inner] - theirs[inner]) ** 2) / np.mean(theirs[inner] ** 2))
    assert error < 2e-3


@pytest.mark.parametrize("count", [1, 2, 7, 300])
def test_a_short_sound_and_a_constant_pass(count: int) -> None:
    out = resample(np.ones(count), 44100, 16000)
    assert len(out) == -(-count * 160 // 441)
    assert np.isfinite(out).all()
    steady = resample(np.ones(4000), 11025, 16000)
    assert np.abs(steady[500:-500] - 1).max() < 1e-12


@pytest.fixture
def audio() -> dict[str, AudioInput]:
    return {"x": AudioInput(sample_rate=16000, window=100)}


def test_a_sound_is_cut_into_windows_at_the_recipes_rate(
    tmp_path: Path, save_wav: Callable, load: Callable, make_spec: Callable, audio: Any
) -> None:
    save_wav(tmp_path / "long.wav", np.linspace(-1, 1, 250))
    save_wav(tmp_path / "short.wav", np.full((30, 2), [0.5, 0.25]))
    save_wav(tmp_path / "slow.wav", tone(200, 8000, 0.02)[:50], rate=8000)
    samples = load(tmp_path, make_spec("x", "float32", 100), audio=audio)
    assert samples.names == (
        "long.wav window 1", "long.wav window 2", "short.wav", "slow.wav"
    )  # fmt: skip
    assert {(s["x"].dtype.name, s["x"].shape) for s in samples} == {("float32", (1, 100))}
    assert samples[1]["x"][0, 0] == pytest.approx(np.linspace(-1, 1, 250)[100], abs=1e-4)
    assert samples[2]["x"][0, :31].tolist() == pytest.approx([0.375] * 30 + [0.0], abs=1e-4)
    assert samples.origin == "4 windows of 3 sounds"
    assert samples.kind == "wav"
    assert samples.notes == (
        "what is left behind the last whole window was left out in 2 of 4 windows",
        "2 channels were averaged in 1 of 4 windows",
        "silence was added at the end in 1 of 4 windows",
        "8000 Hz was resampled to 16000 Hz in 1 of 4 windows",
    )


def test_without_a_window_the_models_own_size_is_taken(
    tmp_path: Path, save_wav: Callable, load: Callable, make_spec: Callable
) -> None:
    save_wav(tmp_path / "a.wav", np.zeros(130))
    audio = {"x": AudioInput(sample_rate=16000)}
    assert load(tmp_path, make_spec("x", "float32", 60, 1), audio=audio)[1]["x"].shape == (1, 60)
    free = Dim(name="n", min=1, max=200, opt=100)
    assert load(tmp_path, make_spec("x", "float32", free), audio=audio)[0]["x"].shape == (1, 130)
    tight = Dim(name="n", min=1, max=100, opt=100)
    with pytest.raises(UsageError, match=r"a.wav` has 130 samples at 16000 Hz"):
        load(tmp_path, make_spec("x", "float32", tight), audio=audio)
    mel = {"x": AudioInput(sample_rate=16000, features="mel", mels=20)}
    frames = Dim(name="frames", min=1, max=9, opt=2)
    assert load(tmp_path, make_spec("x", "float32", 20, frames), audio=mel)[0]["x"].shape == (
        1,
        130,
    )


def test_every_window_has_the_label_of_its_sound(
    tmp_path: Path, save_wav: Callable, load: Callable, make_spec: Callable, audio: Any
) -> None:
    save_wav(tmp_path / "1/long.wav", np.linspace(-1, 1, 200))
    save_wav(tmp_path / "0/a.wav", np.zeros(100))
    samples = load(tmp_path, make_spec("x", "float32", 100), audio=audio, labelled=True)
    assert [label.tolist() for label in samples.labels] == [[0], [1], [1]]


def test_a_transcript_of_a_sound_that_is_cut_is_refused(
    tmp_path: Path, save_wav: Callable, load: Callable, make_spec: Callable, audio: Any
) -> None:
    for name, count in (("a", 100), ("b", 90)):
        save_wav(tmp_path / f"{name}.wav", np.zeros(count))
        (tmp_path / f"{name}.txt").write_text("hello there\n")
    x = make_spec("x", "float32", 100)
    samples = load(tmp_path, x, audio=audio, labelled=True, metric="wer")
    assert samples.labels == (["hello there"], ["hello there"])
    save_wav(tmp_path / "b.wav", np.zeros(250))
    with pytest.raises(UsageError, match=r"b.wav` is cut into 2 windows, and its transcript"):
        load(tmp_path, x, audio=audio, labelled=True, metric="wer")


def test_sound_for_a_model_without_a_sound_input_says_what_to_declare(
    tmp_path: Path, save_wav: Callable, load: Callable, make_spec: Callable, audio: Any
) -> None:
    save_wav(tmp_path / "a.wav", RAMP)
    with pytest.raises(UsageError) as caught:
        load(tmp_path, make_spec("x", "float32", 100))
    assert "[input.x.audio]" in caught.value.hint
    with pytest.raises(UsageError, match="nothing is given for `y`"):
        load(tmp_path, make_spec("x", "float32", 100), make_spec("y", "float32"), audio=audio)


def test_sound_may_come_in_arrays_too(tmp_path: Path, load: Callable, make_spec: Callable) -> None:
    mel = {"x": AudioInput(sample_rate=16000, features="mel", mels=20)}
    np.savez(tmp_path / "a.npz", x=np.zeros(500))
    np.savez(tmp_path / "b.npz", x=np.ones((2, 20, 7), np.float32))
    samples = load(tmp_path, make_spec("x", "float32", 20, 7), audio=mel)
    assert [(s["x"].shape, s["x"].dtype.name) for s in samples] == [
        ((1, 500), "float32"),
        ((2, 20, 7), "float32"),
    ]
    np.savez(tmp_path / "a.npz", x=np.full(500, np.nan))
    with pytest.raises(UsageError, match="holds NaN"):
        load(tmp_path, make_spec("x", "float32", 20, 7), audio=mel)
