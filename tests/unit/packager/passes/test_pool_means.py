"""Means over all positions become global poolings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from packager.data import Samples
from packager.passes.contract import apply
from packager.passes.graph import op_types
from packager.passes.pool_means import PoolMeans
from packager.passes.quantizer import name_nodes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def model_with_mean(
    axes: Sequence[int] | None, *, keepdims: int = 1, opset: int = 18, rank: int = 4,
    dtype: int = onnx.TensorProto.FLOAT,
) -> Any:  # fmt: skip
    """Return a graph that takes the mean of `x` [2, 3, 5, …] over some axes."""
    shape = [2, 3, 5, 4, 6][:rank]
    inputs, attributes, held = ["x"], {"keepdims": keepdims}, []
    if axes is not None and opset < 18:
        attributes["axes"] = list(axes)
    elif axes is not None:
        held = [numpy_helper.from_array(np.array(axes, np.int64), "axes")]
        inputs = ["x", "axes"]
    graph = helper.make_graph(
        [helper.make_node("ReduceMean", inputs, ["y"], name="mean", **attributes)],
        "means",
        [helper.make_tensor_value_info("x", dtype, shape)],
        [helper.make_tensor_value_info("y", dtype, None)],
        held,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    return onnx.shape_inference.infer_shapes(model)


def values(model: Any) -> np.ndarray:
    """Return random values for `x`."""
    shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    kind = helper.tensor_dtype_to_np_dtype(model.graph.input[0].type.tensor_type.elem_type)
    return (np.random.default_rng(0).standard_normal(shape) * 9).astype(kind)


@pytest.fixture
def pool(make_context: Callable) -> Callable:
    """Return a function that applies the pass, and gives the model and the report."""

    def run(model: Any) -> tuple[Any, Any]:
        sample = {"x": values(model)}
        if len(model.graph.input) > 1:
            sample["axes"] = np.array([2, 3])
        samples = Samples([lambda: sample] * 2, digest="x", origin="x", kind="npz")
        after, (report,) = apply((PoolMeans(),), model, make_context(samples))
        return after, report

    return run


def answer(model: Any, x: np.ndarray) -> np.ndarray:
    """Return what ONNX Runtime answers."""
    import onnxruntime

    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return np.asarray(session.run(None, {"x": x})[0])


@pytest.mark.parametrize("opset", [13, 18])
@pytest.mark.parametrize(("rank", "axes"), [(4, (2, 3)), (4, (-1, -2)), (3, (2,)), (5, (4, 2, -2))])
@pytest.mark.parametrize("keepdims", [0, 1])
def test_a_mean_over_all_positions_is_pooled(
    pool: Callable, opset: int, rank: int, axes: Sequence[int], keepdims: int
) -> None:
    model = model_with_mean(axes, keepdims=keepdims, opset=opset, rank=rank)
    after, report = pool(model)
    assert report.status == "applied", report
    assert op_types(after) == {"GlobalAveragePool"} | (set() if keepdims else {"Flatten"})
    x = values(model)
    expected = answer(model, x)
    assert answer(after, x).shape == expected.shape
    np.testing.assert_allclose(answer(after, x), expected, atol=1e-5)


@pytest.mark.parametrize(
    "model",
    [
        model_with_mean((1, 2)),
        model_with_mean((3,)),
        model_with_mean((1, 2, 3)),
        model_with_mean(None),
        model_with_mean((1,), rank=2),
        model_with_mean((2, 3), dtype=onnx.TensorProto.INT32),
    ],
    ids=["channels", "one-of-two", "channels-too", "everything", "no-positions", "integers"],
)
def test_another_mean_stays(pool: Callable, model: Any) -> None:
    after, report = pool(model)
    assert report.status == "unchanged"
    assert after is model


def test_axes_that_are_computed_stay(pool: Callable) -> None:
    model = model_with_mean((2, 3))
    del model.graph.initializer[:]
    model.graph.input.append(helper.make_tensor_value_info("axes", onnx.TensorProto.INT64, [2]))
    _, report = pool(model)
    assert report.status == "unchanged"


def test_a_layer_keeps_its_name(pool: Callable) -> None:
    after, _ = pool(model_with_mean((2, 3), keepdims=0))
    name_nodes(after)
    assert [node.name for node in after.graph.node] == ["mean", "y_flat"]
