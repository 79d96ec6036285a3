"""Constant factors and offsets go into weights where that is exact, and stay where it is not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

from packager.model import Dim
from packager.passes.contract import apply
from packager.passes.fold_scales import FoldScales

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

BATCH = Dim(name="batch", min=1, max=8, opt=1)


@pytest.fixture
def fold(
    drawing: Any, make_spec: Callable, tmp_path: Path, make_samples: Callable,
    make_context: Callable,
) -> Callable:  # fmt: skip
    """Return the operators after the pass and its report, for a graph drawn by a function."""

    def run(draw: Callable, *, image: bool = True) -> tuple[list[str], Any, Any]:
        d = drawing()
        d.add("Abs", draw(d), out="y")
        shape = (6, 8, 9) if image else (6,)
        spec = make_spec("x", "float32", BATCH, *shape)
        # The output's sizes differ from case to case.
        sizes = [Dim(name=f"d{axis}", min=1, max=99, opt=1) for axis in range(4 if image else 2)]
        model = d.save(tmp_path / "m.onnx", (spec,), make_spec("y", "float32", *sizes))
        before = onnx.load(model.path)
        after, (report,) = apply((FoldScales(),), before, make_context(make_samples(model)))
        onnx.checker.check_model(after)
        return [node.op_type for node in after.graph.node][:-1], after, report

    return run


def of(d: Any, *shape: int) -> str:
    return d.constant((d.random.standard_normal(shape) + 2).astype(np.float32))


def behind(operator: str, shape: tuple[int, ...], *, swapped: bool = False) -> Callable:
    def draw(d: Any) -> str:
        value = d.add("Conv", "x", d.weight(4, 6, 3, 3), d.weight(4), pads=[1] * 4)
        inputs = (of(d, *shape), value) if swapped else (value, of(d, *shape))
        return d.add(operator, *inputs)

    return draw


@pytest.mark.parametrize("operator", ["Mul", "Add", "Div", "Sub"])
@pytest.mark.parametrize("shape", [(), (1,), (4, 1, 1), (1, 4, 1, 1), (1, 1, 1, 1)])
def test_behind_a_convolution_each_goes_into_its_weights(
    fold: Callable, operator: str, shape: tuple[int, ...]
) -> None:
    kinds, after, report = fold(behind(operator, shape))
    assert (kinds, report.status) == (["Conv"], "applied")
    assert len(after.graph.initializer) == 2
    assert all(t.data_type == onnx.TensorProto.FLOAT for t in after.graph.initializer)


@pytest.mark.parametrize("operator", ["Mul", "Add"])
def test_the_constant_may_come_first(fold: Callable, operator: str) -> None:
    assert fold(behind(operator, (4, 1, 1), swapped=True))[0] == ["Conv"]


@pytest.mark.parametrize(
    ("operator", "shape", "swapped"),
    [("Mul", (8, 9), False), ("Mul", (4, 8, 9), False), ("Sub", (), True), ("Div", (), True)],
)  # fmt: skip
def test_what_is_not_one_number_per_channel_stays(
    fold: Callable, operator: str, shape: tuple[int, ...], swapped: bool
) -> None:
    assert fold(behind(operator, shape, swapped=swapped))[2].status == "unchanged"


def test_a_layer_without_bias_gets_one(fold: Callable) -> None:
    def draw(d: Any) -> str:
        value = d.add("Conv", "x", d.weight(4, 6, 1, 1))
        return d.add("Add", d.add("Mul", value, of(d, 4, 1, 1)), of(d, 1))

    kinds, after, _ = fold(draw)
    assert kinds == ["Conv"]
    assert len(after.graph.node[0].input) == 3


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_before_a_convolution_the_factor_goes_into_its_weights(fold: Callable, groups: int) -> None:
    def draw(d: Any) -> str:
        value = d.add("Mul", d.add("Tanh", "x"), of(d, 1, 6, 1, 1))
        weight = d.weight(12, 6 // groups, 3, 3)
        return d.add("Conv", value, weight, pads=[1] * 4, group=groups)

    assert fold(draw)[0] == ["Tanh", "Conv"]


@pytest.mark.parametrize("groups", [1, 3])
def test_before_a_convolution_without_padding_the_offset_does_too(
    fold: Callable, groups: int
) -> None:
    def draw(d: Any) -> str:
        value = d.add("Mul", d.add("Tanh", "x"), of(d, 1))
        value = d.add("Add", value, of(d, 6, 1, 1))
        return d.add("Conv", value, d.weight(12, 6 // groups, 3, 3), d.weight(12), group=groups)

    assert fold(draw)[0] == ["Tanh", "Conv"]


@pytest.mark.parametrize("attributes", [{"pads": [0, 1, 0, 0]}, {"auto_pad": "SAME_UPPER"}])
def test_padding_keeps_the_offset_outside_but_not_the_factor(
    fold: Callable, attributes: dict[str, Any]
) -> None:
    def draw(d: Any) -> str:
        value = d.add("Mul", d.add("Tanh", "x"), of(d, 1))
        value = d.add("Add", value, of(d, 6, 1, 1))
        return d.add("Conv", value, d.weight(12, 6, 3, 3), **attributes)

    assert fold(draw)[0] == ["Tanh", "Add", "Conv"]


def test_all_readers_must_be_able_to_take_it(fold: Callable) -> None:
    def draw(d: Any, other: str) -> str:
        value = d.add("Mul", d.add("Tanh", "x"), of(d, 1))
        first = d.add("Conv", value, d.weight(6, 6, 1, 1))
        second = d.add("Conv", value, d.weight(6, 6, 1, 1)) if other == "Conv" else value
        return d.add("Max", first, second)

    assert fold(lambda d: draw(d, "Conv"))[0] == ["Tanh", "Conv", "Conv", "Max"]
    assert fold(lambda d: draw(d, ""))[2].status == "unchanged"


def test_factors_in_a_row_become_one(fold: Callable) -> None:
    def draw(d: Any) -> str:
        value = d.add("Div", d.add("Mul", d.add("Tanh", "x"), of(d, 1)), of(d))
        return d.add("Sub", d.add("Add", value, of(d, 6, 1, 1)), of(d, 6, 1, 1))

    assert fold(draw)[2].status == "skipped"

    def with_layer(d: Any) -> str:
        return d.add("Tanh", d.add("Conv", draw(d), d.weight(6, 6, 3, 3), pads=[1] * 4))

    assert fold(with_layer)[0] == ["Tanh", "Add", "Conv", "Tanh"]


def test_a_weight_that_two_layers_share_changes_for_one(fold: Callable) -> None:
    def draw(d: Any) -> str:
        shared = d.weight(6, 6, 1, 1)
        first = d.add("Mul", d.add("Conv", "x", shared), of(d, 1))
        return d.add("Conv", d.add("Relu", first), shared)

    assert fold(draw)[0] == ["Conv", "Relu", "Conv"]


def gemm(d: Any, **attributes: Any) -> str:
    weight = d.weight(5, 6) if attributes.get("transB") else d.weight(6, 5)
    return d.add("Gemm", d.add("Mul", "x", of(d, 6)), weight, d.weight(5), **attributes)


@pytest.mark.parametrize("attributes", [{}, {"transB": 1}, {"alpha": 0.5, "beta": 2.0}])
def test_a_gemm_takes_them_on_both_sides(fold: Callable, attributes: dict[str, Any]) -> None:
    def draw(d: Any) -> str:
        value = d.add("Mul", gemm(d, **attributes), of(d, 5))
        return d.add("Add", value, of(d, 1, 5))

    assert fold(draw, image=False)[0] == ["Gemm"]


def test_a_matrix_product_takes_factors_and_no_offset(fold: Callable) -> None:
    def draw(d: Any) -> str:
        value = d.add("MatMul", d.add("Mul", "x", of(d, 1)), d.weight(6, 5))
        return d.add("Add", d.add("Mul", value, of(d, 5)), of(d, 5))

    assert fold(draw, image=False)[0] == ["MatMul", "Add"]


def test_a_transposed_convolution_takes_what_is_behind_it(fold: Callable) -> None:
    def draw(d: Any) -> str:
        value = d.add("ConvTranspose", "x", d.weight(6, 4, 2, 2), strides=[2, 2])
        return d.add("Add", d.add("Mul", value, of(d, 4, 1, 1)), of(d, 1))

    assert fold(draw)[0] == ["ConvTranspose"]


def test_a_computed_weight_and_a_division_by_zero_stay(fold: Callable) -> None:
    def computed(d: Any) -> str:
        weight = d.add("Neg", d.weight(4, 6, 1, 1))
        return d.add("Mul", d.add("Conv", "x", weight), of(d, 1))

    assert fold(computed)[2].status == "unchanged"

    def by_zero(d: Any) -> str:
        value = d.add("Abs", d.add("Conv", "x", d.weight(4, 6, 1, 1)))
        value = d.add("Div", value, d.constant(np.float32([[[1]], [[0.5]], [[2]], [[0]]])))
        return d.add("Min", value, of(d, 1))

    assert fold(by_zero)[2].status == "unchanged"
