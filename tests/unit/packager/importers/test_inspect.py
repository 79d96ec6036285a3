"""What inspect tells: signature, operators, and sizes estimated from the weights."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from onnx import helper

from packager.console import Silent
from packager.importers.inspect import inspect_model
from packager.recipe import Recipe
from packager.target import find_target
from tests.unit.packager.importers.onnx_models import constant, dense, model, save, value

if TYPE_CHECKING:
    from pathlib import Path


def test_sizes_follow_the_weights_by_kind(tmp_path: Path, workdir: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "K"], ["c"]),
        helper.make_node("Flatten", ["c"], ["f"]),
        helper.make_node("MatMul", ["f", "W"], ["m"]),
        helper.make_node("Add", ["m", "b"], ["y"]),
    ]
    weights = [
        constant("K", np.ones((16, 8, 3, 3), np.float32)),
        constant("W", np.ones((256, 64), np.float32)),
        constant("b", np.ones(64, np.float32)),
    ]
    proto = model(nodes, [value("x", ["N", 8, 6, 6])], [value("y", None)], weights)
    path = save(proto, tmp_path / "m.onnx")
    found = inspect_model(Recipe(model=str(path), name="t"), workdir=workdir, reporter=Silent())
    kernel, matrix, bias = 16 * 8 * 9, 256 * 64, 64
    assert found.parameters == kernel + matrix + bias
    assert list(found.estimated_bytes) == ["fp32", "fp16", "int8", "int4"]
    graph = found.estimated_bytes["fp32"] - 4 * found.parameters
    assert 0 < graph < 1500
    assert found.estimated_bytes["fp16"] == graph + 2 * found.parameters
    assert found.estimated_bytes["int8"] == pytest.approx(
        graph + kernel + matrix + 4 * bias + 5 * (16 + 256), abs=1
    )
    assert found.estimated_bytes["int4"] == pytest.approx(
        graph + kernel + 5 * 16 + matrix * 0.625 + 4 * bias, abs=1
    )
    assert found.operators == {"Add": 1, "Conv": 1, "Flatten": 1, "MatMul": 1}
    assert found.domains == ("ai.onnx",)
    assert not found.quantized


def test_both_forms_tell_every_target(tmp_path: Path, workdir: Path) -> None:
    path = save(dense(), tmp_path / "m.onnx")
    found = inspect_model(Recipe(model=str(path), name="t"), workdir=workdir, reporter=Silent())
    wire = found.to_json()
    assert wire["targets"]["cpu-x86_64"] is None
    assert wire["signature"]["inputs"][0]["name"] == "x"
    lines = list(found.to_text())
    assert lines[0] == "m.onnx: onnx"
    assert "  input   x: float32[batch=1..32, 4]" in lines
    assert any(line.startswith("raspberry-pi-5") and "takes it" in line for line in lines)


@pytest.mark.parametrize(
    ("target", "changes", "refusal"),
    [
        ("jetson-agx-xavier", {}, None),
        (
            "jetson-agx-xavier", {"opset": 18},
            "opset 18, its TensorRT 8.5.2.2 reads up to 17",
        ),
        ("jetson-orin-nano-8gb@6.2", {"opset": 18}, None),
        (
            "jetson-orin-nano-8gb@6.2", {"ir_version": 11},
            "IR version 11, its TensorRT 10.3.0.30 reads up to 10",
        ),
        ("rtx-ada", {"opset": 99}, "opset 99, its engine reads up to 28"),
        ("server-t4", {"size_bytes": 7_400_000_000}, "7.4 GB of model, 14000 MiB of GPU memory"),
        (
            "jetson-orin-nano-4gb", {"size_bytes": 2_000_000_000},
            "2.0 GB of model, 3400 MiB of memory",
        ),
    ],
)  # fmt: skip
def test_a_target_with_tensorrt_reads_what_both_of_its_engines_read(
    tmp_path: Path, workdir: Path, target: str, changes: dict[str, int], refusal: str | None
) -> None:
    path = save(dense(), tmp_path / "m.onnx")
    found = inspect_model(Recipe(model=str(path), name="t"), workdir=workdir, reporter=Silent())
    assert (
        replace(found, **{"opset": 17, "ir_version": 8, **changes}).refusal(find_target(target))
        == refusal
    )


def test_an_onnx_file_is_inspected_without_torch(
    tmp_path: Path, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    path = save(dense(), tmp_path / "m.onnx")
    found = inspect_model(Recipe(model=str(path), name="t"), workdir=workdir, reporter=Silent())
    assert found.opset == 17
