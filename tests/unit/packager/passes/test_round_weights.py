"""Rounding weights to the data: what may change, what must not, and what is passed over."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from packager.checks.latency import open_session
from packager.checks.parity import compare
from packager.model import Dim
from packager.passes.clean_up import CleanUp
from packager.passes.contract import PassBroken, apply, run_model
from packager.passes.int8_static import Int8Static
from packager.passes.layer_inputs import LayerShape, second_moments
from packager.passes.quantizer import name_nodes
from packager.passes.round_weights import RoundWeights, find_layers, float_layers, gptq

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def squared_error(weight: Any, steps: Any, scale: Any, moments: Any) -> Any:
    error = weight - steps * scale
    return ((error @ moments) * error).sum(axis=2)


def without_int8(model: Any) -> bytes:
    stripped = onnx.ModelProto()
    stripped.CopyFrom(model)
    for tensor in stripped.graph.initializer:
        if tensor.data_type == onnx.TensorProto.INT8:
            tensor.ClearField("raw_data")
    return stripped.SerializeToString(deterministic=True)


def int8_weights(model: Any) -> dict[str, Any]:
    return {
        t.name: numpy_helper.to_array(t)
        for t in model.graph.initializer
        if t.data_type == onnx.TensorProto.INT8 and len(t.dims) > 1
    }


def correlated(groups: int, inputs: int, positions: int, seed: int = 0) -> Any:
    random = np.random.default_rng(seed)
    mix = random.standard_normal((groups, inputs, inputs)) + 2.0
    columns = random.standard_normal((groups, positions, inputs)) @ mix
    return columns.transpose(0, 2, 1) @ columns


@pytest.mark.parametrize(("groups", "outputs", "inputs"), [(1, 24, 300), (40, 1, 9), (3, 5, 17)])
@pytest.mark.parametrize("largest", [64, 127])
def test_the_error_of_the_product_falls(
    groups: int, outputs: int, inputs: int, largest: int
) -> None:
    random = np.random.default_rng(1)
    weight = random.standard_normal((groups, outputs, inputs))
    scale = np.broadcast_to(np.abs(weight).max(axis=2, keepdims=True) / largest, weight.shape)
    moments = correlated(groups, inputs, 4 * inputs)
    steps = gptq(weight, scale, moments, largest)
    assert np.array_equal(steps, np.rint(steps))
    assert np.abs(steps).max() <= largest
    nearest = np.rint(weight / scale)
    before, after = (squared_error(weight, s, scale, moments) for s in (nearest, steps))
    assert after.sum() < 0.7 * before.sum()


def test_it_is_gptq_as_written_with_the_inverse() -> None:
    random = np.random.default_rng(2)
    weight = random.standard_normal((1, 6, 12))
    scale = np.full_like(weight, 0.05)
    moments = correlated(1, 12, 30)
    order = np.argsort(-np.diag(moments[0]), kind="stable")
    damped = moments[0][order][:, order] + 0.01 * np.trace(moments[0]) / 12 * np.eye(12)
    upper = np.linalg.cholesky(np.linalg.inv(damped)).T
    rest, expected = weight[0][:, order].copy(), np.zeros((6, 12))
    for i in range(12):
        expected[:, i] = np.clip(np.rint(rest[:, i] / 0.05), -127, 127)
        error = (rest[:, i] - 0.05 * expected[:, i]) / upper[i, i]
        rest[:, i:] -= np.outer(error, upper[i, i:])
    assert np.array_equal(gptq(weight, scale, moments, 127)[0][:, order], expected)


def test_uncorrelated_inputs_and_none_at_all_round_to_the_nearest() -> None:
    weight = np.random.default_rng(3).standard_normal((2, 4, 8))
    scale = np.full_like(weight, 0.1)
    for moments in (np.broadcast_to(np.eye(8), (2, 8, 8)), np.zeros((2, 8, 8))):
        assert np.array_equal(gptq(weight, scale, moments, 127), np.rint(weight / scale))


def test_fewer_samples_than_inputs_are_enough() -> None:
    weight = np.random.default_rng(4).standard_normal((1, 4, 64))
    scale = np.full_like(weight, 0.02)
    moments = correlated(1, 64, 3)
    steps = gptq(weight, scale, moments, 127)
    nearest = np.clip(np.rint(weight / scale), -127, 127)
    assert (
        squared_error(weight, steps, scale, moments).sum()
        < squared_error(weight, nearest, scale, moments).sum()
    )


@pytest.mark.parametrize(
    ("shape", "weight", "attributes"),
    [
        ((1, 3, 9, 8), (4, 3, 3, 3), {"pads": [1, 1, 1, 1]}),
        ((2, 3, 9, 8), (4, 3, 3, 2), {"strides": [2, 3], "pads": [0, 1, 2, 0]}),
        ((1, 3, 11, 11), (4, 3, 3, 3), {"dilations": [2, 3]}),
        ((1, 3, 10, 7), (4, 3, 3, 3), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
        ((1, 3, 10, 7), (4, 3, 2, 4), {"auto_pad": "SAME_LOWER", "strides": [1, 2]}),
        ((1, 3, 10, 7), (4, 3, 2, 4), {"auto_pad": "VALID"}),
        ((1, 6, 7, 7), (6, 1, 3, 3), {"group": 6, "pads": [1, 1, 1, 1]}),
        ((1, 6, 7, 7), (9, 2, 3, 3), {"group": 3}),
        ((2, 4, 15), (5, 4, 3), {"pads": [1, 1]}),
        ((1, 2, 5, 6, 7), (3, 2, 2, 2, 2), {"strides": [1, 2, 1]}),
    ],
)
def test_the_columns_of_a_convolution_give_its_output(
    shape: tuple[int, ...], weight: tuple[int, ...], attributes: dict[str, Any], tmp_path: Path
) -> None:
    random = np.random.default_rng(5)
    value, kernel = (random.standard_normal(s).astype(np.float32) for s in (shape, weight))
    node = onnx.helper.make_node("Conv", ["x", "w"], ["y"], **attributes)
    layer = LayerShape(node=node, weight_shape=weight)
    columns = layer.columns(value, random, 10**6)
    product = columns @ layer.to_rows(kernel).transpose(0, 2, 1)  # [groups, positions, outputs]
    kinds = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None] * len(shape))
        for name in "xwy"
    ]
    proto = onnx.helper.make_model(
        onnx.helper.make_graph([node], "g", kinds[:2], kinds[2:]),
        opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8,
    )  # fmt: skip
    path = tmp_path / "conv.onnx"
    onnx.save(proto, path)
    (expected,) = open_session(path, 1).run(None, {"x": value, "w": kernel})
    flat = np.moveaxis(expected, 1, -1).reshape(-1, weight[0])
    got = product.transpose(1, 0, 2).reshape(-1, weight[0])
    np.testing.assert_allclose(got, flat, atol=1e-4)
    assert np.array_equal(layer.from_rows(layer.to_rows(kernel)), kernel)


@pytest.fixture
def mixed(drawing: Any, make_spec: Callable, batch: Any, tmp_path: Path) -> Callable:
    """Make a net with a plain, a depthwise and a grouped convolution, Gemm both ways, MatMul."""

    def make() -> Any:
        d = drawing()
        value = d.add("Relu", d.add("Conv", "x", d.weight(12, 3, 3, 3), strides=[2, 2]))
        value = d.add(
            "Relu", d.add("Conv", value, d.weight(12, 1, 3, 3), group=12, auto_pad="SAME_UPPER")
        )
        value = d.add("Relu", d.add("Conv", value, d.weight(16, 3, 1, 1), group=4))
        value = d.add("Flatten", d.add("GlobalAveragePool", value))
        value = d.add("Relu", d.add("Gemm", value, d.weight(16, 24), d.weight(24), transB=0))
        value = d.add("Relu", d.add("Gemm", value, d.weight(20, 24), transB=1))
        d.add("MatMul", value, d.weight(20, 10), out="y")
        shape = make_spec("x", "float32", batch, 3, 17, 17)
        return d.save(tmp_path / "mixed.onnx", (shape,), make_spec("y", "float32", batch, 10))

    return make


@pytest.mark.parametrize(("target", "largest"), [("cpu-x86_64-vnni", 127), ("cpu-x86_64", 64)])
def test_only_int8_weights_change_and_no_layer_gets_worse(
    target: str, largest: int, mixed: Callable, make_samples: Callable, make_context: Callable
) -> None:
    model = mixed()
    context = make_context(make_samples(model, 24), target=target)
    base = onnx.load(model.path)
    plain, _ = apply((Int8Static(),), base, context)
    after, (report,) = apply((RoundWeights(),), base, context)
    assert (report.status, report.notes[0].split(":")[0]) == (
        "applied", "6 layers rounded to the data",
    )  # fmt: skip
    assert without_int8(after) == without_int8(plain)
    name_nodes(base)
    every = float_layers(base)
    layers = find_layers(every, plain)
    assert [layer.shape.groups for layer in layers] == [1, 12, 4, 1, 1, 1]
    new = {layer.tensor: layer for layer in find_layers(every, after)}
    moments = dict(second_moments(base, [layer.shape for layer in every], range(6), context))
    changed = 0
    for index, old in enumerate(layers):
        rows = old.shape.to_rows
        errors = [
            squared_error(
                rows(old.weight.astype(np.float64)), rows(steps), rows(old.scale), moments[index]
            )
            for steps in (old.steps, new[old.tensor].steps)
        ]
        assert np.all(errors[1] <= errors[0] * (1 + 1e-9))
        assert np.abs(new[old.tensor].steps.astype(int)).max() <= largest
        changed += not np.array_equal(old.steps, new[old.tensor].steps)
    assert changed >= 5


def test_the_rounded_model_is_nearer_to_the_original(
    make_cnn: Callable, make_samples: Callable, make_context: Callable
) -> None:
    model = make_cnn(layers=6)
    data = make_samples(model, 40)
    context = make_context(data[:24], target="cpu-x86_64")
    base, _ = apply((CleanUp(),), onnx.load(model.path), context)
    probes = [data[i] for i in range(24, 40)]
    context = type(context)(
        target=context.target, samples=context.samples, probes=probes, workdir=context.workdir,
        reporter=context.reporter,
    )  # fmt: skip
    want = run_model(base, context)
    plain, _ = apply((Int8Static(),), base, context)
    after, _ = apply((RoundWeights(),), base, context)
    distances = [1 - compare(want, run_model(m, context)).cosine for m in (plain, after)]
    assert distances[1] < distances[0]


def test_twice_the_same_bytes_and_another_form_finds_the_layers_known(
    make_cnn: Callable, make_samples: Callable, make_context: Callable
) -> None:
    model = make_cnn(layers=12)
    context = make_context(make_samples(model))
    base, _ = apply((CleanUp(),), onnx.load(model.path), context)
    first, _ = apply((RoundWeights(),), base, context)
    (cache,) = context.workdir.glob("rounded-*.npz")
    known = cache.stat().st_mtime_ns
    mixed_form = RoundWeights(quantizer=Int8Static(float_layers=2))
    second, (report,) = apply((mixed_form,), base, context)
    assert len(report.notes) == 3
    assert cache.stat().st_mtime_ns == known
    cache.unlink()
    alone, _ = apply((mixed_form,), base, context)
    assert alone.SerializeToString(deterministic=True) == second.SerializeToString(
        deterministic=True
    )
    for path in context.workdir.iterdir():
        path.unlink()
    again, _ = apply((RoundWeights(),), base, context)
    assert again.SerializeToString(deterministic=True) == first.SerializeToString(
        deterministic=True
    )
    shared = int8_weights(second)
    assert all(np.array_equal(shared[name], int8_weights(first)[name]) for name in shared)
    left = {path.name.split("-")[0] for path in context.workdir.iterdir()}
    assert left == {"ranges", "rounded"}


def test_a_weight_used_twice_and_a_computed_one_are_passed_over(
    drawing: Any, make_spec: Callable, tmp_path: Path, make_samples: Callable,
    make_context: Callable,
) -> None:  # fmt: skip
    batch, d = Dim(name="batch", min=1, max=8, opt=1), drawing()
    shared = d.weight(32, 32)
    value = d.add("Relu", d.add("MatMul", d.add("Relu", d.add("MatMul", "x", shared)), shared))
    computed = d.add("MatMul", value, d.add("Transpose", value, perm=[1, 0]))
    d.add("Gemm", value, d.weight(32, 8), out="y")
    d.add("ReduceSum", computed, d.constant(np.array([1], np.int64)), out="z")
    model = d.save(
        tmp_path / "shared.onnx",
        (make_spec("x", "float32", batch, 32),),
        make_spec("y", "float32", batch, 8),
        make_spec("z", "float32", batch, 1),
    )
    context = make_context(make_samples(model))
    base = onnx.load(model.path)
    plain, _ = apply((Int8Static(),), base, context)
    after, (report,) = apply((RoundWeights(),), base, context)
    assert report.notes[0].startswith("1 layer rounded")
    old, new = int8_weights(plain), int8_weights(after)
    assert [old[name].shape for name in old if not np.array_equal(old[name], new[name])] == [
        (32, 8)
    ]


def test_it_says_where_it_does_not_apply(
    make_cnn: Callable, make_samples: Callable, make_context: Callable
) -> None:
    model = make_cnn()
    base = onnx.load(model.path)
    context = make_context(make_samples(model), data=False)
    _, (report,) = apply((RoundWeights(),), base, context)
    assert (report.status, report.reason) == ("skipped", "there is no calibration data")
    context = make_context(make_samples(model))
    quantized, _ = apply((Int8Static(),), base, context)
    _, (report,) = apply((RoundWeights(),), quantized, context)
    assert (report.status, report.reason) == ("skipped", "the model is quantized already")
    scheme = dataclasses.replace(context.target.quantization, weight="uint8")
    target = dataclasses.replace(context.target, quantization=scheme)
    context = dataclasses.replace(context, target=target)
    _, (report,) = apply((RoundWeights(),), base, context)
    assert (report.status, report.reason) == ("skipped", "the target wants uint8 weights")


def test_weights_out_of_the_targets_range_break_the_promise(
    make_mlp: Callable, make_samples: Callable, make_context: Callable
) -> None:
    model = make_mlp()
    base = onnx.load(model.path)
    wide, _ = apply((RoundWeights(),), base, make_context(make_samples(model)))
    context = make_context(make_samples(model), target="cpu-x86_64")
    with pytest.raises(PassBroken, match="has weights out of range"):
        RoundWeights().ensures(base, wide, context)
