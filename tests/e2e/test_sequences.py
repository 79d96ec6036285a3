"""A real voice detector keeps its state: sequences over HTTP and gRPC, and a stream of events."""

from __future__ import annotations

import http.client
import importlib.util
import json
import queue
import shutil
import subprocess
import sys
import wave
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

pytestmark = [pytest.mark.network, pytest.mark.timeout(600)]

SOUNDS = Path("/usr/share/sounds/alsa")
# The model looks at 32 ms and the 4 ms before them, at 16 kHz.
STEP, CONTEXT = 512, 64
CHUNK = 8
EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"


def _model_file() -> Path:
    spec = importlib.util.find_spec("silero_vad")
    if spec is None or spec.origin is None:
        pytest.skip("the package `silero-vad` is not installed")
    return Path(spec.origin).parent / "data" / "silero_vad_16k_sequence.onnx"


def _frames(name: str) -> NDArray[np.float32]:
    """Return a spoken sound as frames [steps, 576], half a second of silence behind it."""
    path = SOUNDS / name
    if not path.is_file():
        pytest.skip("the sounds of `alsa-utils` are not installed")
    with wave.open(str(path)) as sound:
        assert (sound.getframerate(), sound.getnchannels()) == (48000, 1)
        samples = np.frombuffer(sound.readframes(sound.getnframes()), "<i2") / 32768
    third = samples[: len(samples) // 3 * 3].reshape(-1, 3).mean(axis=1)
    padded = np.concatenate([np.zeros(CONTEXT), third, np.zeros(8000)]).astype(np.float32)
    count = (len(padded) - CONTEXT) // STEP
    return np.stack([padded[i * STEP : i * STEP + STEP + CONTEXT] for i in range(count)])


def _reference(frames: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the original's answers, a frame at a time, its state carried by hand."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        str(_model_file()), options, providers=["CPUExecutionProvider"]
    )
    h = c = np.zeros((1, 1, 128), np.float32)
    answers = []
    for frame in frames:
        answer, h, c = session.run(None, {"input": frame[None], "h": h, "c": c})
        answers.append(answer)
    return np.concatenate(answers)


@pytest.fixture(scope="module")
def voice(build: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("voice")
    model = _model_file()
    shutil.copyfile(model, folder / model.name)
    shutil.copyfile(EXAMPLES / "voice.toml", folder / "voice.toml")
    return Path(build("-r", folder / "voice.toml")["path"])


@pytest.fixture(scope="module")
def server(voice: Path, serve: Any) -> Iterator[Any]:
    with serve(voice) as served:
        yield served


def _triton_input(client: Any, frames: NDArray[np.float32]) -> list[Any]:
    tensor = client.InferInput("input", list(frames.shape), "FP32")
    tensor.set_data_from_numpy(frames)
    return [tensor]


def test_two_speakers_in_turns_are_heard_as_each_alone(server: Any) -> None:
    import tritonclient.http as triton

    speakers = {"left": _frames("Front_Left.wav"), 77: _frames("Front_Right.wav")}
    heard: dict[Any, list[NDArray[np.float32]]] = {name: [] for name in speakers}
    client = triton.InferenceServerClient(server.address)
    steps = max(map(len, speakers.values()))
    for at in range(0, steps, CHUNK):
        for name, frames in speakers.items():
            piece = frames[at : at + CHUNK]
            if len(piece):
                answer = client.infer(
                    "voice", _triton_input(triton, piece), sequence_id=name,
                    sequence_start=at == 0, sequence_end=at + CHUNK >= len(frames),
                )  # fmt: skip
                heard[name].append(answer.as_numpy("speech_probs"))
    metadata = client.get_model_metadata("voice")
    client.close()
    assert [each["name"] for each in metadata["inputs"]] == ["input"]
    assert [each["name"] for each in metadata["outputs"]] == ["speech_probs"]
    for name, frames in speakers.items():
        got, expected = np.concatenate(heard[name]), _reference(frames)
        assert np.abs(got - expected).max() < 1e-4
        # it is speech, and then silence
        assert got.max() > 0.9
        assert got[-5:].max() < 0.1


def test_the_state_matters(server: Any) -> None:
    frames = _frames("Front_Center.wav")
    alone = [
        server.post("/predict", {"data": frame[None].tolist()})["result"][0] for frame in frames
    ]
    assert np.abs(np.array(alone) - _reference(frames)).max() > 0.2


def test_a_grpc_stream_carries_a_sequence(server: Any) -> None:
    triton = pytest.importorskip("tritonclient.grpc")
    frames = _frames("Front_Center.wav")
    answers: queue.Queue[Any] = queue.Queue()
    client = triton.InferenceServerClient(server.address)
    client.start_stream(lambda result, error: answers.put(error or result))
    for at in range(0, len(frames), CHUNK):
        # none waits for the one before: the stream keeps their order
        client.async_stream_infer(
            "voice", _triton_input(triton, frames[at : at + CHUNK]), sequence_id=5,
            sequence_start=at == 0, sequence_end=at + CHUNK >= len(frames),
        )  # fmt: skip
    got = []
    for _ in range(0, len(frames), CHUNK):
        answer = answers.get(timeout=60)
        assert not isinstance(answer, Exception), answer
        got.append(answer.as_numpy("speech_probs"))
    client.stop_stream()
    client.close()
    assert np.abs(np.concatenate(got) - _reference(frames)).max() < 1e-4


def test_a_whole_sound_comes_back_as_events_while_it_is_heard(server: Any) -> None:
    frames = _frames("Side_Left.wav")
    told = {"name": "input", "shape": list(frames.shape), "datatype": "FP32",
            "parameters": {"binary_data_size": frames.nbytes}}  # fmt: skip
    head = json.dumps({"inputs": [told]}).encode()
    connection = http.client.HTTPConnection(server.address, timeout=60)
    connection.request(
        "POST", "/v2/models/voice/infer_stream", head + frames.tobytes(),
        {"Inference-Header-Content-Length": str(len(head))},
    )  # fmt: skip
    answer = connection.getresponse()
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "text/event-stream"
    blocks = [
        dict(line.partition(": ")[::2] for line in block.split("\n"))
        for block in answer.read().decode().split("\n\n")[:-1]
    ]
    connection.close()
    *events, end = blocks
    assert end == {"event": "end", "data": json.dumps({"events": len(events)}).replace(" ", "")}
    assert len(events) == -(-len(frames) // CHUNK)
    outputs = [json.loads(event["data"])["outputs"][0] for event in events]
    assert [output["shape"] for output in outputs[:-1]] == [[CHUNK]] * (len(events) - 1)
    got = np.concatenate([output["data"] for output in outputs])
    assert np.abs(got - _reference(frames)).max() < 1e-4


def test_the_documented_client_prints_when_somebody_speaks(server: Any) -> None:
    name = "Front_Right.wav"
    done = subprocess.run(
        [sys.executable, EXAMPLES / "voice_stream.py", server.address, SOUNDS / name],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    times = [float(line.split()[0]) for line in done.stdout.splitlines()]
    # the client has no silence behind the sound
    steps = len(_frames(name)) - 8000 // STEP
    spoken = np.flatnonzero(_reference(_frames(name)[:steps]) > 0.5) * STEP / 16000
    assert len(times) > 20
    assert np.abs(np.array(times[: len(spoken)]) - spoken[: len(times)]).max() < 0.01


def test_predict_begins_a_sequence_for_each_file(
    voice: Path, edgepack_session: Any, tmp_path: Path
) -> None:
    frames = _frames("Rear_Left.wav")[:8]
    np.savez(tmp_path / "frames.npz", input=frames)
    out = tmp_path / "out.npz"
    edgepack_session("predict", voice, "-i", tmp_path / "frames.npz", "-o", out, check=True)
    got = np.load(out)
    assert list(got) == ["speech_probs"]
    assert np.abs(got["speech_probs"] - _reference(frames)).max() < 1e-4


def test_a_sequence_that_nobody_began_is_refused(server: Any) -> None:
    frame = _frames("Noise.wav")[:1]
    told = {"name": "input", "shape": [1, 576], "datatype": "FP32",
            "data": frame.ravel().tolist()}  # fmt: skip
    body = {"parameters": {"sequence_id": 123}, "inputs": [told]}
    with pytest.raises(AssertionError, match=r"400: .*there is no sequence of this id"):
        server.post("/v2/models/voice/infer", body)
