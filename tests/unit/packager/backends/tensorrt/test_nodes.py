"""Each operator of a model's parts is told with its place, its precision, and what a DLA says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from packager.backends.tensorrt.nodes import (
    Accelerator,
    NodeRow,
    counts_by_precision,
    layer_table,
    products_in,
    summary_rows,
    table_rows,
)
from packager.errors import ModelUnsupported

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from packager.model import Model

GPU = Accelerator(compute_capability="8.9")
ORIN = Accelerator(compute_capability="8.7", has_dla=True)
FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16


def save(
    path: Path,
    nodes: Sequence[Any],
    inputs: dict[str, tuple[int, Sequence[Any]]],
    outputs: dict[str, tuple[int, Sequence[Any]]],
    weights: dict[str, Any] | None = None,
) -> Path:
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info(name, *kind) for name, kind in inputs.items()],
        [helper.make_tensor_value_info(name, *kind) for name, kind in outputs.items()],
        [
            numpy_helper.from_array(np.asarray(array), name)
            for name, array in (weights or {}).items()
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    onnx.save(model, path)
    return path


def node(operator: str, inputs: str, outputs: str, **attributes: Any) -> Any:
    return helper.make_node(
        operator, inputs.split(" "), outputs.split(" "), name=f"n_{outputs}", **attributes
    )


def quantized(model: Model, path: Path) -> Path:
    """Quantize a network as TensorRT takes it, with ONNX Runtime's own tool."""
    from onnxruntime import quantization as tool

    shape = [1, *(dim.size for dim in model.signature.inputs[0].shape[1:])]
    rows = iter([
        {"image": np.random.default_rng(i).random(shape, np.float32) - 0.5} for i in range(4)
    ])  # fmt: skip

    class Reader(tool.CalibrationDataReader):
        def get_next(self) -> Any:
            return next(rows, None)

    tool.quantize_static(
        str(model.path), str(path), Reader(), quant_format=tool.QuantFormat.QDQ,
        activation_type=tool.QuantType.QInt8, weight_type=tool.QuantType.QInt8,
        extra_options={"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False,
                       "QDQKeepRemovableActivations": True},
    )  # fmt: skip
    return path


def precisions(rows: Sequence[NodeRow]) -> dict[str, str]:
    return {row.node: row.precision for row in rows}


def test_a_quantized_network_is_told_in_eight_bits(
    make_cnn: Callable[..., Model], tmp_path: Path
) -> None:
    rows = layer_table(quantized(make_cnn(layers=2), tmp_path / "q.onnx"), accelerator=GPU)
    assert {row.operator for row in rows}.isdisjoint(("QuantizeLinear", "DequantizeLinear"))
    told = {(row.operator, row.precision) for row in rows}
    assert ("Conv", "int8") in told
    assert ("Gemm", "int8") in told
    assert ("GlobalAveragePool", "int8") in told
    assert ("Conv", "fp32") not in told
    assert {row.runs_on for row in rows} == {"GPU"}
    assert counts_by_precision(rows)["int8"] >= 4
    # the same network in float
    floats = layer_table(make_cnn(layers=2).path, accelerator=GPU)
    assert counts_by_precision(floats) == {"fp32": len(floats)}


def test_a_layer_left_in_float_between_quantized_ones_is_told(tmp_path: Path) -> None:
    scale, zero = np.float32(0.1), np.int8(0)
    weight = np.ones((4, 4), np.int8)
    path = save(
        tmp_path / "m.onnx",
        [
            node("QuantizeLinear", "x s z", "xq"),
            node("DequantizeLinear", "xq s z", "xd"),
            node("DequantizeLinear", "w s z", "wd"),
            node("Transpose", "wd", "wt", perm=[1, 0]),
            node("MatMul", "xd wt", "a"),
            node("Relu", "a", "b"),
            node("QuantizeLinear", "b s z", "bq"),
            node("DequantizeLinear", "bq s z", "bd"),
            # its weight is float: it computes in float
            node("MatMul", "bd f", "c"),
            # one branch comes of an eight-bit product, the sum is quantized: eight bits
            node("MatMul", "xd wt", "a2"),
            node("Add", "a2 bd", "d"),
            node("QuantizeLinear", "d s z", "dq"),
            node("DequantizeLinear", "dq s z", "dd"),
            # read by a float operator as well, so no quantizer takes all of it
            node("Add", "dd bd", "e"),
            node("Softmax", "e", "g"),
        ],
        {"x": (FLOAT, [2, 4])},
        {"c": (FLOAT, [2, 4]), "g": (FLOAT, [2, 4])},
        {"s": scale, "z": zero, "w": weight, "f": np.ones((4, 4), np.float32)},
    )
    found = precisions(layer_table(path))
    # the weights' own Transpose is folded away
    assert found == {
        "n_a": "int8", "n_b": "int8", "n_c": "fp32", "n_a2": "int8", "n_d": "int8",
        "n_e": "fp32", "n_g": "fp32",
    }  # fmt: skip


