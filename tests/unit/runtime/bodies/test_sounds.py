"""A sound decoded on a device is the sound that the build host decodes, at the model's rate."""

from __future__ import annotations

import contextlib
import json
import math
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packager.data import read_request
from packager.data._resample import resample
from packager.model import Signature as HostSignature
from packager.recipe import AudioInput, Recipe
from runtime.bodies.resample import Resampler
from runtime.bodies.wav import SoundDecoder, most_body_bytes, read_header
from runtime.errors import BadRequest
from runtime.signature import Signature
from tests.unit.runtime.bodies.sounds import encoded, noise, wav

ROOT = Path(__file__).resolve().parents[4]
BATCH = {"name": "batch", "min": 1, "max": 8, "opt": 1}
# The samples of a float32 that both sides round once.
TOLERANCE = 2e-7


def wire(*dims: Any) -> dict[str, Any]:
    spec = {"name": "x", "dtype": "float32", "shape": [BATCH, *dims]}
    return {"inputs": [spec], "outputs": []}


ANY_LENGTH = wire({"name": "samples", "min": 1, "max": 1 << 20, "opt": 16000})


def decoder(signature: dict[str, Any] = ANY_LENGTH, **audio: Any) -> SoundDecoder:
    return SoundDecoder(Signature(signature), {"x": {"sample_rate": 16000, **audio}})


def floats(tensor: Any) -> np.ndarray[Any, Any]:
    return np.frombuffer(tensor.data, "<f4").reshape(tensor.shape)


