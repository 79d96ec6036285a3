"""The installed parser's answer by node, and what other TensorRTs are known to parse."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

from packager.backends.tensorrt.differences import known_differences, rtx_alone
from packager.backends.tensorrt.operators import SINCE, SINCE_8_5
from packager.backends.tensorrt.support import plain_reason, support_map
from packager.errors import ExternalToolError
from packager.passes.patterns import Graph
from tests.unit.packager.backends.tensorrt.onnx_drawing import graph_of, node, noise, tensorrt

if TYPE_CHECKING:
    from pathlib import Path

with_parser = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed"
)


def saved(model: Any, tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    return path


def image_net(*nodes: Any, outputs: dict[str, Any]) -> Any:
    return graph_of(
        [node("Conv", "x w", "a"), *nodes],
        {"x": (np.float32, ["n", 3, 6, 6]), "yes": (np.bool_, [])},
        outputs,
        {"w": noise(4, 3, 3, 3), "sizes": np.array([1, 4, 8, 8])},
        opset=18,
    )


@with_parser
def test_a_model_that_parses_has_no_unsupported_node(tmp_path: Path) -> None:
    model = image_net(node("Relu", "a", "y"), outputs={"y": (np.float32, None)})
    support = support_map(saved(model, tmp_path))
    assert support is not None
    assert (support.parsed, support.unsupported, support.general) == (True, (), ())
    assert support.parser.startswith("tensorrt_rtx 1.")


@with_parser
def test_every_unsupported_node_is_named_with_the_parsers_reason(tmp_path: Path) -> None:
    model = image_net(
        node("Det", "a", "d"),
        node("Resize", "a - - sizes", "r", mode="linear", antialias=1),
        outputs={"d": (np.float32, None), "r": (np.float32, None)},
    )
    support = support_map(saved(model, tmp_path))
    assert support is not None
    assert not support.parsed
    assert [str(each) for each in support.unsupported] == [
        "`n_d` (Det): the parser has no `Det`",
        "`n_r` (Resize): Antialiasing is not supported currently",
    ]


@with_parser
def test_a_node_inside_a_branch_is_laid_to_the_branch(tmp_path: Path) -> None:
    def branch(name: str, operator: str) -> Any:
        out = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)]
        return onnx.helper.make_graph([node(operator, "a", name)], name, [], out)

    both = {"then_branch": branch("t", "Relu"), "else_branch": branch("e", "Bernoulli")}
    model = image_net(node("If", "yes", "y", **both), outputs={"y": (np.float32, ["n", 4, 4, 4])})
    support = support_map(saved(model, tmp_path))
    assert support is not None
    (found,) = support.unsupported
    assert str(found) == "`n_y` (If): `n_e` (Bernoulli) inside it: the parser has no `Bernoulli`"


@with_parser
def test_an_error_of_no_node_is_kept(tmp_path: Path) -> None:
    model = graph_of([node("Identity", "x", "y")], {"x": (np.int16, [3])}, {"y": (np.int16, [3])})
    support = support_map(saved(model, tmp_path))
    assert support is not None
    assert not support.parsed
    assert support.general == ("Failed to convert ONNX date type to TensorRT data type",)


@with_parser
def test_weights_beside_the_file_are_found(tmp_path: Path) -> None:
    model = image_net(node("Relu", "a", "y"), outputs={"y": (np.float32, None)})
    path = tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights", size_threshold=0)
    support = support_map(path)
    assert support is not None
    assert support.parsed


@with_parser
def test_a_child_without_memory_is_an_error_with_a_way_out(tmp_path: Path) -> None:
    model = image_net(node("Relu", "a", "y"), outputs={"y": (np.float32, None)})
    with pytest.raises(ExternalToolError, match="failed") as caught:
        support_map(saved(model, tmp_path), memory_mib=64)
    assert "tensorrt-rtx-cu13" in str(caught.value.hint)


def test_without_the_parser_there_is_no_map(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from packager.backends.tensorrt import support

    monkeypatch.setattr(support, "MODULE", "a_tensorrt_that_is_not_here")
    assert support_map(tmp_path / "model.onnx") is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("false", "the parser has no `Det`"),
        ('(a == 0) && "Not now."', "Not now"),
        ("Assertion failed: f(z): Non-zero zero point.", "Non-zero zero point"),
        ("Assertion failed: z", "Assertion failed: z"),
        ("x" * 300, "x" * 199 + "…"),
    ],
)
def test_reasons_are_told_without_the_parsers_source(text: str, reason: str) -> None:
    assert plain_reason(text, "Det") == reason


def test_an_unknown_operator_without_a_name_is_refused_plainly() -> None:
    assert plain_reason("false", "") == "the parser refuses it"


def why(version: str, made: Any, inputs: Any, constants: Any = None, opset: int = 18) -> Any:
    outputs = dict.fromkeys(made.output, (np.float32, ["a"]))
    model = graph_of([made], inputs, outputs, constants, opset=opset, withdrawn=True)
    return known_differences(Graph(model), model.graph.node[0], tensorrt(version))


FLOATS = {"x": (np.float32, ["n", 4, 8, 8])}
RUN_TIME = {**FLOATS, "i": (np.int64, ["k"])}
CASES: list[tuple[str, Any, dict[str, Any], dict[str, Any], str | None]] = [
    ("8.5.2.2", node("LayerNormalization", "x s", "y"), FLOATS, {"s": noise(8)}, "8.5 has no"),
    ("8.6.2.3", node("LayerNormalization", "x s", "y"), FLOATS, {"s": noise(8)}, None),
    ("10.3.0.30", node("Attention", "x x x", "y"), FLOATS, {}, "which came with 10.14"),
    ("10.16.2.10", node("Attention", "x x x", "y"), FLOATS, {}, None),
    ("rtx", node("Attention", "x x x", "y"), FLOATS, {}, "nothing that runs it"),
    ("rtx", node("NonMaxSuppression", "x x", "y"), FLOATS, {}, "nothing that runs it"),
    ("8.5.2.2", node("NonMaxSuppression", "x x", "y"), FLOATS, {}, None),
    ("10.16.2.10", node("Unique", "x", "y"), FLOATS, {}, "no TensorRT has `Unique`"),
    ("8.6.2.3", node("Unsqueeze", "x i", "y"), RUN_TIME, {}, "its axes must be a constant"),
    ("8.6.2.3", node("Unsqueeze", "x c", "y"), FLOATS, {"c": np.array([0])}, None),
    ("10.16.2.10", node("Unsqueeze", "x i", "y"), RUN_TIME, {}, None),
    ("10.16.2.10", node("ReduceMax", "x i", "y"), RUN_TIME, {}, "its axes must be a constant"),
    ("8.5.2.2", node("TopK", "x i", "y z"), RUN_TIME, {}, "its K must be a constant"),
    ("10.3.0.30", node("TopK", "x c", "y z"), FLOATS, {"c": np.array([4000])}, "below 3840"),
    ("10.3.0.30", node("Resize", "x - - c", "y", mode="cubic"), FLOATS, {}, "no cubic mode"),
    ("10.3.0.30", node("Resize", "x - - c", "y", antialias=1), FLOATS, {}, "not antialias"),
    ("10.3.0.30", node("Resize", "x - - c", "y", antialias=0), FLOATS, {}, None),
    ("10.3.0.30", node("MaxPool", "x", "y", dilations=[2, 2]), FLOATS, {}, "no dilations"),
    ("10.3.0.30", node("Pad", "x c", "y", mode="wrap"), FLOATS, {}, None),
    ("8.6.2.3", node("Pad", "x c", "y", mode="wrap"), FLOATS, {}, "does not wrap"),
    ("10.3.0.30", node("Einsum", "x x", "y", equation="...a->a"), FLOATS, {}, "`...`"),
    ("8.5.2.2", node("ArgMax", "i", "y"), RUN_TIME, {}, "it takes floats alone"),
    ("10.3.0.30", node("Relu", "s", "y"), {"s": (np.dtype(object), [2])}, {}, "has no string"),
    ("10.3.0.30", node("Gather", "u c", "y"), {"u": (np.uint8, [2])}, {}, "takes uint8 as"),
    ("10.3.0.30", node("Cast", "u", "y", to=1), {"u": (np.uint8, [2])}, {}, None),
    ("10.3.0.30", node("LSTM", "x w r", "y", layout=1), FLOATS, {}, "its layout must be 0"),
    ("10.3.0.30", node("Scaler", "x", "y", domain="ai.onnx.ml"), FLOATS, {}, "`ai.onnx.ml`"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[1].op_type}")
def test_what_a_version_does_otherwise_is_known(case: Any) -> None:
    version, made, inputs, constants, reason = case
    found = why(version, made, inputs, constants)
    if reason is None:
        assert found is None
    else:
        assert found is not None
        assert reason in found


def test_bfloat16_came_with_tensorrt_10() -> None:
    made = node("Relu", "x", "y")
    model = graph_of([made], {"x": (np.float32, [2])}, {"y": (np.float32, [2])})
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.BFLOAT16
    reasons = [
        known_differences(Graph(model), model.graph.node[0], tensorrt(version))
        for version in ("8.6.2.3", "10.3.0.30")
    ]
    assert reasons == ["TensorRT 8.6 has no bfloat16", None]


def test_the_lists_of_operators_are_of_onnx_and_do_not_overlap() -> None:
    known = {schema.name for schema in onnx.defs.get_all_schemas_with_history()}
    assert not SINCE_8_5 & set(SINCE)
    assert known >= SINCE_8_5 | set(SINCE)


def test_what_rtx_alone_lacks_does_not_count_against_others() -> None:
    assert rtx_alone("NonZero", tensorrt("10.3.0.30"))
    assert not rtx_alone("NonZero", tensorrt("rtx"))
    assert not rtx_alone("Det", tensorrt("10.3.0.30"))


@with_parser
@pytest.mark.slow
def test_onnx_s_own_node_tests_agree_with_the_table(tmp_path: Path) -> None:
    """What the table gives the newest TensorRT, the RTX parser takes in some form, and reverse."""
    from onnx.backend.test.case.node import collect_testcases

    taken: set[str] = set()
    seen: set[str] = set()
    for case in collect_testcases(None):
        model = case.model
        if model is None or len(model.graph.node) != 1 or model.graph.node[0].domain:
            continue
        operator = model.graph.node[0].op_type
        if operator in taken:
            continue
        seen.add(operator)
        support = support_map(saved(model, tmp_path))
        if support is not None and support.parsed:
            taken.add(operator)
    listed = SINCE_8_5 | set(SINCE)
    # Their tests ask for outputs, axes or shapes at run time, or need a plugin that RTX lacks.
    tests_ask_too_much = {
        "DeformConv", "LayerNormalization", "NonZero", "OneHot", "ReduceL1", "ReduceL2",
        "ReduceLogSum", "ReduceLogSumExp", "ReduceMean", "ReduceSum", "ReduceSumSquare",
        "RoiAlign", "STFT", "Squeeze", "Unsqueeze", "Upsample",
    }  # fmt: skip
    assert (listed & seen) - taken == tests_ask_too_much
    assert taken - listed == {"Swish"} & seen
