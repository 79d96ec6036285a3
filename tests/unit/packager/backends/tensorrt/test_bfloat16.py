"""bf16 is the engine's alone: what answers without one is the same model in float32."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

from packager.artifact import Artifact, Candidate
from packager.backends.onnxruntime import build
from packager.backends.tensorrt.bfloat16 import without_rounding
from packager.bundle.golden import make_golden
from packager.checks.latency import open_session
from packager.console import Silent
from packager.errors import ModelUnsupported
from packager.passes.contract import PassContext, apply
from packager.passes.float16 import BFloat16Rounded
from packager.passes.raise_opset import RaiseOpset
from packager.pipeline.cache import StageCache
from packager.pipeline.engines import engine_stage
from packager.recipe import Recipe
from packager.target import find_target
from tests.unit.packager.backends.tensorrt.onnx_drawing import noise

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SERVER = "server-h100"


def rounded(model: Any, folder: Path) -> Path:
    """Write the graph on which a search measures bf16."""
    context = PassContext(
        target=find_target(SERVER), samples=None, probes=[{"image": noise(2, 3, 16, 16)}],
        workdir=folder, reporter=Silent(),
    )  # fmt: skip
    steps = (RaiseOpset(least=22, preferred=22), BFloat16Rounded())
    after, reports = apply(steps, onnx.load(model.path), context)
    assert [report.status for report in reports] == ["applied", "applied"]
    onnx.save(after, folder / "rounded.onnx")
    return folder / "rounded.onnx"


def staged(model: Any, path: Path, target_name: str, folder: Path) -> Artifact:
    """Return what the stage makes for a target of a search's choice of bf16."""
    target, recipe = find_target(target_name), Recipe(name="half", model=str(model.path))
    chosen = Candidate(name="bf16", path=path, size_bytes=1, verdict="chosen", reason="")
    folder.mkdir()
    return engine_stage(
        build(model, [chosen], target=target, recipe=recipe, workdir=folder),
        target=target, recipe=recipe, cache=StageCache(folder / "cache"), work=folder,
        reporter=Silent(),
    )  # fmt: skip


def types_of(path: Path) -> set[str]:
    tensors = onnx.load(path).graph.initializer
    names = onnx.TensorProto.DataType
    return {names.Name(t.data_type) for t in tensors if names.Name(t.data_type) != "INT64"}


def test_the_engine_gets_bf16_and_the_cpu_the_same_in_float32(
    make_cnn: Callable[..., Any], tmp_path: Path
) -> None:
    model = make_cnn()
    artifact = staged(model, rounded(model, tmp_path), SERVER, tmp_path / "stage")
    parts, table = artifact.parts, artifact.tensorrt
    assert parts is not None
    assert table is not None
    assert parts.engine is not None
    assert (types_of(parts.engine), types_of(parts.core)) == ({"BFLOAT16"}, {"FLOAT"})
    with pytest.raises(Exception, match="NOT_IMPLEMENTED"):
        open_session(parts.engine, 1)
    assert "Cast" not in {node.op_type for node in onnx.load(parts.core).graph.node}
    assert (table["artifact"], table["precision"]) == ("model/engine.onnx", "bf16")
    # Each of these is looked for in the engine: a silent fall back to float32 is an error.
    kinds = {node.name: node.op_type for node in onnx.load(parts.engine).graph.node}
    assert {kinds[name] for name in table["products"]} == {"Conv", "Gemm"}
    golden = make_golden(
        artifact, samples=None, seed=0, min_cosine=0.99, workdir=tmp_path, cpu="avx2"
    )
    assert golden.table["samples"] == 4


@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="the extra `rtx` is not installed"
)
def test_an_rtx_engine_is_built_of_bf16(make_cnn: Callable[..., Any], tmp_path: Path) -> None:
    model = make_cnn()
    artifact = staged(model, rounded(model, tmp_path), "rtx-ada", tmp_path / "stage")
    (engine,) = artifact.engines
    assert engine.facts["precision"] == "bf16"
    assert engine.path.stat().st_size > 0


def test_nothing_is_rounded_in_what_answers_on_the_cpu(
    make_cnn: Callable[..., Any], tmp_path: Path
) -> None:
    model = make_cnn()
    twin = rounded(model, tmp_path)
    plain = without_rounding(twin, tmp_path / "plain.onnx")
    feeds = {"image": noise(2, 3, 16, 16)}
    original, narrow, wide = (
        np.asarray(open_session(path, 1).run(None, feeds)[0]) for path in (model.path, twin, plain)
    )
    assert np.abs(wide - original).max() < np.abs(narrow - original).max()


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("server-t4", "GPUs of compute capability 7.5 have no bf16"),
        ("jetson-orin-nano-8gb@6.2", "TensorRT 10.3.0.30 reads opset 20 at most, and bf16 came"),
    ],
)
def test_a_target_without_bf16_is_refused_with_the_reason(
    target: str, reason: str, make_cnn: Callable[..., Any], tmp_path: Path
) -> None:
    model = make_cnn()
    with pytest.raises(ModelUnsupported, match=reason) as fault:
        staged(model, rounded(model, tmp_path), target, tmp_path / "stage")
    assert fault.value.hint == "build with `--precision fp16`"
