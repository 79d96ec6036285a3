"""Cross-layer equalization: exact, even afterwards, and where it stays away."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from packager.checks.parity import compare
from packager.passes.contract import apply, run_model
from packager.passes.equalize import Equalize, find_pairs
from packager.passes.int8_static import Int8Static

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def uneven(drawing: Any, make_spec: Callable, batch: Any, tmp_path: Path) -> Callable:
    """Make a chain of plain, depthwise and grouped convolutions, then two Gemm, all uneven."""

    def make() -> Any:
        d = drawing()

        def weight(*shape: int) -> str:
            sizes = np.exp2(d.random.integers(-5, 6, shape[0])).reshape(-1, *[1] * (len(shape) - 1))
            values = d.random.standard_normal(shape) * sizes / np.sqrt(np.prod(shape[1:]))
            return d.constant(values.astype(np.float32))

        zeros = d.constant(np.zeros(12, np.float32))
        value = d.add("Relu", d.add("Conv", "x", weight(12, 3, 3, 3), zeros))
        value = d.add("LeakyRelu", d.add("Conv", value, weight(12, 1, 3, 3), zeros, group=12))
        value = d.add("MaxPool", value, kernel_shape=[2, 2])
        value = d.add("Conv", value, weight(16, 3, 1, 1), d.weight(16), group=4)
        value = d.add("GlobalAveragePool", d.add("Conv", value, weight(8, 16, 1, 1)))
        value = d.add("Relu", d.add("Gemm", d.add("Flatten", value), weight(8, 24), d.weight(24)))
        d.add("Gemm", value, weight(10, 24), out="y", transB=1)
        shape = make_spec("x", "float32", batch, 3, 13, 13)
        return d.save(tmp_path / "uneven.onnx", (shape,), make_spec("y", "float32", batch, 10))

    return make


def test_the_outputs_stay_the_same_to_the_last_bits(
    uneven: Callable, make_samples: Callable, make_context: Callable
) -> None:
    model = uneven()
    context = make_context(make_samples(model))
    base = onnx.load(model.path)
    before = base.SerializeToString(deterministic=True)
    after, (report,) = apply((Equalize(),), base, context)
    assert (report.status, report.notes) == ("applied", ("4 pairs of layers equalized",))
    assert base.SerializeToString(deterministic=True) == before
    for want, have in zip(run_model(base, context), run_model(after, context), strict=True):
        np.testing.assert_allclose(have["y"], want["y"], rtol=1e-6, atol=1e-6)


def test_afterwards_both_sides_reach_as_far(
    uneven: Callable, make_samples: Callable, make_context: Callable
) -> None:
    model = uneven()
    base = onnx.load(model.path)
    after, _ = apply((Equalize(),), base, make_context(make_samples(model)))
    arrays = {t.name: numpy_helper.to_array(t) for t in after.graph.initializer}
    for pair in find_pairs(after):
        # Rounded to powers of two, and later pairs move what earlier ones settled.
        assert np.abs(pair.exponents(arrays)).max() <= 1


def test_one_scale_for_all_channels_loses_less_of_an_equalized_model(
    uneven: Callable, make_samples: Callable, make_context: Callable
) -> None:
    model = uneven()
    samples = make_samples(model)
    context = make_context(samples)
    scheme = dataclasses.replace(context.target.quantization, per_channel=False)
    target = dataclasses.replace(context.target, quantization=scheme)
    context = dataclasses.replace(context, target=target, probes=list(samples))
    base = onnx.load(model.path)
    want = run_model(base, context)
    plain, _ = apply((Int8Static(),), base, context)
    even, _ = apply((Equalize(), Int8Static()), base, context)
    distances = [1 - compare(want, run_model(m, context)).cosine for m in (plain, even)]
    assert distances[1] < 0.6 * distances[0]


@pytest.mark.parametrize("obstacle", ["Clip", "Sigmoid", "branch", "output", "shared", "constant"])
def test_it_stays_away_where_a_scale_does_not_pass(
    obstacle: str, drawing: Any, make_spec: Callable, batch: Any, tmp_path: Path,
) -> None:  # fmt: skip
    d = drawing()
    weight = d.weight(4, 4, 1, 1)
    value = d.add("Conv", "x", weight, out="z")
    outputs = [make_spec("y", "float32", batch, 4, 2, 2)]
    if obstacle == "Clip":
        value = d.add("Clip", value, "", d.constant(np.float32(6)))
    elif obstacle == "Sigmoid":
        value = d.add("Sigmoid", value)
    second = weight if obstacle == "shared" else d.weight(4, 4, 1, 1)
    if obstacle == "constant":
        second = d.add("Relu", second)
    final = d.add("Conv", value, second, out="y" if obstacle != "branch" else "")
    if obstacle == "branch":
        d.add("Add", final, value, out="y")
    elif obstacle == "output":
        outputs.append(make_spec("z", "float32", batch, 4, 2, 2))
    shape = make_spec("x", "float32", batch, 4, 2, 2)
    model = d.save(tmp_path / "obstacle.onnx", (shape,), *outputs)
    assert find_pairs(onnx.load(model.path)) == []


def test_it_says_where_it_does_not_apply(
    make_mlp: Callable, make_cnn: Callable, make_samples: Callable, make_context: Callable
) -> None:
    model = make_mlp()
    _, (report,) = apply((Equalize(),), onnx.load(model.path), make_context(make_samples(model)))
    reason = "no layer alone reads another through operators that a scale passes"
    assert (report.status, report.reason) == ("skipped", reason)
    model = make_cnn()
    context = make_context(make_samples(model))
    _, (_, report) = apply((Int8Static(), Equalize()), onnx.load(model.path), context)
    assert (report.status, report.reason) == ("skipped", "the model is quantized already")
