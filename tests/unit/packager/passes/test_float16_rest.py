"""fp16 around int8 layers: one type with what is dequantized for them, scales that fp16 holds."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from packager.checks.pairs import kept_pairs
from packager.checks.parity import compare
from packager.passes.clean_up import CleanUp
from packager.passes.contract import apply, opset_of, run_model
from packager.passes.float16_rest import Float16Rest
from packager.passes.graph import interface_of, op_types
from packager.passes.int8_static import WEIGHTED, Int8Static
from packager.passes.raise_opset import RaiseOpset
from packager.target import find_target

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from packager.passes.contract import PassContext

LAYERS = ("Conv", "Gemm", "MatMul")
F16, F32 = TensorProto.FLOAT16, TensorProto.FLOAT


@pytest.fixture
def quantized(
    make_cnn: Callable, make_samples: Callable, make_context: Callable
) -> Callable[..., tuple[Any, PassContext]]:
    """Make a CNN's Q/DQ graph as a TensorRT target wants it, in a given opset."""

    def make(opset: int = 19, model: Any = None, **shape: Any) -> tuple[Any, PassContext]:
        model = model or make_cnn(opset=17, **shape)
        context = make_context(make_samples(model))
        context = dataclasses.replace(context, target=find_target("rtx-ada"))
        steps = (
            CleanUp(), Int8Static(operators=WEIGHTED, outputs=False),
            RaiseOpset(least=opset, preferred=opset),
        )  # fmt: skip
        made, reports = apply(steps, onnx.load(model.path), context)
        assert "left out" not in [report.status for report in reports]
        return made, context

    return make


def types_of(model: Any) -> dict[str, int]:
    """Return the element type of every tensor, as inference finds it."""
    graph = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
    found = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        found[value.name] = value.type.tensor_type.elem_type
    return found


def test_int8_layers_and_all_between_them_are_typed_fp16(quantized: Callable) -> None:
    before, context = quantized()
    after, (report,) = apply((Float16Rest(),), before, context)
    assert report.status == "applied"
    assert report.notes[0].endswith(" operators that are not Q/DQ in fp16")
    types = types_of(after)
    makers = {name: node for node in after.graph.node for name in node.output}
    seen = 0
    for node in after.graph.node:
        if node.op_type in LAYERS:
            seen += 1
            # No Cast may stand between a layer and what is dequantized for it.
            assert [makers[name].op_type for name in node.input[:2]] == ["DequantizeLinear"] * 2
            assert {types[name] for name in (*node.input, *node.output)} == {F16}
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert types[node.input[1]] == F16
    assert seen == 4
    assert interface_of(after) == interface_of(before)
    assert sum(node.op_type == "Cast" for node in after.graph.node) == 2
    got, want = run_model(after, context), run_model(before, context)
    assert compare(want, got).cosine > 0.999


def test_weights_stay_the_int8_numbers_they_were(quantized: Callable) -> None:
    before, context = quantized()
    after, _ = apply((Float16Rest(),), before, context)
    stored = [
        sorted(
            numpy_helper.to_array(t).tobytes()
            for t in model.graph.initializer
            if t.data_type == TensorProto.INT8 and len(t.dims) > 1
        )
        for model in (before, after)
    ]
    assert stored[0] == stored[1]
    assert len(stored[0]) == 4


def test_scales_too_small_for_fp16_grow_and_none_becomes_zero(quantized: Callable) -> None:
    before, context = quantized()
    weights = {t.name: t for t in before.graph.initializer}
    (node,) = (
        n for n in before.graph.node
        if n.op_type == "DequantizeLinear" and weights.get(n.input[0]) is not None
        and len(weights[n.input[0]].dims) == 4 and weights[n.input[0]].dims[1] == 3
    )  # fmt: skip
    scale = numpy_helper.to_array(weights[node.input[1]]).copy()
    scale[0], scale[1] = 1e-6, 2.0**-15
    weights[node.input[1]].CopyFrom(numpy_helper.from_array(scale, node.input[1]))
    steps = numpy_helper.to_array(weights[node.input[0]]).astype(np.float32)
    after, (report,) = apply((Float16Rest(),), before, context)
    assert report.status == "applied"
    held = {t.name: numpy_helper.to_array(t) for t in after.graph.initializer}
    (changed,) = (n for n in after.graph.node if n.name == node.name)
    new = held[changed.input[1]].astype(np.float32)
    assert new.min() >= 2.0**-14
    values = held[changed.input[0]].astype(np.float32) * new[:, None, None, None]
    wanted = steps * scale[:, None, None, None]
    assert np.abs(values - wanted)[:2].max() <= 2.0**-15
    assert np.abs(values / np.where(wanted, wanted, 1) - 1)[2:][wanted[2:] != 0].max() < 2.0**-10


def test_a_layer_that_overflows_stays_float32_with_what_is_dequantized_for_it(
    quantized: Callable, drawing: Any, make_spec: Callable, batch: Any, tmp_path: Path
) -> None:
    d = drawing()
    wide = d.weight(64, 64, scale=1e5)
    value = d.add("Relu", d.add("MatMul", "x", wide))
    small = d.add("MatMul", value, d.weight(64, 64, scale=1e-5))
    value = d.add("Relu", d.add("MatMul", small, d.weight(64, 64)))
    d.add("MatMul", value, d.weight(64, 8), out="y")
    model = d.save(
        tmp_path / "wide.onnx",
        (make_spec("x", "float32", batch, 64),),
        make_spec("y", "float32", batch, 8),
    )
    before, context = quantized(model=model)
    after, (report,) = apply((Float16Rest(),), before, context)
    assert report.status == "applied"
    assert any("stays float32" in note for note in report.notes)
    types = types_of(after)
    products = [node for node in after.graph.node if node.op_type == "MatMul"]
    kinds = [{types[name] for name in (*node.input, *node.output)} for node in products]
    assert kinds[0] == {F32}
    assert kinds[-1] == {F16}
    assert all(len(kind) == 1 for kind in kinds)
    assert compare(run_model(before, context), run_model(after, context)).cosine > 0.999


def test_what_it_does_not_apply_to_is_said(
    quantized: Callable, make_cnn: Callable, make_context: Callable, make_samples: Callable
) -> None:
    model = make_cnn()
    context = make_context(make_samples(model))
    _, (report,) = apply((Float16Rest(),), onnx.load(model.path), context)
    assert (report.status, report.reason) == ("skipped", "the model has no int8 layers")
    old, context = quantized(opset=17)
    assert opset_of(old) == 17
    _, (report,) = apply((Float16Rest(),), old, context)
    assert report.reason == "scales may be fp16 from opset 19 on, this is 17"


def test_sessions_run_pairs_with_fp16_scales_as_they_stand(
    quantized: Callable, tmp_path: Path
) -> None:
    before, context = quantized()
    after, _ = apply((Float16Rest(),), before, context)
    assert "DequantizeLinear" in op_types(before)
    for model, kept in ((before, "saturating"), (after, "always")):
        path = tmp_path / "model.onnx"
        onnx.save(model, path)
        assert kept_pairs(path) == kept
    (tmp_path / "empty.onnx").touch()
    assert kept_pairs(tmp_path / "empty.onnx") is None
