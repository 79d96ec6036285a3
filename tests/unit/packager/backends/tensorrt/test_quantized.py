"""Models that came in quantized by ONNX Runtime become what TensorRT takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from packager.artifact import Candidate
from packager.backends.onnxruntime import build
from packager.backends.tensorrt.lower import fit
from packager.backends.tensorrt.support import support_map
from packager.checks.parity import cosine_similarity
from packager.console import Silent
from packager.importers.load import import_model
from packager.pipeline.cache import StageCache
from packager.pipeline.engines import engine_stage
from packager.recipe import Recipe
from packager.search.choose import AS_IT_CAME
from packager.target import find_target
from tests.unit.packager.backends.tensorrt.onnx_drawing import (
    answers,
    graph_of,
    node,
    noise,
    tensorrt,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

RTX = tensorrt("rtx")
JETPACK_6 = tensorrt("10.3.0.30")


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """Gives a few photos of noise."""

    def __init__(self, count: int = 8) -> None:
        self.left = [{"image": noise(2, 3, 16, 16, seed=at)} for at in range(count)]

    def get_next(self) -> Any:
        return self.left.pop() if self.left else None


def quantized(make_cnn: Callable[..., Any], tmp_path: Path, **settings: Any) -> Path:
    out = tmp_path / "quantized.onnx"
    quantize_static(
        make_cnn(opset=17).path,
        out,
        Reader(),
        quant_format=QuantFormat.QDQ,
        weight_type=QuantType.QInt8,
        **settings,
    )
    return out


def kinds(model: Any) -> set[str]:
    """Return the dtypes of all zero points and stored numbers of Q/DQ."""
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    found = set()
    for each in model.graph.node:
        if each.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero = constants[each.input[2]]
            assert not zero.any()
            found |= {str(zero.dtype)}
            if each.input[0] in constants:
                found |= {str(constants[each.input[0]].dtype)}
    return found


FORMS = {
    "the default": {"activation_type": QuantType.QUInt8},
    "uint8, symmetric": {
        "activation_type": QuantType.QUInt8,
        "extra_options": {"ActivationSymmetric": True},
    },
    "per channel": {"activation_type": QuantType.QUInt8, "per_channel": True},
    "int8, asymmetric": {"activation_type": QuantType.QInt8},
}


@pytest.mark.parametrize("form", FORMS)
def test_what_onnx_runtime_quantizes_becomes_symmetric_int8_that_the_parser_takes(
    form: str, make_cnn: Callable[..., Any], tmp_path: Path
) -> None:
    path = quantized(make_cnn, tmp_path, **FORMS[form])
    model = onnx.load(path)
    assert kinds_of_bias(model), "the quantizer's default has quantized biases"
    fitted = fit(model, RTX)
    assert kinds(fitted.model) == {"int8"}
    feeds = {"image": noise(4, 3, 16, 16, seed=99)}
    wanted, got = answers(model, feeds)[0], answers(fitted.model, feeds)[0]
    for row, other in zip(wanted, got, strict=True):
        assert cosine_similarity(row.ravel(), other.ravel()) > 0.995
    assert any("quantized bias made float" in note for note in fitted.notes)
    out = tmp_path / "fitted.onnx"
    onnx.save(fitted.model, out)
    support = support_map(out)
    if support is None:
        pytest.skip("tensorrt_rtx is not installed")
    assert support.parsed, support


def kinds_of_bias(model: Any) -> bool:
    return any(t.data_type == onnx.TensorProto.INT32 for t in model.graph.initializer)


def q_dq(zero: Any, scale: float = 0.05) -> Any:
    return graph_of(
        [node("QuantizeLinear", "x s z", "q"), node("DequantizeLinear", "q s z", "y")],
        {"x": (np.float32, ["n"])},
        {"y": (np.float32, ["n"])},
        {"s": np.float32(scale), "z": zero},
    )


def test_a_zero_point_of_128_is_one_of_0_number_for_number() -> None:
    model = q_dq(np.uint8(128))
    fitted = fit(model, JETPACK_6)
    assert fitted.notes == ("1 × Q/DQ made symmetric int8, exactly",)
    feeds = {"x": np.linspace(-9, 9, 1001).astype(np.float32)}
    assert np.array_equal(answers(model, feeds)[0], answers(fitted.model, feeds)[0])


@pytest.mark.parametrize("zero", [np.uint8(0), np.uint8(37), np.int8(-20), np.uint8(255)])
def test_another_zero_point_keeps_its_clamp_and_says_how_coarse_it_became(zero: Any) -> None:
    model = q_dq(zero)
    fitted = fit(model, JETPACK_6)
    (note,) = fitted.notes
    assert note.startswith("1 × Q/DQ made symmetric int8, in steps up to ")
    x = np.linspace(-20, 20, 1001).astype(np.float32)
    wanted, got = answers(model, {"x": x})[0], answers(fitted.model, {"x": x})[0]
    # Half a step of either grid, and the range's own half step at its ends.
    assert np.abs(wanted - got).max() <= 0.05 * 0.5 + 0.05 * 2.01 * 0.5 + 1e-6
    assert wanted.min() - 0.06 <= got.min()
    assert got.max() <= wanted.max() + 0.06


def test_a_relu_that_is_there_already_is_not_doubled() -> None:
    model = graph_of(
        [
            node("Relu", "x", "r"),
            node("QuantizeLinear", "r s z", "q"),
            node("DequantizeLinear", "q s z", "y"),
        ],
        {"x": (np.float32, ["n"])},
        {"y": (np.float32, ["n"])},
        {"s": np.float32(0.1), "z": np.uint8(0)},
    )
    fitted = fit(model, JETPACK_6)
    assert [n.op_type for n in fitted.model.graph.node].count("Relu") == 1


def test_a_weight_with_zero_points_per_channel_is_shifted_exactly() -> None:
    stored = np.array([[100, 160], [3, 90]], np.uint8)
    model = graph_of(
        [node("DequantizeLinear", "w s z", "d", axis=0), node("MatMul", "x d", "y")],
        {"x": (np.float32, ["n", 2])},
        {"y": (np.float32, ["n", 2])},
        {"w": stored, "s": np.array([0.1, 0.2], np.float32), "z": np.array([120, 50], np.uint8)},
    )
    fitted = fit(model, JETPACK_6)
    assert kinds(fitted.model) == {"int8"}
    feeds = {"x": noise(3, 2)}
    assert np.array_equal(answers(model, feeds)[0], answers(fitted.model, feeds)[0])


def test_a_quantized_output_stays_for_the_cpu() -> None:
    model = graph_of(
        [node("Relu", "x", "r"), node("QuantizeLinear", "r s z", "y")],
        {"x": (np.float32, ["n"])},
        {"y": (np.uint8, ["n"])},
        {"s": np.float32(0.1), "z": np.uint8(3)},
    )
    fitted = fit(model, JETPACK_6)
    assert fitted.notes == ()
    feeds = {"x": noise(20)}
    assert np.array_equal(answers(model, feeds)[0], answers(fitted.model, feeds)[0])


def test_an_engine_is_asked_for_the_precision_that_a_model_came_in(
    make_cnn: Callable[..., Any], tmp_path: Path
) -> None:
    target = find_target("jetson-xavier-nx")
    path = quantized(make_cnn, tmp_path, **FORMS["the default"])
    recipe = Recipe(name="quantized", model=str(path))
    (tmp_path / "imported").mkdir()
    model = import_model(recipe, workdir=tmp_path / "imported", reporter=Silent())
    came = Candidate(name=AS_IT_CAME, path=model.path, size_bytes=1, verdict="chosen", reason="")
    artifact = engine_stage(
        build(model, [came], target=target, recipe=recipe, workdir=tmp_path),
        target=target, recipe=recipe, cache=StageCache(tmp_path / "cache"), work=tmp_path,
        reporter=Silent(),
    )  # fmt: skip
    table = artifact.tensorrt
    assert table is not None
    # TensorRT 8.5 takes Q/DQ only with this flag, and a loss is only looked for in what is named.
    assert (table["precision"], table["flags"]) == ("int8-static", ["int8"])
    assert set(table["products"]) == {
        name.name for name in onnx.load(model.path).graph.node if name.op_type in ("Conv", "Gemm")
    }