def test_the_products_in_a_precision_are_those_that_an_engine_must_not_lose(
    make_cnn: Callable[..., Model], tmp_path: Path
) -> None:
    from runtime.nvidia.inspection import lost_precision

    path = quantized(make_cnn(layers=2), tmp_path / "q.onnx")
    names = products_in(path, "int8")
    assert len(names) == 3
    assert products_in(path, "fp16") == ()

    def engine(*types: str) -> list[dict[str, Any]]:
        return [
            {"Name": f"w + {name}", "LayerType": "CaskConvolution", "Weights": {"Type": kind}}
            for name, kind in zip(names, types, strict=True)
        ]

    assert lost_precision("int8-static", engine("Int8", "Int8", "Int8"), names) is None
    told = lost_precision("int8-static", engine("Int8", "Float", "Int8"), names)
    assert told is not None
    assert names[1] in told
    # without the names, an engine that is mixed could be mixed on purpose
    assert lost_precision("int8-static", engine("Int8", "Float", "Int8")) is None


@pytest.mark.parametrize(
    ("kind", "word"),
    [(FLOAT, "fp32"), (HALF, "fp16"), (TensorProto.BFLOAT16, "bf16"), (TensorProto.DOUBLE, "fp64"),
     (TensorProto.INT64, "int64")],
)  # fmt: skip
def test_the_type_of_its_values_is_a_float_operators_precision(
    kind: int, word: str, tmp_path: Path
) -> None:
    path = save(
        tmp_path / "m.onnx",
        [node("Add", "x x", "a"), node("Shape", "a", "y")],
        {"x": (kind, ["n"])},
        {"y": (TensorProto.INT64, [1])},
    )
    assert precisions(layer_table(path)) == {"n_a": word, "n_y": "int64"}


def test_the_parts_come_in_their_order_with_where_they_run(tmp_path: Path) -> None:
    head = save(tmp_path / "h.onnx", [node("Cast", "p", "x", to=FLOAT)],
                {"p": (TensorProto.UINT8, [1])}, {"x": (FLOAT, [1])})  # fmt: skip
    core = save(tmp_path / "c.onnx", [node("Add", "x x", "a"), node("Add", "a x", "y")],
                {"x": (FLOAT, [1])}, {"y": (FLOAT, [1])})  # fmt: skip
    tail = save(tmp_path / "t.onnx", [helper.make_node("Neg", ["y"], ["z"])],
                {"y": (FLOAT, [1])}, {"z": (FLOAT, [1])})  # fmt: skip
    rows = layer_table(core, {"tail": tail, "head": head}, accelerator=GPU)
    assert [(row.part, row.operator, row.runs_on) for row in rows] == [
        ("head", "Cast", "CPU"), ("core", "Add", "GPU"), ("core", "Add", "GPU"),
        ("tail", "Neg", "CPU"),
    ]  # fmt: skip
    assert rows[-1].node == "#0"
    assert [*summary_rows(rows)] == [
        ("runs on", "operator", "precision", "count"),
        ("CPU (head)", "Cast", "fp32", "1"),
        ("GPU", "Add", "fp32", "2"),
        ("CPU (tail)", "Neg", "fp32", "1"),
    ]
    assert [*table_rows(rows)][:2] == [
        ("node", "operator", "runs on", "precision"),
        ("n_x", "Cast", "CPU (head)", "fp32"),
    ]
    assert rows[0].to_json() == {
        "node": "n_x", "operator": "Cast", "part": "head", "runs_on": "CPU", "precision": "fp32",
    }  # fmt: skip
    # where there is no accelerator the CPU runs the core as well
    assert {row.runs_on for row in layer_table(core)} == {"CPU"}


HALF_IMAGE = (HALF, [1, 8, 16, 16])


def half(*shape: int) -> Any:
    return np.ones(shape, np.float16)


def ints(*numbers: int) -> Any:
    return np.array(numbers, np.int64)


