"""2:4 sparsity: where the zeros lie, what the fit gains, what stays dense."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from packager.checks.parity import compare
from packager.data import Samples
from packager.passes.contract import PassBroken, apply, run_model
from packager.passes.int8_dynamic import Int8Dynamic
from packager.passes.sparse_2_4 import Sparse24, count_zeros, fit_2_4, is_2_4, largest_two
from packager.target import find_target

if TYPE_CHECKING:
    from collections.abc import Callable


def weights_of(model: Any) -> list[Any]:
    arrays = [numpy_helper.to_array(tensor) for tensor in model.graph.initializer]
    return [array for array in arrays if array.ndim > 1]


def runs_sparse(context: Any) -> Any:
    return dataclasses.replace(
        context, target=dataclasses.replace(context.target, sparsity=("2:4",))
    )


def tensorrt_says(weights: Any) -> bool:
    """Check a [K, C, R, S] kernel as TensorRT's guide writes the rule."""
    k, c, r, s = weights.shape
    return all(
        np.count_nonzero(weights[i, p * 4 : p * 4 + 4, y, x]) <= 2
        for i in range(k) for p in range(c // 4) for y in range(r) for x in range(s)
    )  # fmt: skip


def correlated(groups: int, inputs: int) -> Any:
    random = np.random.default_rng(0)
    columns = random.standard_normal((groups, 6 * inputs, inputs))
    columns = columns @ (random.standard_normal((groups, inputs, inputs)) / 3 + np.eye(inputs))
    return columns.transpose(0, 2, 1) @ columns


def loss(error: Any, moments: Any) -> float:
    return float(((error @ moments) * error).sum())


@pytest.mark.parametrize(("groups", "outputs", "channels", "taps"), [
    (1, 12, 64, 1), (1, 6, 8, 9), (3, 5, 12, 4), (1, 4, 140, 1),
])  # fmt: skip
def test_the_fit_beats_dropping_the_smaller_two(
    groups: int, outputs: int, channels: int, taps: int
) -> None:
    rows = np.random.default_rng(1).standard_normal((groups, outputs, channels * taps))
    moments = correlated(groups, channels * taps)
    plain = rows * largest_two(rows, taps)
    fitted, share = fit_2_4(rows, moments, taps)
    assert is_2_4(plain, taps)
    assert is_2_4(fitted, taps)
    before, after = loss(rows - plain, moments), loss(rows - fitted, moments)
    assert after < 0.6 * before
    assert share == pytest.approx(after / before, rel=0.1)


def test_the_kept_weights_are_the_least_squares_solution() -> None:
    rows = np.random.default_rng(2).standard_normal((1, 3, 16))
    moments = correlated(1, 16)
    fitted, _ = fit_2_4(rows, moments, 1)
    damped = moments[0] + 0.01 * np.trace(moments[0]) / 16 * np.eye(16)
    for row, found in zip(rows[0], fitted[0], strict=True):
        kept = np.flatnonzero(found)
        best = np.linalg.solve(damped[np.ix_(kept, kept)], damped[kept] @ row)
        np.testing.assert_allclose(found[kept], best, rtol=1e-3, atol=1e-4)


def test_inputs_that_are_always_zero_do_no_harm() -> None:
    rows = np.random.default_rng(3).standard_normal((2, 4, 8))
    fitted, _ = fit_2_4(rows, np.zeros((2, 8, 8)), 1)
    assert np.array_equal(fitted, rows * largest_two(rows, 1))
    moments = correlated(2, 8)
    moments[:, 3], moments[:, :, 3] = 0, 0
    fitted, _ = fit_2_4(rows, moments, 1)
    assert np.isfinite(fitted).all()


def test_equal_weights_lose_the_last_two() -> None:
    assert largest_two(np.ones((1, 1, 8)), 1).tolist() == [[[True, True, False, False] * 2]]


@pytest.mark.parametrize("compensate", [True, False])
def test_every_layer_with_four_channels_is_sparse_as_tensorrt_wants_it(
    compensate: bool,
    make_cnn: Callable, make_samples: Callable, make_context: Callable,
) -> None:  # fmt: skip
    model = make_cnn()
    proto, context = onnx.load(model.path), runs_sparse(make_context(make_samples(model)))
    after, (report,) = apply((Sparse24(compensate=compensate),), proto, context)
    assert report.status == "applied", report.reason
    assert report.notes[0] == "3 layers with two zeros in every four"
    first, *kernels, dense = weights_of(after)
    assert np.count_nonzero(first) == first.size, "three channels stay dense"
    assert all(tensorrt_says(kernel) for kernel in kernels)
    assert tensorrt_says(dense.T[:, :, None, None])
    assert [z.pattern for z in count_zeros(after)] == ["", "2:4", "2:4", "2:4"]
    assert [z.zeros for z in count_zeros(after)] == [0.0, 0.5, 0.5, 0.5]
    assert [z.pattern for z in count_zeros(proto)] == [""] * 4


def test_fitting_to_the_data_keeps_the_outputs_nearer(
    make_cnn: Callable, make_samples: Callable, make_context: Callable
) -> None:
    model = make_cnn(channels=24)
    proto, context = onnx.load(model.path), runs_sparse(make_context(make_samples(model)))
    errors = []
    for compensate in (False, True):
        after, (report,) = apply((Sparse24(compensate=compensate),), proto, context)
        errors.append(compare(run_model(proto, context), run_model(after, context)).max_abs)
    assert errors[1] < 0.5 * errors[0]
    assert "of the squared error is left" in report.notes[1]


def test_gemms_both_ways_and_grouped_convolutions(
    drawing: type, make_spec: Callable, make_context: Callable, tmp_path: Any
) -> None:
    d = drawing()
    value = d.add("Conv", "x", d.weight(8, 4, 3, 3), group=4)
    value = d.add("Conv", value, d.weight(8, 1, 3, 3), group=8)
    value = d.add("Flatten", value)
    value = d.add("Gemm", value, d.weight(32, 12), d.constant(np.zeros(12, np.float32)))
    d.add("Gemm", value, d.weight(5, 12), transB=1, out="y")
    model = d.save(tmp_path / "m.onnx", (make_spec("x", "float32", 1, 16, 6, 6),),
                   make_spec("y", "float32", 1, 5))  # fmt: skip
    values = np.random.default_rng(0).standard_normal((8, 1, 16, 6, 6)).astype(np.float32)
    samples = Samples([lambda v=v: {"x": v} for v in values], digest="d", origin="o", kind="npz")
    after, (report,) = apply(
        (Sparse24(),), onnx.load(model.path), runs_sparse(make_context(samples))
    )
    assert report.notes[0] == "3 layers with two zeros in every four"
    zeros = count_zeros(after)
    assert [z.pattern for z in zeros] == ["2:4", "", "2:4", "2:4"]
    assert zeros[1].zeros == 0.0, "a depthwise layer stays dense"
    last = weights_of(after)[-1]
    assert tensorrt_says(last[:, :, None, None])


def test_layers_asked_for_stay_dense(
    make_cnn: Callable, make_samples: Callable, make_context: Callable
) -> None:
    model = make_cnn()
    proto, context = onnx.load(model.path), runs_sparse(make_context(make_samples(model)))
    name = proto.graph.node[-1].name
    after, _ = apply((Sparse24(keep=(name,)),), proto, context)
    assert [z.pattern for z in count_zeros(after)] == ["", "2:4", "2:4", ""]


def test_no_target_gains_from_it_yet_and_other_refusals(
    make_cnn: Callable, make_samples: Callable, make_context: Callable
) -> None:
    model = make_cnn()
    proto, samples = onnx.load(model.path), make_samples(model)
    context = make_context(samples)
    assert find_target("cpu-arm64").sparsity == ()
    reason = "cpu-x86_64-vnni gains nothing from zeros"
    assert Sparse24().requires(proto, context) == reason
    context = runs_sparse(context)
    without = dataclasses.replace(context, samples=None)
    assert Sparse24().requires(proto, without) == "there is no calibration data"
    assert Sparse24(compensate=False).requires(proto, without) is None
    every = tuple(node.name for node in proto.graph.node)
    reason = "no layer has a multiple of four input channels"
    assert Sparse24(keep=every).requires(proto, context) == reason


def test_a_quantized_model_is_refused(
    make_mlp: Callable, make_samples: Callable, make_context: Callable
) -> None:
    model = make_mlp()
    context = runs_sparse(make_context(make_samples(model)))
    quantized, _ = apply((Int8Dynamic(),), onnx.load(model.path), context)
    assert Sparse24().requires(quantized, context) == "the model is quantized already"


def test_a_third_weight_in_a_group_breaks_the_promise(
    make_cnn: Callable, make_samples: Callable, make_context: Callable
) -> None:
    model = make_cnn()
    proto, context = onnx.load(model.path), runs_sparse(make_context(make_samples(model)))
    after, _ = apply((Sparse24(compensate=False),), proto, context)
    step = Sparse24(compensate=False)
    step.ensures(proto, after, context)
    name = proto.graph.node[-1].name
    with pytest.raises(PassBroken, match=f"`{name}` has more than two weights in a group of four"):
        Sparse24().ensures(
            proto, apply((Sparse24(compensate=False, keep=(name,)),), proto, context)[0], context
        )
    after.graph.node[0].attribute[0].ints[0] = 0
    with pytest.raises(PassBroken, match="the graph changed"):
        step.ensures(proto, after, context)
