"""Operators that a TensorRT lacks say the same in those it has."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from packager.backends.tensorrt.lower import fit
from packager.errors import ModelUnsupported
from packager.passes.contract import opset_of
from tests.unit.packager.backends.tensorrt.onnx_drawing import (
    answers,
    graph_of,
    node,
    noise,
    operators,
    tensorrt,
)

OLD = tensorrt("8.5.2.2")
JETPACK_6 = tensorrt("10.3.0.30")


def check(model: Any, feeds: dict[str, Any], target: Any, *gone: str, atol: float = 2e-5) -> Any:
    """Fit a model; see that operators are gone and that its answers stay."""
    fitted = fit(model, target, samples=[feeds])
    assert not operators(fitted.model) & set(gone), operators(fitted.model)
    assert opset_of(fitted.model) <= target.max_opset
    assert fitted.model.ir_version <= target.max_ir_version
    onnx.checker.check_model(fitted.model, full_check=True)
    for wanted, got in zip(answers(model, feeds), answers(fitted.model, feeds), strict=True):
        assert wanted.dtype == got.dtype
        np.testing.assert_allclose(
            got.astype(np.float64), wanted.astype(np.float64), atol=atol, rtol=1e-4
        )
    return fitted


def one(
    operator: str,
    *shape: int,
    opset: int,
    constants: Any = None,
    withdrawn: bool = False,
    **attributes: Any,
) -> Any:
    names = " ".join(["x", *(constants or {})])
    return graph_of(
        [node(operator, names, "y", **attributes)],
        {"x": (np.float32, ["n", *shape])},
        {"y": (np.float32, ["n", *shape])},
        constants,
        opset=opset,
        withdrawn=withdrawn,
    )


@pytest.mark.parametrize("axis", [-1, 1, 2])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_layer_norm_before_tensorrt_8_6_is_written_out(axis: int, dtype: str) -> None:
    sizes = [5, 6][axis - 1 if axis > 0 else axis :]
    model = graph_of(
        [node("LayerNormalization", "x s b", "y", axis=axis, epsilon=1e-3)],
        {"x": (dtype, ["n", 5, 6])},
        {"y": (dtype, ["n", 5, 6])},
        {"s": noise(*sizes, dtype=dtype), "b": noise(*sizes, seed=1, dtype=dtype)},
    )
    feeds = {"x": noise(3, 5, 6, seed=2, dtype=dtype) * 4}
    check(model, feeds, OLD, "LayerNormalization", atol=2e-5 if dtype == "float32" else 1e-2)


def test_a_layer_norm_stays_where_tensorrt_has_it() -> None:
    model = one("LayerNormalization", 8, opset=17, constants={"s": np.ones(8, np.float32)}, axis=-1)
    fitted = fit(model, tensorrt("8.6.2.3"))
    assert "LayerNormalization" in operators(fitted.model)
    assert fitted.notes == ()


def test_outputs_behind_the_first_of_a_layer_norm_are_written_out() -> None:
    model = graph_of(
        [node("LayerNormalization", "x s", "y mean inverse", axis=-1)],
        {"x": (np.float32, ["n", 6])},
        dict.fromkeys(("y", "mean", "inverse"), (np.float32, None)),
        {"s": noise(6)},
    )
    feeds = {"x": noise(4, 6)}
    check(model, feeds, JETPACK_6, "LayerNormalization")


@pytest.mark.parametrize(("opset", "count"), [(18, 2), (21, 6)])
def test_a_group_norm_is_written_out_in_the_form_of_its_opset(opset: int, count: int) -> None:
    constants = {"s": noise(count), "b": noise(count, seed=1)}
    model = one(
        "GroupNormalization",
        6,
        4,
        5,
        opset=opset,
        constants=constants,
        withdrawn=opset < 21,
        num_groups=2,
    )
    feeds = {"x": noise(2, 6, 4, 5, seed=3)}
    # ONNX Runtime runs the form of opset 21 alone; the older one is compared by its definition.
    if opset == 21:
        check(model, feeds, OLD, "GroupNormalization")
        check(model, feeds, JETPACK_6, "GroupNormalization")
        return
    fitted = fit(model, OLD)
    x = feeds["x"].reshape(2, 2, -1)
    normal = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    wanted = normal * constants["s"][None, :, None] + constants["b"][None, :, None]
    np.testing.assert_allclose(
        answers(fitted.model, feeds)[0], wanted.reshape(2, 6, 4, 5), atol=2e-5
    )


def test_an_instance_norm_of_computed_scales_is_written_out() -> None:
    model = graph_of(
        [
            node("GlobalAveragePool", "x", "p"),
            node("Slice", "p zero one", "first"),
            node("Reshape", "first all", "s"),
            node("InstanceNormalization", "x s s", "y"),
        ],
        {"x": (np.float32, ["n", 3, 4, 5])},
        {"y": (np.float32, None)},
        {"zero": np.array([0]), "one": np.array([1]), "all": np.array([-1])},
    )
    check(model, {"x": noise(2, 3, 4, 5)}, OLD, "InstanceNormalization")


@pytest.mark.parametrize(
    ("operator", "opset", "attributes"),
    [
        ("Gelu", 20, {}),
        ("Gelu", 20, {"approximate": "tanh"}),
        ("Mish", 18, {}),
        ("HardSwish", 14, {}),
        ("Celu", 12, {"alpha": 0.7}),
        ("Swish", 24, {"alpha": 1.5}),
        ("Swish", 24, {}),
    ],
)
def test_activations_of_later_opsets_are_written_out(
    operator: str, opset: int, attributes: Any
) -> None:
    model = one(operator, 7, opset=opset, **attributes)
    target = tensorrt("8.5.2.2", max_opset=13) if opset == 14 else OLD
    gone = () if operator == "Celu" else (operator,)
    check(model, {"x": noise(3, 7) * 3}, target, *gone)


def test_an_rms_norm_is_written_out() -> None:
    model = one("RMSNormalization", 5, 8, opset=23, constants={"s": noise(8)})
    check(model, {"x": noise(3, 5, 8)}, JETPACK_6, "RMSNormalization")


def test_infinities_are_found_by_comparing() -> None:
    model = graph_of(
        [node("IsInf", "x", "y", detect_negative=0)],
        {"x": (np.float32, ["n"])},
        {"y": (np.bool_, ["n"])},
    )
    feeds = {"x": np.array([1, np.inf, -np.inf, np.nan], np.float32)}
    check(model, feeds, OLD, "IsInf")


ATTENTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "four axes": ({}, {}),
    "causal": ({"is_causal": 1}, {}),
    "scaled": ({"scale": 0.3}, {}),
    "bool mask": ({}, {"mask": np.tri(4, 6, dtype=bool)}),
    "float mask": ({}, {"mask": noise(2, 1, 4, 6)}),
    "shared heads": ({}, {"kv": 2}),
    "three axes": ({"q_num_heads": 4, "kv_num_heads": 2}, {"kv": 2}),
    "soft cap": ({"softcap": 2.0}, {}),
}


@pytest.mark.parametrize("form", ATTENTIONS)
def test_attention_is_written_out(form: str) -> None:
    attributes, more = ATTENTIONS[form]
    kv, size = more.get("kv", 4), 8
    feeds = {
        "q": noise(2, 4, 4, size),
        "k": noise(2, kv, 6, size, seed=1),
        "v": noise(2, kv, 6, size, seed=2),
    }
    if "q_num_heads" in attributes:
        feeds = {
            name: np.ascontiguousarray(value.transpose(0, 2, 1, 3)).reshape(2, value.shape[2], -1)
            for name, value in feeds.items()
        }
    names = "q k v"
    constants = {}
    if "mask" in more:
        names, constants = names + " mask", {"mask": more["mask"]}
    model = graph_of(
        [node("Attention", names, "y", **attributes)],
        {name: (np.float32, ["n", *value.shape[1:]]) for name, value in feeds.items()},
        {"y": (np.float32, None)},
        constants,
        opset=23,
    )
    check(model, feeds, JETPACK_6, "Attention", atol=5e-5)


def test_rotary_embeddings_are_written_by_their_definition() -> None:
    model = graph_of(
        [node("RotaryEmbedding", "x cos sin", "y")],
        {"x": (np.float32, [2, 3, 4, 8])},
        {"y": (np.float32, None)},
        {"cos": noise(2, 4, 4), "sin": noise(2, 4, 4, seed=1)},
        opset=23,
    )
    check(model, {"x": noise(2, 3, 4, 8)}, JETPACK_6, "RotaryEmbedding")


MICROSOFT: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "Gelu": ("x", {}, {}),
    "FastGelu": ("x b", {}, {"b": noise(8)}),
    "BiasGelu": ("x b", {}, {"b": noise(8)}),
    "QuickGelu": ("x", {"alpha": 1.702}, {}),
    "SkipLayerNormalization": (
        "x r s b",
        {"epsilon": 1e-5},
        {"r": noise(2, 4, 8), "s": noise(8), "b": noise(8)},
    ),
    "FusedMatMul": ("x w", {"transB": 1, "alpha": 0.5}, {"w": noise(6, 8)}),
    "MultiHeadAttention": ("x x x", {"num_heads": 2}, {}),
}


@pytest.mark.parametrize("operator", MICROSOFT)
def test_operators_of_onnx_runtime_are_written_in_those_of_onnx(operator: str) -> None:
    names, attributes, constants = MICROSOFT[operator]
    model = graph_of(
        [node(operator, names, "y", domain="com.microsoft", **attributes)],
        {"x": (np.float32, ["n", 4, 8])},
        {"y": (np.float32, ["n", 4, "size"])},
        constants,
        domains=("com.microsoft",),
    )
    check(model, {"x": noise(2, 4, 8, seed=5)}, OLD, f"com.microsoft.{operator}")


def test_an_operator_of_onnx_runtime_that_nothing_fits_is_refused_by_name() -> None:
    model = graph_of(
        [node("Inverse", "x", "y", domain="com.microsoft")],
        {"x": (np.float32, [4, 4])},
        {"y": (np.float32, [4, 4])},
        domains=("com.microsoft",),
    )
    with pytest.raises(ModelUnsupported, match=r"`n_y` is `Inverse`, an operator of ONNX Runtime"):
        fit(model, JETPACK_6)


def test_dynamic_int8_is_refused_with_what_is_taken() -> None:
    model = graph_of(
        [node("DynamicQuantizeLinear", "x", "q s z"), node("DequantizeLinear", "q s z", "y")],
        {"x": (np.float32, ["n", 4])},
        {"y": (np.float32, ["n", 4])},
    )
    with pytest.raises(ModelUnsupported, match="`n_q` is `DynamicQuantizeLinear`") as caught:
        fit(model, JETPACK_6)
    assert "int8-static" in str(caught.value.accepted)


def test_local_functions_are_put_in_place() -> None:
    body = onnx.helper.make_function(
        "mine", "Twice", ["a"], ["b"], [node("Add", "a a", "b")], [onnx.helper.make_opsetid("", 17)]
    )
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            [node("Twice", "x", "y", domain="mine")],
            "g",
            [onnx.helper.make_tensor_value_info("x", 1, ["n", 4])],
            [onnx.helper.make_tensor_value_info("y", 1, ["n", 4])],
        ),
        opset_imports=[onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("mine", 1)],
        functions=[body],
        ir_version=8,
    )
    check(model, {"x": noise(2, 4)}, OLD, "mine.Twice")


def test_double_is_computed_as_float_and_said() -> None:
    model = graph_of(
        [node("Mul", "x c", "d"), node("Cast", "d", "y", to=onnx.TensorProto.FLOAT)],
        {"x": (np.float64, ["n"])},
        {"y": (np.float32, ["n"])},
        {"c": np.array(1e300)},
    )
    fitted = fit(model, OLD)
    assert fitted.notes == ("double is computed as float32, as TensorRT has no double",)
    assert fitted.model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    (y,) = answers(fitted.model, {"x": np.array([0.0, 1e-38], np.float32)})
    np.testing.assert_allclose(y, [0.0, 3.4028], rtol=1e-3)


def test_the_same_model_gives_the_same_bytes() -> None:
    constants = {"s": noise(6), "b": noise(6)}
    model = one("GroupNormalization", 6, 4, opset=21, constants=constants, num_groups=2)
    before = model.SerializeToString(deterministic=True)
    made = [fit(model, OLD).model.SerializeToString(deterministic=True) for _ in range(2)]
    assert made[0] == made[1]
    assert model.SerializeToString(deterministic=True) == before
