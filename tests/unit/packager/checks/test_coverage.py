"""Activations that leave their calibrated range are found, counted and named."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from packager.checks.coverage import coverage
from packager.data import Samples
from packager.passes.clean_up import CleanUp
from packager.passes.contract import apply
from packager.passes.int8_static import Int8Static

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def scaled(samples: Samples, factor: float) -> Samples:
    return samples.map(lambda s: {name: (a * factor).astype(a.dtype) for name, a in s.items()})


@pytest.fixture
def quantized(
    tmp_path: Path, make_cnn: Callable, make_samples: Callable, make_context: Callable
) -> tuple[Path, Any]:
    model = make_cnn()
    context = make_context(make_samples(model))
    after, _ = apply((CleanUp(), Int8Static()), onnx.load(model.path), context)
    path = tmp_path / "quantized.onnx"
    onnx.save(after, path)
    return path, model


def test_the_share_is_what_tapping_each_tensor_counts(
    quantized: tuple[Path, Any], make_samples: Callable
) -> None:
    path, model = quantized
    samples = scaled(make_samples(model, 4, seed=5), 3.0)
    found = coverage(path, samples, threads=1)
    assert found
    assert [c.share for c in found] == sorted((c.share for c in found), reverse=True)
    proto = onnx.load(path)
    constants = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    for clipped in found:
        node = next(
            n
            for n in proto.graph.node
            if n.op_type == "QuantizeLinear" and n.input[0] == clipped.tensor
        )
        scale, zero = (constants[name] for name in node.input[1:3])
        limits = np.iinfo(zero.dtype)
        low = float(scale) * (limits.min - int(zero))
        high = float(scale) * (limits.max - int(zero))
        assert (clipped.low, clipped.high) == pytest.approx((low, high))
        tapped = onnx.ModelProto()
        tapped.CopyFrom(proto)
        if clipped.tensor not in {i.name for i in proto.graph.input}:
            tapped.graph.output.append(onnx.ValueInfoProto(name=clipped.tensor))
            session = onnxruntime.InferenceSession(
                tapped.SerializeToString(), providers=["CPUExecutionProvider"]
            )
            values = np.stack([session.run([clipped.tensor], s)[0] for s in samples])
        else:
            values = np.stack([s[clipped.tensor] for s in samples])
        step = float(scale)
        relu = _feeds_only_relu(proto, node)
        under = (values < low - step / 2) & (not relu)
        share = (under | (values > high + step / 2)).mean()
        assert clipped.share == pytest.approx(share, abs=2e-3)
        assert clipped.seen_high == pytest.approx(values.max(), rel=1e-3)
        assert clipped.seen_low == (0.0 if relu else pytest.approx(values.min(), rel=1e-3))


def _feeds_only_relu(proto: Any, quantize: Any) -> bool:
    (dequantize,) = (n for n in proto.graph.node if quantize.output[0] in n.input)
    return {n.op_type for n in proto.graph.node if dequantize.output[0] in n.input} == {"Relu"}


def test_the_calibration_data_itself_does_not_clip(
    quantized: tuple[Path, Any], make_samples: Callable
) -> None:
    path, model = quantized
    assert coverage(path, make_samples(model), threads=1) == ()


def test_the_sample_that_clips_most_is_named_and_no_file_is_left(
    quantized: tuple[Path, Any], make_samples: Callable
) -> None:
    path, model = quantized
    plain = make_samples(model, 3)
    samples = Samples(
        [lambda i=i: {"image": plain[i]["image"] * np.float32(8**(i == 1))} for i in range(3)],
        digest="d", origin="3 photos", kind="photos", names=("a.png", "night.png", "c.png"),
    )  # fmt: skip
    before = sorted(path.parent.iterdir())
    found = coverage(path, samples, threads=1, limit=2)
    assert len(found) == 2
    assert {clipped.sample for clipped in found} == {"night.png"}
    assert sorted(path.parent.iterdir()) == before


def test_a_float_model_has_nothing_that_clips(make_cnn: Callable, make_samples: Callable) -> None:
    model = make_cnn()
    assert coverage(model.path, make_samples(model), threads=1) == ()


def test_signed_and_wide_ranges_without_a_zero_point_are_read(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("QuantizeLinear", ["d", "s"], ["q2"]),
        helper.make_node("DequantizeLinear", ["q2", "s"], ["y"]),
    ]
    constants = [
        numpy_helper.from_array(np.float32(0.5), "s"),
        numpy_helper.from_array(np.int8(0), "z"),
    ]
    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [4]) for n in ("x", "y")]
    graph = helper.make_graph(nodes, "g", value[:1], value[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "m.onnx")
    x = np.array([-70.0, 63.6, 64.0, 1.0], np.float32)
    samples = Samples([lambda: {"x": x}], digest="d", origin="1 row", kind="npy")
    first, second = coverage(tmp_path / "m.onnx", samples, threads=1)
    # int8 holds -64 to 63.5, and half a step more rounds to its end; uint8 from 0 clips below.
    assert (first.tensor, first.low, first.high, first.share) == ("x", -64.0, 63.5, 0.5)
    assert (first.seen_low, first.seen_high) == (-70.0, 64.0)
    assert (second.tensor, second.low, second.share) == ("d", 0.0, 0.25)


@pytest.mark.parametrize(("opset", "most"), [(10, 6.0), (17, 6.0)])
def test_what_a_clip_behind_it_cuts_off_anyway_is_no_loss(
    tmp_path: Path, opset: int, most: float
) -> None:
    ends = {"min": 0.0, "max": most} if opset < 11 else {}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("Clip", ["d"] if ends else ["d", "low", "high"], ["y"], **ends),
    ]
    constants = [
        numpy_helper.from_array(np.float32(most / 255), "s"),
        numpy_helper.from_array(np.uint8(0), "z"),
        numpy_helper.from_array(np.float32(0), "low"),
        numpy_helper.from_array(np.float32(most), "high"),
    ]
    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [3]) for n in ("x", "y")]
    graph = helper.make_graph(
        nodes, "g", value[:1], value[1:], constants[:2] if ends else constants
    )
    ids = [helper.make_opsetid("", opset)]
    onnx.save(helper.make_model(graph, opset_imports=ids, ir_version=8), tmp_path / "m.onnx")
    x = np.array([-5.0, 100.0, 3.0], np.float32)
    samples = Samples([lambda: {"x": x}], digest="d", origin="1 row", kind="npy")
    assert coverage(tmp_path / "m.onnx", samples, threads=1) == ()
