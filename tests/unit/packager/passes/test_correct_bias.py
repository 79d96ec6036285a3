"""Correcting biases: what changes, that means come right, and where it does not apply."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

from packager.passes.clean_up import CleanUp
from packager.passes.contract import apply, run_model
from packager.passes.correct_bias import CorrectBias, clamps_behind, find_biases
from packager.passes.int8_static import Int8Static
from packager.passes.layer_walk import LayerWalk
from packager.passes.quantizer import name_nodes

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def without_int32(model: Any) -> bytes:
    stripped = onnx.ModelProto()
    stripped.CopyFrom(model)
    for tensor in stripped.graph.initializer:
        if tensor.data_type == onnx.TensorProto.INT32:
            tensor.ClearField("raw_data")
    return stripped.SerializeToString(deterministic=True)


@pytest.fixture
def branched(drawing: Any, make_spec: Callable, batch: Any, tmp_path: Path) -> Callable:
    """Make a net with a branch that joins again, and a value that is read late."""

    def make() -> Any:
        d = drawing()
        first = d.add("Relu", d.add("Conv", "x", d.weight(8, 3, 3, 3), d.weight(8)))
        left = d.add("Relu", d.add("Conv", first, d.weight(8, 1, 3, 3), d.weight(8), group=8,
                                   pads=[1, 1, 1, 1]))  # fmt: skip
        right = d.add("Conv", left, d.weight(8, 8, 1, 1), d.weight(8))
        joined = d.add("Add", right, first)
        flat = d.add("Flatten", d.add("GlobalAveragePool", joined))
        d.add("Gemm", flat, d.weight(8, 5), d.weight(5), out="y")
        shape = make_spec("x", "float32", batch, 3, 9, 9)
        return d.save(tmp_path / "branched.onnx", (shape,), make_spec("y", "float32", batch, 5))

    return make


def coarse(context: Any) -> Any:
    """Return the context with fewer bits for weights, whose rounding shifts means."""
    scheme = dataclasses.replace(context.target.quantization, per_channel=False, reduce_range=True)
    target = dataclasses.replace(context.target, quantization=scheme)
    return dataclasses.replace(context, target=target)


def test_a_walk_computes_what_one_run_computes(
    branched: Callable, make_samples: Callable, make_context: Callable, tmp_path: Path
) -> None:
    model = branched()
    samples = make_samples(model, 3)
    base = onnx.load(model.path)
    walk = LayerWalk(base, samples, tmp_path)
    for node in base.graph.node:
        if node.op_type in ("Conv", "Gemm"):
            walk.run_to(node.output[0])
    context = dataclasses.replace(make_context(samples), probes=list(samples))
    for have, want in zip(walk.values, run_model(base, context), strict=True):
        np.testing.assert_allclose(have["y"], want["y"], atol=1e-5)
        assert set(have) == {"y"}, "what nothing reads any more is let go"


@pytest.mark.parametrize("bias", ["int32", "float"])
def test_only_biases_change_and_the_means_of_the_outputs_come_nearer(
    bias: str, branched: Callable, make_samples: Callable, make_context: Callable
) -> None:
    model = branched()
    samples = make_samples(model, 32)
    context = coarse(make_context(samples))
    scheme = dataclasses.replace(context.target.quantization, bias=bias)
    target = dataclasses.replace(context.target, quantization=scheme)
    context = dataclasses.replace(context, target=target, probes=list(samples))
    base, _ = apply((CleanUp(),), onnx.load(model.path), context)
    plain, _ = apply((Int8Static(),), base, context)
    after, (report,) = apply((CorrectBias(quantizer=Int8Static()),), base, context)
    assert report.status == "applied"
    assert report.notes[-1].startswith("4 biases corrected, by ")
    if bias == "int32":
        assert without_int32(after) == without_int32(plain)
    want, nearest, corrected = (
        np.concatenate([outputs["y"] for outputs in run_model(m, context)]).mean(axis=0)
        for m in (base, plain, after)
    )
    assert np.abs(corrected - want).mean() < 0.5 * np.abs(nearest - want).mean()


def test_twice_the_same_bytes(
    branched: Callable, make_samples: Callable, make_context: Callable
) -> None:
    model = branched()
    context = make_context(make_samples(model))
    base = onnx.load(model.path)
    first, second = (
        apply((CorrectBias(),), base, context)[0].SerializeToString(deterministic=True)
        for _ in range(2)
    )
    assert first == second
    left = {path.name.split("-")[0] for path in context.workdir.iterdir()}
    assert left == {"ranges", "rounded"}


def test_a_bias_of_float_layers_is_corrected_and_a_shared_one_passed_over(
    branched: Callable, make_samples: Callable, make_context: Callable
) -> None:
    model = branched()
    context = make_context(make_samples(model))
    base = onnx.load(model.path)
    name_nodes(base)
    outputs = {node.name: node.output[0] for node in base.graph.node}
    kept = Int8Static(keep_float=("n_conv_0",)).run(base, context).model
    assert [b.scale is None for b in find_biases(kept, outputs)] == [True, False, False, False]
    convolutions = [n for n in base.graph.node if n.op_type == "Conv"]
    convolutions[1].input[2] = convolutions[0].input[2]
    assert [b.output for b in find_biases(base, outputs)] == [convolutions[2].output[0], "y"]


def test_it_says_where_it_does_not_apply(
    make_mlp: Callable, make_samples: Callable, make_context: Callable
) -> None:
    model = make_mlp()
    base = onnx.load(model.path)
    _, (report,) = apply((CorrectBias(),), base, make_context(make_samples(model)))
    assert (report.status, report.reason) == ("skipped", "no layer has a constant bias")


def test_what_a_clamp_cuts_off_does_not_count(
    drawing: Any, make_spec: Callable, batch: Any, tmp_path: Path
) -> None:
    d = drawing()
    bounds = d.constant(np.float32(0)), d.constant(np.float32(6))
    value = d.add("Clip", d.add("Conv", "x", d.weight(4, 3, 1, 1), out="a"), *bounds)
    value = d.add("Relu", d.add("Conv", value, d.weight(4, 4, 1, 1), out="b"))
    value = d.add("Clip", d.add("Conv", value, d.weight(4, 4, 1, 1), out="c"), "", bounds[1])
    twice = d.add("Conv", value, d.weight(4, 4, 1, 1), out="e")
    d.add("Add", d.add("Relu", twice), twice, out="y")
    shape = (batch, 4, 2, 2)
    model = d.save(tmp_path / "clamps.onnx", (make_spec("x", "float32", batch, 3, 2, 2),),
                   make_spec("y", "float32", *shape))  # fmt: skip
    infinity = float("inf")
    assert clamps_behind(onnx.load(model.path)) == {
        "a": (0.0, 6.0), "b": (0.0, infinity), "c": (-infinity, 6.0),
    }  # fmt: skip
