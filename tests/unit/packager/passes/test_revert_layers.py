"""Layers back in float: exactly the float layer, with the ranges of all others as they were."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

from packager.checks.latency import open_session
from packager.passes.contract import apply
from packager.passes.graph import op_types
from packager.passes.int8_static import WEIGHTED, Int8Static
from packager.passes.quantizer import name_nodes, quantize_statically
from packager.passes.revert_layers import (
    depthwise_convolutions,
    quantized_layers,
    revert_layers,
)
from packager.passes.round_weights import RoundWeights

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

PAIRS = {"QuantizeLinear", "DequantizeLinear"}
OPERATORS = (
    *WEIGHTED, "Add", "Clip", "Concat", "Flatten", "GlobalAveragePool", "MaxPool", "Mul", "Pad",
    "Relu", "Reshape",
)  # fmt: skip


def answers(model: Any, samples: Any, folder: Path, level: str = "ORT_ENABLE_ALL") -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return np.stack([np.concatenate([a.ravel() for a in session.run(None, s)]) for s in samples])


def sqnr_db(want: Any, have: Any) -> float:
    noise = float(((want.astype(np.float64) - have) ** 2).sum())
    return 10 * np.log10(float((want.astype(np.float64) ** 2).sum()) / max(noise, 1e-30))


@pytest.fixture
def net(drawing: Any, make_spec: Callable, batch: Any, tmp_path: Path) -> Any:
    """Make a net with everything that a revert has to take care of.

    A padding before the first layer, depthwise and plain convolutions with and without bias, a
    residual sum, a hard swish in its parts, Relu and Clip, a pooling, a concatenation, a shared
    weight, a Gemm with beta and both ways round, and a convolution that is a graph output.
    """
    d = drawing()
    zero, six = d.constant(np.float32(0)), d.constant(np.float32(6))
    pads = d.constant(np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64))
    value = d.add("Pad", "image", pads)
    value = d.add("Relu", d.add("Conv", value, d.weight(12, 3, 3, 3), d.weight(12)))
    wide = d.weight(12, 1, 3, 3, scale=3.0)
    value = d.add("Conv", value, wide, d.weight(12), group=12, pads=[1] * 4)
    left = d.add("Clip", value, zero, six)
    right = d.add("Conv", left, d.weight(12, 12, 1, 1))
    value = d.add("Add", left, right)
    soft = d.add("HardSigmoid", value, alpha=1 / 6, beta=0.5)
    value = d.add("Mul", value, soft)
    shared = d.weight(12, 12, 1, 1)
    one = d.add("Conv", value, shared)
    two = d.add("Conv", d.add("Relu", one), shared)
    value = d.add("Concat", d.add("MaxPool", one, kernel_shape=[1, 1]), two, axis=1)
    d.add("Conv", value, d.weight(4, 24, 1, 1), out="map")
    value = d.add("Flatten", d.add("GlobalAveragePool", value))
    value = d.add("Relu", d.add("Gemm", value, d.weight(24, 16), d.weight(16), beta=0.5))
    value = d.add("Relu", d.add("Gemm", value, d.weight(20, 16), d.weight(20), transB=1))
    d.add("MatMul", value, d.weight(20, 10), out="y")
    return d.save(
        tmp_path / "net.onnx",
        (make_spec("image", "float32", batch, 3, 12, 12),),
        make_spec("map", "float32", batch, 4, 12, 12),
        make_spec("y", "float32", batch, 10),
    )


@pytest.fixture
def made(net: Any, make_samples: Callable, make_context: Callable) -> Any:
    """Return (float model, quantized model, samples, context)."""
    samples = make_samples(net, 16)
    context = make_context(samples)
    reference = onnx.load(net.path)
    name_nodes(reference)
    quantized, (report,) = apply((RoundWeights(),), reference, context)
    assert report.status == "applied"
    return reference, quantized, [samples[i] for i in range(8)], context


LAYERS = (
    "n_conv_1", "n_conv_3", "n_conv_5", "n_conv_9", "n_conv_11", "n_map", "n_gemm_17", "n_gemm_19",
    "n_y",
)  # fmt: skip


def test_all_layers_reverted_are_the_float_model(made: Any, tmp_path: Path) -> None:
    reference, quantized, samples, _ = made
    assert tuple(quantized_layers(quantized, reference)) == LAYERS
    after = revert_layers(quantized, reference, LAYERS)
    assert not op_types(after) & PAIRS
    want, have = (answers(model, samples, tmp_path) for model in (reference, after))
    assert sqnr_db(want, have) > 100
    weights = [
        sorted(onnx.numpy_helper.to_array(t).tobytes() for t in model.graph.initializer)
        for model in (reference, after)
    ]
    assert weights[0] == weights[1]
    onnx.checker.check_model(after, full_check=True)


@pytest.mark.parametrize("name", LAYERS)
def test_one_layer_reverted_is_what_calibrating_with_it_in_float_gives(
    made: Any, tmp_path: Path, name: str
) -> None:
    reference, _, samples, context = made

    def quantize(keep: Sequence[str]) -> Any:
        return quantize_statically(reference, context, op_types=OPERATORS, keep_float=keep)

    full, kept = quantize([]), quantize([name])
    after = revert_layers(full, reference, [name])
    # Without the engine's own edits: it would quantize the weights of `kept` again.
    basic = "ORT_DISABLE_ALL"
    want = answers(reference, samples, tmp_path, basic)
    wanted, have = (answers(model, samples, tmp_path, basic) for model in (kept, after))
    assert sqnr_db(want, have) > sqnr_db(want, wanted) - 1.0
    assert sqnr_db(wanted, have) > sqnr_db(want, wanted) - 3.0
    left = set(quantized_layers(full, reference)) - {name}
    assert set(quantized_layers(after, reference)) == left
    onnx.checker.check_model(after, full_check=True)
    open_session(_saved(after, tmp_path), 1)


def test_the_other_layers_keep_their_rounded_weights_and_ranges(made: Any) -> None:
    reference, quantized, _, _ = made
    after = revert_layers(quantized, reference, ["n_conv_5"])
    before = {t.name: t.SerializeToString() for t in quantized.graph.initializer}
    kept = {t.name: t.SerializeToString() for t in after.graph.initializer if t.name in before}
    assert all(before[name] == text for name, text in kept.items())
    gone = set(before) - set(kept)
    assert gone
    assert all(name.startswith(("w_", "conv_5")) for name in gone)


def test_reverting_in_two_steps_is_reverting_at_once(made: Any, tmp_path: Path) -> None:
    reference, quantized, samples, _ = made
    once = revert_layers(quantized, reference, ["n_conv_3", "n_conv_9", "n_gemm_17"])
    steps = revert_layers(quantized, reference, ["n_conv_9"])
    steps = revert_layers(steps, reference, ["n_gemm_17", "n_conv_3"])
    first, second = (answers(model, samples, tmp_path) for model in (once, steps))
    assert np.array_equal(first, second)


def test_the_quantized_model_is_not_touched_and_nothing_to_do_changes_nothing(made: Any) -> None:
    reference, quantized, _, _ = made
    before = quantized.SerializeToString(deterministic=True)
    assert revert_layers(quantized, reference, []).SerializeToString(deterministic=True) == before
    same = revert_layers(quantized, reference, ["n_hardsigmoid_7"])
    assert same.SerializeToString(deterministic=True) == before
    revert_layers(quantized, reference, LAYERS)
    assert quantized.SerializeToString(deterministic=True) == before
    again = [revert_layers(quantized, reference, LAYERS[:3]) for _ in range(2)]
    assert again[0].SerializeToString(deterministic=True) == again[1].SerializeToString(
        deterministic=True
    )


def test_a_name_that_is_not_in_the_model_is_refused(made: Any) -> None:
    reference, quantized, _, _ = made
    with pytest.raises(ValueError, match="has no node `n_conv_77`"):
        revert_layers(quantized, reference, ["n_conv_77"])


def test_operators_without_weights_follow_what_they_read(made: Any) -> None:
    reference, quantized, _, _ = made
    after = revert_layers(quantized, reference, ["n_conv_5", "n_conv_3"])
    makers = {name: node for node in after.graph.node for name in node.output}
    kinds = {
        node.name: [makers[n].op_type for n in node.input if n in makers]
        for node in after.graph.node
    }
    assert "DequantizeLinear" not in kinds["n_add_6"]
    # The value behind an integer layer exists in eight bits alone.
    assert kinds["n_conv_3"] == ["DequantizeLinear"]
    assert kinds["n_conv_5"] == ["Clip"]


def test_depthwise_convolutions_are_found_by_their_groups(made: Any) -> None:
    reference, _, _, _ = made
    assert depthwise_convolutions(reference) == ("n_conv_3",)


@pytest.fixture
def inputs_only(net: Any, make_samples: Callable, make_context: Callable) -> Any:
    """Return (float model, model whose layers give floats, samples, context)."""
    samples = make_samples(net, 16)
    context = make_context(samples)
    reference = onnx.load(net.path)
    name_nodes(reference)
    quantized = quantize_statically(
        reference, context, op_types=WEIGHTED, keep_float=[], outputs=False
    )
    return reference, quantized, [samples[i] for i in range(8)], context


def test_layers_that_give_floats_have_a_pair_only_where_a_layer_reads_them(
    inputs_only: Any, tmp_path: Path
) -> None:
    reference, quantized, samples, _ = inputs_only
    assert tuple(quantized_layers(quantized, reference)) == LAYERS
    readers: dict[str, set[str]] = {}
    for node in quantized.graph.node:
        for name in node.input:
            readers.setdefault(name, set()).add(node.op_type)
    weights = {tensor.name for tensor in quantized.graph.initializer}
    for node in quantized.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] not in weights:
            assert readers[node.output[0]] & {*WEIGHTED}
    want, have = (
        answers(model, samples, tmp_path, "ORT_DISABLE_ALL") for model in (reference, quantized)
    )
    assert sqnr_db(want, have) > 25


def test_depthwise_convolutions_stay_float_where_asked(
    net: Any, make_samples: Callable, make_context: Callable
) -> None:
    context = make_context(make_samples(net, 8))
    reference = onnx.load(net.path)
    name_nodes(reference)
    step = Int8Static(operators=WEIGHTED, outputs=False, depthwise=False)
    after, (report,) = apply((step,), reference, context)
    assert report.notes == ("1 depthwise convolution stays float",)
    assert set(LAYERS) - set(quantized_layers(after, reference)) == {"n_conv_3"}


@pytest.mark.parametrize("name", LAYERS)
def test_of_layers_that_give_floats_a_reverted_one_reads_floats(
    inputs_only: Any, tmp_path: Path, name: str
) -> None:
    reference, quantized, samples, context = inputs_only
    kept = quantize_statically(
        reference, context, op_types=WEIGHTED, keep_float=[name], outputs=False
    )
    after = revert_layers(quantized, reference, [name], shield=False, fused=False)
    makers = {out: node.op_type for node in after.graph.node for out in node.output}
    (node,) = (node for node in after.graph.node if node.name == name)
    assert "DequantizeLinear" not in [makers.get(source) for source in node.input]
    wanted, have = (answers(m, samples, tmp_path, "ORT_DISABLE_ALL") for m in (kept, after))
    # A weight that two layers share stays rounded for both in `kept`.
    assert sqnr_db(wanted, have) > (30 if name in ("n_conv_9", "n_conv_11") else 100)
    onnx.checker.check_model(after, full_check=True)


def test_all_layers_that_give_floats_reverted_are_the_float_model(
    inputs_only: Any, tmp_path: Path
) -> None:
    reference, quantized, samples, _ = inputs_only
    after = revert_layers(quantized, reference, LAYERS, shield=False, fused=False)
    assert not op_types(after) & PAIRS
    want, have = (answers(model, samples, tmp_path) for model in (reference, after))
    assert sqnr_db(want, have) > 100


def _saved(model: Any, folder: Path) -> Path:
    path = folder / "after.onnx"
    onnx.save(model, path)
    return path
