"""Hard swish and hard sigmoid found in every order of their parts, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

from packager.model import Dim
from packager.passes.contract import apply
from packager.passes.hard_swish import HardSwish
from packager.passes.patterns import attribute

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

BATCH = Dim(name="batch", min=1, max=8, opt=1)


@pytest.fixture
def rewrite(
    drawing: Any, make_spec: Callable, tmp_path: Path, make_samples: Callable,
    make_context: Callable,
) -> Callable:  # fmt: skip
    """Return a graph, drawn by a function, before and after the pass, and the pass's report."""

    def run(draw: Callable, opset: int = 17) -> tuple[Any, Any, Any]:
        d = drawing(opset=opset)

        def number(value: float, shape: tuple[int, ...] = ()) -> str:
            return d.constant(np.full(shape, value, np.float32))

        d.add("Identity", draw(d, number), out="y")
        spec = make_spec("x", "float32", BATCH, 7)
        model = d.save(tmp_path / "parts.onnx", (spec,), make_spec("y", "float32", BATCH, 7))
        before = onnx.load(model.path)
        # Values on both sides of both limits.
        samples = make_samples(model).map(lambda sample: {"x": 5 * sample["x"]})
        after, (report,) = apply((HardSwish(),), before, make_context(samples))
        return before, after, report

    return run


def gate(d: Any, number: Callable) -> str:
    return d.add("Clip", d.add("Add", "x", number(3)), number(0), number(6))


def paddle(d: Any, number: Callable) -> str:
    return d.add("Div", d.add("Mul", "x", gate(d, number)), number(6))


def divided_first(d: Any, number: Callable) -> str:
    return d.add("Mul", d.add("Div", gate(d, number), number(6)), "x")


def by_a_sixth(d: Any, number: Callable) -> str:
    return d.add("Mul", number(1 / 6, (1,)), d.add("Mul", gate(d, number), "x"))


def x_by_a_sixth(d: Any, number: Callable) -> str:
    return d.add("Mul", d.add("Mul", "x", number(1 / 6)), gate(d, number))


def three_first(d: Any, number: Callable) -> str:
    clip = d.add("Clip", d.add("Add", number(3), "x"), number(0), number(6))
    return d.add("Mul", d.add("Mul", clip, number(0.1666667)), "x")


def between_zero_and_one(d: Any, number: Callable) -> str:
    slope = d.add("Add", d.add("Div", "x", number(6)), number(0.5))
    return d.add("Mul", "x", d.add("Clip", slope, number(0), number(1)))


def minus(d: Any, number: Callable) -> str:
    clip = d.add("Clip", d.add("Sub", "x", number(-3)), number(0), number(6))
    return d.add("Div", d.add("Mul", clip, "x"), number(6))


def min_and_max(d: Any, number: Callable) -> str:
    inner = d.add("Max", number(0), d.add("Add", "x", number(3)))
    return d.add("Div", d.add("Mul", "x", d.add("Min", inner, number(6))), number(6))


def min_and_relu(d: Any, number: Callable) -> str:
    inner = d.add("Relu", d.add("Add", "x", number(3)))
    return d.add("Div", d.add("Mul", "x", d.add("Min", number(6), inner)), number(6))


SWISHES = (
    paddle, divided_first, by_a_sixth, x_by_a_sixth, three_first, between_zero_and_one, minus,
    min_and_max, min_and_relu,
)  # fmt: skip


@pytest.mark.parametrize("draw", SWISHES)
def test_every_order_of_the_parts_is_found(rewrite: Callable, draw: Callable) -> None:
    _, after, report = rewrite(draw)
    assert (report.status, report.notes) == ("applied", ("1 × hard swish",))
    kinds = [node.op_type for node in after.graph.node]
    assert kinds == ["HardSigmoid", "Mul", "Identity"]
    hard = after.graph.node[0]
    assert attribute(hard, "alpha") == pytest.approx(1 / 6)
    assert attribute(hard, "beta") == pytest.approx(0.5)
    assert not after.graph.initializer


def test_a_hard_sigmoid_alone_is_found(rewrite: Callable) -> None:
    _, after, report = rewrite(lambda d, number: d.add("Div", gate(d, number), number(6)))
    assert report.notes == ("1 × hard sigmoid",)
    assert [node.op_type for node in after.graph.node] == ["HardSigmoid", "Identity"]