def host(tmp_path: Path, content: bytes, signature: dict[str, Any], window: Any = None) -> Any:
    path = tmp_path / "sound.wav"
    path.write_bytes(content)
    recipe = Recipe(
        model="m.onnx", name="m", audio={"x": AudioInput(sample_rate=16000, window=window)}
    )
    return read_request(path, HostSignature.from_json(signature), recipe)[0]["x"]


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize(("kind", "bits"), [(1, 8), (1, 16), (1, 24), (1, 32), (3, 32), (3, 64)])
def test_samples_of_every_form_are_the_same(
    tmp_path: Path, kind: int, bits: int, channels: int
) -> None:
    data = encoded(noise(600 * channels), kind, bits)
    for extensible in (False, True):
        content = wav(data, kind=kind, bits=bits, channels=channels, extensible=extensible)
        found = floats(decoder().decode(content)["x"])
        wanted = host(tmp_path, content, ANY_LENGTH)
        assert found.shape == wanted.shape == (1, 600)
        if channels < 3:
            assert (found == wanted).all()
        assert np.abs(found - wanted).max() <= TOLERANCE


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 32000, 44100, 48000, 96000])
def test_other_rates_become_the_same_samples(tmp_path: Path, rate: int) -> None:
    content = wav(encoded(noise(rate // 5), 1, 16), rate=rate)
    found = floats(decoder().decode(content)["x"])
    wanted = host(tmp_path, content, ANY_LENGTH)
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= TOLERANCE


@pytest.mark.parametrize("count", [1, 63, 1025, 5000])
def test_short_and_long_sounds_are_resampled_alike(count: int) -> None:
    for rate, wanted in ((8000, 16000), (48000, 16000), (44100, 16000), (16000, 44100)):
        values = noise(count) * 1e3
        found = Resampler(wanted).resample(values.tolist(), rate)
        assert len(found) == Resampler(wanted).count(count, rate)
        right = resample(values, rate, wanted)
        assert len(right) == len(found)
        assert np.abs(np.array(found) - right).max() <= 1e3 * TOLERANCE


def test_a_sound_costs_only_the_phases_that_it_needs_and_a_longer_one_the_rest() -> None:
    resampler = Resampler(16000)
    for count, phases in ((1, 2), (100, 146), (1, 146), (2000, 640), (50, 640)):
        values = noise(count)
        found = np.array(resampler.resample(values.tolist(), 11025))
        assert np.abs(found - resample(values, 11025, 16000)).max() <= TOLERANCE
        assert len(resampler._filters[11025]._phases) == phases


def test_an_odd_rate_that_is_just_taken_becomes_the_same_samples() -> None:
    values = noise(1100)
    found = np.array(Resampler(16000).resample(values.tolist(), 15984))
    assert np.abs(found - resample(values, 15984, 16000)).max() <= TOLERANCE


def test_silence_and_the_faintest_sound_are_resampled() -> None:
    for level in (0.0, 5e-324, 1e-30):
        found = Resampler(16000).resample([level] * 100, 8000)
        assert len(found) == 200
        assert max(map(abs, found)) <= 2 * level


def test_a_loud_sound_of_floats_is_resampled() -> None:
    values = noise(500) * 1e30
    found = np.array(Resampler(16000).resample(values.tolist(), 48000))
    assert np.abs(found - resample(values, 48000, 16000)).max() <= 1e30 * TOLERANCE


def test_a_sound_is_cut_into_whole_windows_or_filled_with_silence(tmp_path: Path) -> None:
    for count, window in ((1000, 400), (100, 400), (400, 400)):
        content = wav(encoded(noise(count), 1, 16))
        for signature, size in ((wire(400), None), (ANY_LENGTH, window)):
            found = floats(decoder(signature, window=size).decode(content)["x"])
            wanted = host(tmp_path, content, signature, size)
            assert found.shape == wanted.shape
            assert (found == wanted).all()


def test_more_windows_than_the_model_takes_are_refused_before_the_work() -> None:
    assert decoder(wire(400)).decode(wav(bytes(2 * 400 * 8)))["x"].shape == (8, 400)
    with pytest.raises(BadRequest, match="has size 9 in dimension 0"):
        decoder(wire(400)).decode(wav(bytes(2 * 400 * 9)))


def test_a_sound_of_another_length_than_the_model_takes_is_refused() -> None:
    signature = wire({"name": "samples", "min": 100, "max": 200, "opt": 100})
    assert decoder(signature).decode(wav(bytes(2 * 150)))["x"].shape == (1, 150)
    for count in (99, 201):
        with pytest.raises(BadRequest, match=f"has size {count} in dimension 1"):
            decoder(signature).decode(wav(bytes(2 * count)))


def test_recorders_that_did_not_know_the_length_are_understood(tmp_path: Path) -> None:
    data = encoded(noise(50), 1, 16)
    content = wav(data + b"\0", length=0xFFFFFFFF)
    found = floats(decoder().decode(content)["x"])
    assert (found == host(tmp_path, content, ANY_LENGTH)).all()


def test_other_chunks_are_passed_over(tmp_path: Path) -> None:
    content = wav(encoded(noise(50), 1, 16), before=b"LIST\x05\0\0\0abcde\0")
    assert (floats(decoder().decode(content)["x"]) == host(tmp_path, content, ANY_LENGTH)).all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no WAV file"),
        (b"RF64" + bytes(40), "RF64"),
        (wav(b"")[:12], "holds no sound"),
        (wav(b""), "holds no sound"),
        (wav(b"\0"), "holds no sound"),
        (wav(bytes(20), length=4000), "cut short: 20 of 4000 bytes"),
        (wav(bytes(20), length=0xFFFFFFFE), "cut short: 20 of 4294967294 bytes"),
        (wav(bytes(20), kind=0x55), "the sound is MP3"),
        (wav(bytes(20), kind=2), "the sound is ADPCM"),
        (wav(bytes(20), bits=12), "12-bit PCM"),
        (wav(bytes(20), bits=0), "0-bit PCM"),
        (wav(bytes(20), kind=3, bits=16), "16-bit float"),
        (wav(bytes(20), channels=0), "0 channels"),
        (wav(bytes(200), channels=65), "65 channels"),
        (wav(bytes(20), rate=0), "0 samples per second"),
        (wav(bytes(20), rate=999), "999 samples per second"),
        (wav(bytes(20), rate=4_000_000_000), "4000000000 samples per second"),
        (b"RIFF\0\0\0\0WAVEdata\x04\0\0\0abcd", "does not say its format"),
        (b"RIFF\0\0\0\0WAVEfmt \x04\0\0\0abcd" + bytes(8), "header is cut short"),
        (b"RIFF\0\0\0\0WAVE" + b"LIST\0\0\0\0" * 20_000, "holds no sound"),
        (b"RIFF\0\0\0\0WAVEfmt \xff\xff\xff\xff" + wav(b"")[20:36] + b"data", "holds no sound"),
        (wav(np.array([0, math.nan], "<f4").tobytes(), kind=3, bits=32), "NaN or infinity"),
        (wav(np.array([0, math.inf], "<f8").tobytes(), kind=3, bits=64), "NaN or infinity"),
        (wav(np.array([0, 1e39], "<f8").tobytes(), kind=3, bits=64), "NaN or infinity"),
    ],
)
def test_broken_sounds_are_told_apart(content: bytes, message: str) -> None:
    with pytest.raises(BadRequest, match=message) as caught:
        decoder().decode(content)
    assert caught.value.status == 400


def test_odd_rates_and_long_sounds_are_refused_with_a_command() -> None:
    with pytest.raises(BadRequest, match="44101 Hz is not resampled to 16000 Hz") as caught:
        decoder().decode(wav(bytes(2000), rate=44101))
    assert caught.value.hint == "convert it: `ffmpeg -i IN -ar 16000 OUT.wav`"
    with pytest.raises(BadRequest, match="a sound of 1500 s is not resampled") as caught:
        Resampler(16000).count(1500 * 48000, 48000)
    assert caught.value.status == 413
    assert Resampler(16000).count(1 << 40, 16000) == 1 << 40


def test_filters_of_a_few_rates_are_kept() -> None:
    resampler = Resampler(16000)
    for rate in (8000, 32000, 48000, 64000, 96000, 192000):
        resampler.resample([1.0] * 10, rate)
        assert len(resampler._filters) <= 4


def test_the_bound_of_a_body_follows_from_the_signature() -> None:
    audio = {"x": {"sample_rate": 16000, "window": None}}
    small = most_body_bytes(Signature(wire(400)), audio, 1 << 30)
    assert 8 * 400 * 8 < small < 3 << 20
    windowed = most_body_bytes(
        Signature(ANY_LENGTH), {"x": {"sample_rate": 16000, "window": 400}}, 1 << 30
    )
    assert windowed == small
    free = {"name": None, "min": 1, "max": None, "opt": None}
    assert most_body_bytes(Signature(wire(free)), audio, 1 << 20) < 8 << 20
    assert most_body_bytes(Signature(wire(free)), audio, 1 << 40) == (64 << 20) + (1 << 20)


@given(st.binary(max_size=120))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_a_sound_or_refused(data: bytes) -> None:
    for content in (data, b"RIFF\0\0\0\0WAVE" + data, wav(bytes(20))[:20] + data):
        with contextlib.suppress(BadRequest):
            assert decoder().decode(content)["x"].shape[1] >= read_header(content).frames > 0


def test_every_cpython_decodes_the_same(old_python: Path, tmp_path: Path) -> None:
    cases = []
    for rate, bits in ((48000, 24), (44100, 16), (16000, 8)):
        path = tmp_path / f"{rate}.wav"
        path.write_bytes(wav(encoded(noise(2 * 900), 1, bits), rate=rate, bits=bits, channels=2))
        values = floats(decoder().decode(path.read_bytes())["x"])[0].tolist()
        cases.append([str(path), values])
    script = (
        "import array, json, sys\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "from runtime.bodies.wav import SoundDecoder\n"
        "from runtime.signature import Signature\n"
        "signature = Signature(json.loads(sys.argv[2]))\n"
        "for path, wanted in json.load(sys.stdin):\n"
        "    decode = SoundDecoder(signature, {'x': {'sample_rate': 16000}}).decode\n"
        "    found = array.array('f', decode(open(path, 'rb').read())['x'].data)\n"
        "    assert len(found) == len(wanted), path\n"
        "    assert max(abs(a - b) for a, b in zip(found, wanted)) <= 1e-7, path\n"
    )
    done = subprocess.run(
        [old_python, "-c", script, ROOT, json.dumps(ANY_LENGTH)],
        input=json.dumps(cases), capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
