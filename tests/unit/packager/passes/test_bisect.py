"""The node at which a pass broke a model is found and named."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from packager.passes.contract import PassContext, PassResult, apply
from packager.target import find_target

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Breaking:
    """A pass that does one thing to the graph."""

    change: Any
    exact: bool = True
    name: ClassVar[str] = "breaking"
    summary: ClassVar[str] = "break it"
    precision: ClassVar[str | None] = None
    needs_samples: ClassVar[bool] = False

    def requires(self, model: Any, context: PassContext) -> str | None:
        return None

    def run(self, model: Any, context: PassContext) -> PassResult:
        after = onnx.ModelProto()
        after.CopyFrom(model)
        self.change(after)
        return PassResult(model=after, modified=True)

    def ensures(self, before: Any, after: Any, context: PassContext) -> None:
        return None


@pytest.fixture
def chain() -> Any:
    nodes, weights, value = [], [], "x"
    for i in range(20):
        weight = np.eye(4, dtype=np.float32) * (1 + i / 100)
        weights.append(numpy_helper.from_array(weight, f"w{i}"))
        nodes.append(helper.make_node("MatMul", [value, f"w{i}"], [f"v{i}"], name=f"layer{i}"))
        value = f"v{i}"
    nodes[-1].output[0] = "y"
    shape = ["batch", 4]
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", 1, shape)],
        [helper.make_tensor_value_info("y", 1, shape)],
        weights,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture
def reason(chain: Any, tmp_path: Path, notes: Any) -> Callable[..., str]:
    def call(change: Any, *, exact: bool = True) -> str:
        context = PassContext(
            target=find_target("cpu-x86_64"), samples=None, workdir=tmp_path, reporter=notes,
            probes=[{"x": np.ones((1, 4), np.float32)}],
        )  # fmt: skip
        model, (report,) = apply([Breaking(change=change, exact=exact)], chain, context)
        assert report.status == "left out"
        assert model == chain
        assert list(tmp_path.iterdir()) == []
        return report.reason

    return call


def _weight(model: Any, index: int, values: Any) -> None:
    model.graph.initializer[index].CopyFrom(numpy_helper.from_array(values, f"w{index}"))


@pytest.mark.parametrize("index", [0, 7, 19])
def test_a_graph_that_does_not_load_names_the_node(reason: Callable, index: int) -> None:
    def change(model: Any) -> None:
        model.graph.node[index].op_type = "Matmul"

    assert reason(change).endswith(f"first at `layer{index}` (Matmul)")


def test_a_graph_that_does_not_run_names_the_node(reason: Callable) -> None:
    def change(model: Any) -> None:
        _weight(model, 11, np.ones((5, 4), np.float32))

    assert reason(change).endswith("first at `layer11` (MatMul)")


def test_a_graph_that_computes_something_else_names_the_node(reason: Callable) -> None:
    def change(model: Any) -> None:
        _weight(model, 13, np.ones((4, 4), np.float32))

    found = reason(change)
    assert found.startswith("an output changed by")
    assert found.endswith("first at `layer13` (MatMul)")


def test_a_pass_that_may_round_is_blamed_for_numbers_that_are_none(reason: Callable) -> None:
    def change(model: Any) -> None:
        _weight(model, 5, np.full((4, 4), np.nan, np.float32))

    found = reason(change, exact=False)
    assert "NaN or infinity" in found
    assert found.endswith("first at `layer5` (MatMul)")
