"""The engine that a release names is opened and says what it is."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from runtime import cpu
from runtime import engine as opening
from runtime.cgroups import available_cores
from runtime.engine import open_engine
from runtime.errors import InputOutputFault, ModelFault
from runtime.tensor import Tensor


@dataclass
class Release:
    folder: str
    manifest: dict[str, Any]


@pytest.fixture
def release(tmp_path: Path, small_models: Any, engine_library: Path) -> Release:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libonnxruntime.so").symlink_to(engine_library)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.onnx").write_bytes(small_models["mlp"].path.read_bytes())
    engine = {
        "name": "onnxruntime",
        "version": "0.0.0",
        "library": "lib/libonnxruntime.so",
        "artifact": "model/model.onnx",
        "threads": 1,
        "precision": "int8-static",
        "scheme": "",
    }
    return Release(str(tmp_path), {"engine": engine})


def test_an_engine_says_what_really_runs(release: Release) -> None:
    engine = open_engine(release)
    assert engine.name == "onnxruntime"
    # what the library says, not what the manifest says
    assert engine.version == onnxruntime.__version__
    assert engine.provider == "CPUExecutionProvider"
    assert engine.precision == "int8-static"
    answer = engine.run({"x": Tensor("float32", (2, 64), bytes(512))})
    assert answer["logits"].shape == (2, 10)
    assert list(engine.run({"x": Tensor("float32", (1, 64), bytes(256))}, ["logits"])) == ["logits"]
    engine.close()
    with pytest.raises(ModelFault, match="the session is closed"):
        engine.run({"x": Tensor("float32", (1, 64), bytes(256))})


@pytest.mark.parametrize("asked", [None, 0, 1, 2])
def test_threads_are_the_callers_or_the_manifests_or_every_core(
    asked: int | None, release: Release
) -> None:
    engine = open_engine(release, asked)
    assert engine.threads == {None: 1, 0: available_cores()}.get(asked, asked)
    engine.close()


def test_an_unknown_engine_is_named(release: Release) -> None:
    release.manifest["engine"]["name"] = "tensorrt"
    with pytest.raises(ModelFault, match="needs the engine `tensorrt`, and this runtime has `onnx"):
        open_engine(release)


def test_a_release_without_its_files_is_told(release: Release) -> None:
    release.manifest["engine"]["artifact"] = "model/absent.onnx"
    with pytest.raises(InputOutputFault, match=r"there is no model file `absent.onnx`"):
        open_engine(release)


@pytest.mark.parametrize(
    ("word", "level", "kept"),
    [
        (None, "avx2", False),
        ("always", "avx512_vnni", True),
        ("saturating", "avx512_vnni", False),
        ("saturating", "avx_vnni", False),
        ("saturating", "avx512", True),
        ("saturating", "avx2", True),
    ],
)
def test_pairs_run_as_they_stand_where_the_manifest_says_so(
    word: str | None, level: str, kept: bool, release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    session = opening.Session
    monkeypatch.setattr(
        opening, "Session", lambda *a, **k: asked.append(k["keep_pairs"]) or session(*a, **k)
    )
    monkeypatch.setattr(cpu, "cpu_level", lambda: level)
    if word is not None:
        release.manifest["engine"]["keep_pairs"] = word
    engine = open_engine(release)
    engine.close()
    assert engine.precision == "int8-static" + ", multiplied in float32" * asked[0]
    assert asked == [kept and (word == "always" or os.uname().machine == "x86_64")]


def full_range_products(path: Path, dtype: str) -> None:
    """Write a product of inputs quantized to a type with weights of int8's full range."""
    value = helper.make_tensor_value_info
    scale = numpy_helper.from_array(np.float32(1 / 127), "scale")
    zero = numpy_helper.from_array(np.array({"int8": 0, "uint8": 128}[dtype], dtype), "zero")
    none = numpy_helper.from_array(np.int8(0), "none")
    signs = np.repeat([[1, -1, 1, -1]], 64, axis=0) * np.int8(127)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["rounded"]),
        helper.make_node("DequantizeLinear", ["w", "scale", "none"], ["weight"]),
        helper.make_node("MatMul", ["rounded", "weight"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "products",
        [value("x", TensorProto.FLOAT, ["n", 64])],
        [value("y", TensorProto.FLOAT, ["n", 4])],
        [scale, zero, none, numpy_helper.from_array(signs.astype(np.int8), "w")],
    )
    opset = helper.make_opsetid("", 17)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), path)


@pytest.mark.emulator
@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_products_of_the_full_range_do_not_saturate_without_vnni(
    dtype: str, release: Release
) -> None:
    emulator = shutil.which("qemu-x86_64")
    assert emulator is not None
    full_range_products(Path(release.folder) / "model" / "model.onnx", dtype)
    program = """if True:
        import json, sys
        from array import array
        from runtime.engine import open_engine
        from runtime.tensor import Tensor
        class Release:
            folder, manifest = sys.argv[1], json.loads(sys.argv[2])
        feeds = {"x": Tensor("float32", (1, 64), array("f", [1.0] * 64).tobytes())}
        for word in (None, "saturating"):
            Release.manifest["engine"]["keep_pairs"] = word
            print(json.dumps(open_engine(Release).run(feeds)["y"].to_flat()))
    """
    run = subprocess.run(
        [emulator, "-cpu", "Haswell", sys.executable, "-c", program,
         release.folder, json.dumps(release.manifest)],
        capture_output=True, text=True, check=True, timeout=240,
        cwd=Path(cpu.__file__).resolve().parent.parent,
    )  # fmt: skip
    fused, kept = map(json.loads, run.stdout.splitlines())
    assert kept == pytest.approx([64, -64, 64, -64], rel=1e-5)
    # the fault itself: were it gone, nothing would have to be kept
    assert max(map(abs, fused)) < 63
