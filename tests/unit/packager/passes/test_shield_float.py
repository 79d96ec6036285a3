"""Float layers among quantized ones stay float when ONNX Runtime loads the model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest

from packager.model import Dim
from packager.passes.contract import apply
from packager.passes.int8_static import Int8Static
from packager.passes.quantizer import name_nodes
from packager.passes.revert_layers import revert_layers
from packager.passes.shield_float import shield_float_layers

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

BATCH = Dim(name="batch", min=1, max=8, opt=1)


def answers(model: Any, samples: Any, *, optimized: bool) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = (
        levels.ORT_ENABLE_ALL if optimized else levels.ORT_DISABLE_ALL
    )
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return np.stack([session.run(None, sample)[0].ravel() for sample in samples])


def sqnr_db(want: Any, have: Any) -> float:
    noise = float(((want.astype(np.float64) - have) ** 2).sum())
    return 10 * np.log10(float((want.astype(np.float64) ** 2).sum()) / max(noise, 1e-30))


@pytest.fixture
def make_reverted(
    drawing: Any, make_spec: Callable, tmp_path: Path, make_samples: Callable,
    make_context: Callable,
) -> Callable:  # fmt: skip
    """Make three layers; the middle one is float again, one channel far larger, then clipped."""

    def make(operator: str) -> tuple[Any, Any, str, list[Any]]:
        d = drawing()

        def uneven(*shape: int, axis: int) -> str:
            values = d.random.standard_normal(shape).astype(np.float32)
            np.moveaxis(values, axis, 0)[0] *= 1000
            return d.constant(values)

        limits = [d.constant(np.float32(value)) for value in (0, 6)]
        value = d.add("Relu", d.add("Conv", "x", d.weight(12, 3, 1, 1)))
        if operator == "Gemm":
            value = d.add("Flatten", d.add("GlobalAveragePool", value))
        middle = {
            "Conv": lambda: d.add("Conv", value, uneven(12, 1, 3, 3, axis=0), group=12),
            "ConvTranspose": lambda: d.add("ConvTranspose", value, uneven(12, 8, 2, 2, axis=1)),
            "Gemm": lambda: d.add("Gemm", value, uneven(12, 12, axis=1), d.weight(12)),
        }[operator]()
        value = d.add("Clip", middle, *limits)
        if operator == "Gemm":
            d.add("MatMul", value, d.weight(12, 8), out="y")
        else:
            width = 12 if operator == "Conv" else 8
            d.add("GlobalAveragePool", d.add("Conv", value, d.weight(8, width, 1, 1)), out="y")
        shape = (8,) if operator == "Gemm" else (8, 1, 1)
        model = d.save(
            tmp_path / "uneven.onnx",
            (make_spec("x", "float32", BATCH, 3, 4, 4),),
            make_spec("y", "float32", BATCH, *shape),
        )
        data = make_samples(model)
        reference = onnx.load(model.path)
        name_nodes(reference)
        quantized, (report,) = apply((Int8Static(),), reference, make_context(data))
        assert report.status == "applied"
        return quantized, reference, f"n_{middle}", [data[i] for i in range(4)]

    return make


@pytest.mark.parametrize("operator", ["Conv", "ConvTranspose", "Gemm"])
def test_the_engine_does_not_quantize_a_shielded_layer(
    make_reverted: Callable, operator: str
) -> None:
    quantized, reference, name, samples = make_reverted(operator)
    bare = revert_layers(quantized, reference, [name], shield=False)
    shielded = onnx.ModelProto()
    shielded.CopyFrom(bare)
    assert shield_float_layers(shielded) == (name,)
    onnx.checker.check_model(shielded, full_check=True)
    exact = answers(bare, samples, optimized=False)
    assert np.array_equal(answers(shielded, samples, optimized=False), exact)
    assert sqnr_db(exact, answers(shielded, samples, optimized=True)) > 20
    # If this fails, the engine has mended its ways: the shield can go.
    assert sqnr_db(exact, answers(bare, samples, optimized=True)) < 10


def test_a_second_call_and_a_fully_quantized_model_change_nothing(make_reverted: Callable) -> None:
    quantized, reference, name, _ = make_reverted("Conv")
    shielded = revert_layers(quantized, reference, [name])
    for model in (shielded, quantized, reference):
        before = model.SerializeToString(deterministic=True)
        assert shield_float_layers(model) == ()
        assert model.SerializeToString(deterministic=True) == before