def test_another_slope_and_factor_are_kept(rewrite: Callable) -> None:
    def draw(d: Any, number: Callable) -> str:
        slope = d.add("Add", d.add("Mul", "x", number(0.4)), number(1))
        clip = d.add("Clip", slope, number(0), number(3))
        return d.add("Mul", d.add("Mul", d.add("Mul", clip, "x"), number(0.7)), number(2))

    _, after, report = rewrite(draw)
    assert report.notes == ("1 × hard swish",)
    assert [node.op_type for node in after.graph.node] == ["HardSigmoid", "Mul", "Mul", "Identity"]
    (factor,) = after.graph.initializer
    assert onnx.numpy_helper.to_array(factor) == pytest.approx(3 * 0.7 * 2)


def test_several_in_a_row_are_all_rewritten(rewrite: Callable) -> None:
    def draw(d: Any, number: Callable) -> str:
        value = "x"
        for _ in range(3):
            inner = d.add("Clip", d.add("Add", value, number(3)), number(0), number(6))
            value = d.add("Div", d.add("Mul", value, inner), number(6))
        return value

    _, after, report = rewrite(draw)
    assert report.notes == ("3 × hard swish",)
    assert len(after.graph.node) == 7


def test_the_clip_of_opset_6_is_found(
    drawing: Any, make_spec: Callable, tmp_path: Path, make_samples: Callable,
    make_context: Callable,
) -> None:  # fmt: skip
    d = drawing(opset=9)
    three, six = (d.constant(np.float32(v)) for v in (3, 6))
    clip = d.add("Clip", d.add("Add", "x", three), min=0.0, max=6.0)
    d.add("Div", d.add("Mul", "x", clip), six, out="y")
    spec = make_spec("x", "float32", BATCH, 7)
    model = d.save(tmp_path / "old.onnx", (spec,), make_spec("y", "float32", BATCH, 7))
    context = make_context(make_samples(model))
    _, (report,) = apply((HardSwish(),), onnx.load(model.path), context)
    assert report.status == "applied"


def from_minus_one(d: Any, number: Callable) -> str:
    clip = d.add("Clip", d.add("Add", "x", number(3)), number(-1), number(6))
    return d.add("Div", d.add("Mul", "x", clip), number(6))


def of_another_value(d: Any, number: Callable) -> str:
    clip = d.add("Clip", d.add("Add", d.add("Tanh", "x"), number(3)), number(0), number(6))
    return d.add("Div", d.add("Mul", "x", clip), number(6))


def falling(d: Any, number: Callable) -> str:
    slope = d.add("Add", d.add("Mul", "x", number(-1)), number(3))
    clip = d.add("Clip", slope, number(0), number(6))
    return d.add("Div", d.add("Mul", "x", clip), number(6))


def of_three(d: Any, number: Callable) -> str:
    other = d.add("Tanh", "x")
    return d.add("Mul", d.add("Mul", "x", other), gate(d, number))


def relu6_alone(d: Any, number: Callable) -> str:
    return d.add("Clip", "x", number(0), number(6))


def no_upper_limit(d: Any, number: Callable) -> str:
    return d.add("Mul", "x", d.add("Clip", d.add("Add", "x", number(3)), number(0)))


def one_more_axis(d: Any, number: Callable) -> str:
    clip = d.add("Clip", d.add("Add", "x", number(3, (1, 1))), number(0), number(6))
    return d.add("Mul", "x", clip)


@pytest.mark.parametrize(
    "draw",
    [from_minus_one, of_another_value, falling, of_three, relu6_alone, no_upper_limit,
     one_more_axis],
)  # fmt: skip
def test_what_only_looks_like_it_stays(rewrite: Callable, draw: Callable) -> None:
    before, after, report = rewrite(draw)
    assert report.status == "unchanged"
    assert after.SerializeToString() == before.SerializeToString()


def test_a_part_that_is_read_elsewhere_stays_right(rewrite: Callable) -> None:
    def draw(d: Any, number: Callable) -> str:
        clip = gate(d, number)
        swish = d.add("Div", d.add("Mul", "x", clip), number(6))
        return d.add("Add", swish, clip)

    _, _, report = rewrite(draw)
    assert report.status == "unchanged"


def test_graphs_without_a_clip_are_skipped(rewrite: Callable) -> None:
    _, _, report = rewrite(lambda d, number: d.add("Tanh", "x"))
    assert (report.status, report.reason) == ("skipped", "nothing is clipped")
