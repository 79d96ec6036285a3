"""Weights in blocks: what the engine computes from them, what is left alone, and the size."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from packager.checks.parity import compare
from packager.passes.blocks import quantize_blocks
from packager.passes.contract import PassBroken, apply, run_model
from packager.passes.int8_dynamic import Int8Dynamic
from packager.passes.weight_only import WeightOnly

if TYPE_CHECKING:
    from collections.abc import Callable

FORMS = [
    {"bits": 8}, {"bits": 4}, {"bits": 8, "symmetric": False}, {"bits": 4, "symmetric": False},
    {"bits": 4, "block": 16}, {"bits": 8, "block": 64},
]  # fmt: skip


def rows_of(outputs: int, inputs: int) -> Any:
    values = np.random.default_rng([outputs, inputs]).standard_normal((outputs, inputs))
    return values.astype(np.float32)


@pytest.mark.parametrize("form", FORMS)
def test_every_value_is_within_half_a_step(form: dict[str, Any]) -> None:
    rows = rows_of(7, 70)
    blocks = quantize_blocks(rows, **{"block": 32, **form})
    error = np.abs(blocks.dequantize(70) - rows)
    size = blocks.block
    steps = np.repeat(np.abs(blocks.scales), size, axis=1)[:, :70]
    # Symmetric 4-bit blocks may be shortened by up to a quarter; an asymmetric zero is rounded.
    limit = 2.5 if form["bits"] == 4 and form.get("symmetric", True) else 1.01
    assert (error <= limit * steps).all()
    assert np.sqrt((error**2).mean()) < (0.12 if form["bits"] == 4 else 0.01)


def test_four_bits_choose_the_scale_with_the_smaller_error() -> None:
    rows = rows_of(64, 128)
    blocks = quantize_blocks(rows, bits=4, block=32)
    part = rows.reshape(64, 4, 32)
    full = np.take_along_axis(part, np.abs(part).argmax(2)[..., None], 2)[..., 0] / -8
    plain = np.clip(np.rint(part / full[..., None]), -8, 7) * full[..., None]
    before = np.square(plain - part).sum()
    after = np.square(blocks.dequantize(128) - rows).sum()
    assert after < 0.95 * before


def test_rows_of_zeros_stay_zero_and_parts_give_the_same() -> None:
    rows = rows_of(40, 64)
    rows[3], rows[9, :32] = 0, 0
    for bits in (4, 8):
        for symmetric in (True, False):
            whole = quantize_blocks(rows, bits=bits, block=32, symmetric=symmetric)
            real = whole.dequantize(64)
            assert not real[3].any()
            assert not real[9, :32].any()
            assert np.isfinite(whole.scales).all()
            halves = [quantize_blocks(h, bits=bits, block=32, symmetric=symmetric)
                      for h in (rows[:11], rows[11:])]  # fmt: skip
            joined = np.concatenate([h.packed for h in halves])
            assert np.array_equal(joined, whole.packed)


@pytest.fixture
def make_text_model(
    drawing: type, make_spec: Callable, batch: Any, tmp_path: Any
) -> Callable[[], Any]:
    """Make `ids` int64 [batch, 6] → `y` [batch, 6, 40]: a table, a MatMul, Gemms both ways."""

    def make() -> Any:
        d = drawing()
        value = d.add("Gather", d.weight(200, 70), "ids")
        value = d.add("Relu", d.add("MatMul", value, d.weight(70, 96, scale=3.0)))
        flat = d.add("Reshape", value, d.constant(np.array([-1, 96])))
        bias = d.constant(np.linspace(-1, 1, 80).astype(np.float32))
        value = d.add("Relu", d.add("Gemm", flat, d.weight(96, 80, scale=3.0), bias))
        value = d.add("Gemm", value, d.weight(40, 80, scale=3.0), transB=1)
        d.add("Reshape", value, d.constant(np.array([-1, 6, 40])), out="y")
        return d.save(
            tmp_path / "text.onnx",
            (make_spec("ids", "int64", batch, 6),),
            make_spec("y", "float32", batch, 6, 40),
        )

    return make


@pytest.fixture
def text(make_text_model: Callable, make_context: Callable, make_samples: Callable,
         make_mlp: Callable) -> tuple[Any, Any]:  # fmt: skip
    proto = onnx.load(make_text_model().path)
    context = make_context(make_samples(make_mlp()))
    probes = [{"ids": np.random.default_rng(i).integers(0, 200, (3, 6))} for i in range(2)]
    return proto, dataclasses.replace(context, probes=probes)


@pytest.mark.parametrize("form", FORMS)
def test_the_engine_reads_the_blocks_as_they_are_meant(
    form: dict[str, Any], text: tuple[Any, Any]
) -> None:
    proto, context = text
    step = WeightOnly(**form)
    after, (report,) = apply((step,), proto, context)
    assert report.status == "applied", report.reason
    kinds = [node.op_type for node in after.graph.node]
    assert kinds.count("MatMulNBits") == 3
    assert kinds.count("GatherBlockQuantized") == 1
    # The same weights, put back as float32, give the same outputs but for 8-bit activations.
    rounded = onnx.ModelProto()
    rounded.CopyFrom(proto)
    layouts = {"Gather": (0, False), "MatMul": (1, True), "Gemm": (1, True)}
    tensors = {tensor.name: tensor for tensor in rounded.graph.initializer}
    for node in rounded.graph.node:
        if node.op_type in layouts:
            place, turned = layouts[node.op_type]
            turned = turned and not any(a.name == "transB" and a.i for a in node.attribute)
            weight = numpy_helper.to_array(tensors[node.input[place]])
            rows = weight.T if turned else weight
            blocks = quantize_blocks(
                rows, bits=step.bits, block=step.block, symmetric=step.symmetric
            )
            real = blocks.dequantize(rows.shape[1])
            tensors[node.input[place]].CopyFrom(
                numpy_helper.from_array(
                    np.ascontiguousarray(real.T if turned else real), node.input[place]
                )
            )
    parity = compare(run_model(rounded, context), run_model(after, context))
    assert parity.cosine > 0.9995
    assert compare(run_model(proto, context), run_model(after, context)).cosine > 0.97


def test_the_note_tells_both_sizes(text: tuple[Any, Any]) -> None:
    proto, context = text
    after, (report,) = apply((WeightOnly(bits=4),), proto, context)
    assert report.notes[0].startswith(
        "3 weights in 4 bits and 1 table in 4 bits, blocks of 32: 126.4 kB → 22.4 kB"
    )
    assert after.ByteSize() < 0.25 * proto.ByteSize()
    first, second = (
        apply((WeightOnly(),), proto, context)[0].SerializeToString(deterministic=True)
        for _ in range(2)
    )
    assert first == second


def test_tables_may_have_fewer_bits_and_come_alone(text: tuple[Any, Any]) -> None:
    proto, context = text
    after, (report,) = apply((WeightOnly(table_bits=4),), proto, context)
    assert report.notes[0].startswith("3 weights in 8 bits and 1 table in 4 bits")
    assert compare(run_model(proto, context), run_model(after, context)).cosine > 0.99
    after, reports = apply((WeightOnly(bits=4, products=False), Int8Dynamic()), proto, context)
    assert [r.status for r in reports] == ["applied", "applied"]
    assert reports[0].notes[0].startswith("1 table in 4 bits")
    kinds = {node.op_type for node in after.graph.node}
    assert {"GatherBlockQuantized", "MatMulInteger"} <= kinds


def test_weights_that_something_else_reads_stay(text: tuple[Any, Any]) -> None:
    proto, context = text
    table = proto.graph.node[0].input[0]
    node = helper.make_node("ReduceSum", [table], ["total"], keepdims=0)
    proto.graph.node.append(node)
    proto.graph.output.append(helper.make_tensor_value_info("total", TensorProto.FLOAT, []))
    after, _ = apply((WeightOnly(),), proto, context)
    kinds = [node.op_type for node in after.graph.node]
    assert "Gather" in kinds
    assert "GatherBlockQuantized" not in kinds


def test_a_weight_that_two_products_share_is_kept_once(
    drawing: type, make_spec: Callable, text: tuple[Any, Any]
) -> None:
    d, context = drawing(), text[1]
    weight = d.weight(64, 64)
    d.add("MatMul", d.add("Relu", d.add("MatMul", "x", weight)), weight, out="y")
    inputs, output = (make_spec("x", "float32", 2, 64),), make_spec("y", "float32", 2, 64)
    model = d.save(context.workdir / "tied.onnx", inputs, output)
    probe = {"x": np.ones((2, 64), np.float32)}
    context = dataclasses.replace(context, probes=[probe])
    after, (report,) = apply((WeightOnly(),), onnx.load(model.path), context)
    assert report.notes[0].startswith("1 weight in 8 bits")
    assert len(after.graph.initializer) == 2


def test_what_it_is_not_for_is_refused(
    make_cnn: Callable, make_mlp: Callable, make_samples: Callable, make_context: Callable
) -> None:
    cnn, mlp = make_cnn(), make_mlp()
    context = make_context(make_samples(mlp))
    reason = "most weights are in convolutions"
    assert WeightOnly().requires(onnx.load(cnn.path), context) == reason
    engine = dataclasses.replace(context.target.engine, name="tensorrt")
    other = dataclasses.replace(context, target=dataclasses.replace(context.target, engine=engine))
    proto = onnx.load(mlp.path)
    assert WeightOnly().requires(proto, other) == "tensorrt does not know MatMulNBits"
    after, _ = apply((WeightOnly(),), proto, context)
    assert WeightOnly().requires(after, context) == "the model is quantized already"
    del proto.graph.initializer[:]
    assert WeightOnly().requires(proto, context) == "no matrix product has constant weights"


def test_small_weights_are_not_worth_it(
    make_mlp: Callable, make_samples: Callable, make_context: Callable
) -> None:
    model = make_mlp(width=16)
    _, (report,) = apply((WeightOnly(),), onnx.load(model.path), make_context(make_samples(model)))
    assert (report.status, report.notes) == ("unchanged", ("no weight is large enough",))


def test_a_model_that_did_not_shrink_breaks_the_promise(
    make_mlp: Callable, make_samples: Callable, make_context: Callable
) -> None:
    model = make_mlp()
    proto, context = onnx.load(model.path), make_context(make_samples(model))
    with pytest.raises(PassBroken, match="no weight is in blocks"):
        WeightOnly().ensures(proto, proto, context)
    after, _ = apply((WeightOnly(),), proto, context)
    with pytest.raises(PassBroken, match="the model did not become smaller"):
        WeightOnly().ensures(after, after, context)