def first_reason(
    tmp_path: Path,
    drawn: Any,
    weights: dict[str, Any] | None = None,
    *,
    shape: Sequence[Any] = (1, 8, 16, 16),
    kind: int = HALF,
    accelerator: Accelerator = ORIN,
    rank: int = 4,
) -> str:
    path = save(
        tmp_path / "m.onnx", [drawn], {"x": (kind, shape)}, {"y": (kind, [None] * rank)}, weights
    )
    (row,) = layer_table(path, accelerator=accelerator)
    assert row.dla is not None
    return row.dla


@pytest.mark.parametrize(
    ("drawn", "weights"),
    [
        (node("Relu", "x", "y"), {}),
        (node("Sigmoid", "x", "y"), {}),
        (node("Clip", "x lo hi", "y"), {"lo": half(1)[0] * 0, "hi": half(1)[0] * 6}),
        (node("LeakyRelu", "x", "y", alpha=0.1), {}),
        (node("Add", "x b", "y"), {"b": half(8, 1, 1)}),
        (node("Conv", "x w", "y", pads=[1, 1, 1, 1]), {"w": half(4, 8, 3, 3)}),
        (node("ConvTranspose", "x w", "y", strides=[2, 2]), {"w": half(8, 4, 2, 2)}),
        (node("MaxPool", "x", "y", kernel_shape=[2, 2], strides=[2, 2]), {}),
        (node("Concat", "x x", "y", axis=1), {}),
        (node("Softmax", "x", "y", axis=1), {}),
        (node("Transpose", "x", "y", perm=[0, 2, 3, 1]), {}),
        (node("Slice", "x a b c", "y"), {"a": ints(0), "b": ints(4), "c": ints(1)}),
        (node("Resize", "x  sc", "y"), {"sc": np.array([1, 1, 2, 2], np.float32)}),
        (node("LRN", "x", "y", size=5), {}),
    ],
)
def test_what_the_dla_is_documented_to_run_is_a_candidate(
    drawn: Any, weights: dict[str, Any], tmp_path: Path
) -> None:
    assert first_reason(tmp_path, drawn, weights) == ""


@pytest.mark.parametrize(
    ("drawn", "weights", "reason"),
    [
        (node("Erf", "x", "y"), {}, "the DLA has no such layer"),
        (node("Clip", "x lo hi", "y"), {"lo": half(1)[0], "hi": half(1)[0] * 6}, "clips from 0"),
        (node("Clip", "x", "y"), {}, "clips from 0 to a bound of 1 to 127"),
        (node("LeakyRelu", "x", "y", alpha=-1.0), {}, "slope may not be negative"),
        (node("PRelu", "x x", "y"), {}, "slope has to be a constant"),
        (node("Conv", "x w", "y", pads=[9] * 4), {"w": half(4, 8, 3, 3)}, "smaller than the ker"),
        (node("Conv", "x w", "y", strides=[9, 9]), {"w": half(4, 8, 3, 3)}, "strides of 1 to 8"),
        (node("Conv", "x w", "y", pads=[17] * 4), {"w": half(4, 8, 33, 33)}, "kernels of 1 to 32"),
        (node("Conv", "x w", "y", pads=[99] * 4, dilations=[33, 33]), {"w": half(4, 8, 3, 3)},
         "padding of 0 to 31"),
        (node("Conv", "x x", "y", kernel_shape=[16, 16]), {}, "weight has to be a constant"),
        (node("ConvTranspose", "x w", "y", pads=[1] * 4), {"w": half(8, 4, 3, 3)}, "without padd"),
        (node("ConvTranspose", "x w", "y", group=2), {"w": half(8, 4, 3, 3)}, "without groups"),
        (node("ConvTranspose", "x w", "y"), {"w": half(8, 4, 23, 23)}, "kernels of 1 to 22"),
        (node("AveragePool", "x", "y", kernel_shape=[9, 9]), {}, "windows of 1 to 8"),
        (node("MaxPool", "x", "y", kernel_shape=[2, 2], dilations=[2, 2]), {}, "without dilations"),
        (node("GlobalAveragePool", "x", "y"), {}, "windows of 1 to 8"),
        (node("Concat", "x x", "y", axis=2), {}, "joins channels only"),
        (node("Concat", "x", "y", axis=1), {}, "two inputs or more"),
        (node("LRN", "x", "y", size=4), {}, "windows of 3, 5, 7 or 9"),
        (node("Transpose", "x", "y", perm=[1, 0, 2, 3]), {}, "may not move the batch"),
        (node("Resize", "x  sc", "y"), {"sc": np.array([1, 1, 1.5, 2], np.float32)}, "whole fact"),
        (node("Resize", "x  sc", "y", mode="linear"), {"sc": np.array([1, 1, 8, 8], np.float32)},
         "factors of 1 to 4"),
        (node("Resize", "x  sc", "y", mode="cubic"), {"sc": np.array([1, 1, 2, 2], np.float32)},
         "nearest or linear"),
    ],
)  # fmt: skip
def test_what_the_dla_would_not_run_is_told_with_the_reason(
    drawn: Any, weights: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    assert reason in first_reason(tmp_path, drawn, weights)


def test_sizes_precision_and_the_module_decide_as_well(tmp_path: Path) -> None:
    relu = node("Relu", "x", "y")
    batch = first_reason(tmp_path, relu, shape=("n", 8, 4, 4))
    assert batch == "the sizes of `x` are not fixed"
    flat = first_reason(tmp_path, relu, shape=(1, 8), rank=2)
    assert flat == "`x` has 2 axes, and the DLA takes images: 4"
    large = first_reason(tmp_path, relu, shape=(1, 8, 1, 8193))
    assert large == "`x` is larger than 4096 × 8192 × 8192 × 8192"
    assert first_reason(tmp_path, relu, kind=FLOAT) == (
        "the DLA computes in fp16 and int8, not in fp32"
    )
    softmax = node("Softmax", "x", "y", axis=1)
    xavier = Accelerator(compute_capability="7.2", has_dla=True)
    assert first_reason(tmp_path, softmax, accelerator=xavier) == "on Orin, not on Xavier"
    wide = first_reason(tmp_path, softmax, shape=(1, 1025, 2, 1))
    assert wide == "over 1024 elements at most"
    assert first_reason(tmp_path, softmax, shape=(1, 1025, 1, 1)) == ""


def test_an_engine_for_the_dla_runs_candidates_there_and_the_others_on_the_gpu(
    tmp_path: Path,
) -> None:
    path = save(
        tmp_path / "m.onnx",
        [node("Relu", "x", "a"), node("Erf", "a", "y")],
        {"x": HALF_IMAGE},
        {"y": HALF_IMAGE},
    )
    uses = Accelerator(compute_capability="8.7", has_dla=True, uses_dla=True)
    rows = layer_table(path, accelerator=uses)
    assert [row.runs_on for row in rows] == ["DLA", "GPU"]
    assert [*table_rows(rows)] == [
        ("node", "operator", "runs on", "precision", "DLA"),
        ("n_a", "Relu", "DLA", "fp16", "could run it"),
        ("n_y", "Erf", "GPU", "fp16", "the DLA has no such layer"),
    ]
    assert rows[0].to_json()["dla"] == ""


def test_operators_in_branches_are_read_and_count_as_readers(tmp_path: Path) -> None:
    out = helper.make_tensor_value_info("o", FLOAT, None)
    branch = helper.make_graph([helper.make_node("Identity", ["a"], ["o"])], "b", [], [out])
    path = save(
        tmp_path / "m.onnx",
        [node("Relu", "x", "a"),
         helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)],
        {"x": (FLOAT, [2]), "c": (TensorProto.BOOL, [])},
        {"y": (FLOAT, [2])},
    )  # fmt: skip
    assert [row.operator for row in layer_table(path)] == ["Relu", "If"]


def test_a_name_that_would_change_the_terminal_is_printed_harmless(tmp_path: Path) -> None:
    drawn = helper.make_node("Neg", ["x"], ["y"], name="a\x1b[2Jb")
    path = save(tmp_path / "m.onnx", [drawn], {"x": (FLOAT, [1])}, {"y": (FLOAT, [1])})
    (row,) = layer_table(path)
    assert row.node == "a\N{REPLACEMENT CHARACTER}[2Jb"


def test_the_same_file_gives_the_same_rows(make_cnn: Callable[..., Model]) -> None:
    path = make_cnn().path
    assert layer_table(path, accelerator=ORIN) == layer_table(path, accelerator=ORIN)


def test_a_file_that_is_no_sound_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("only words")
    with pytest.raises(ModelUnsupported, match=r"`text\.onnx` is no sound model"):
        layer_table(tmp_path / "text.onnx")
    # a convolution without a weight passes the parser, not the check
    broken = save(tmp_path / "b.onnx", [node("Conv", "x", "y")], {"x": HALF_IMAGE},
                  {"y": HALF_IMAGE})  # fmt: skip
    with pytest.raises(ModelUnsupported, match=r"`b\.onnx` is no sound model"):
        layer_table(broken, accelerator=ORIN)
