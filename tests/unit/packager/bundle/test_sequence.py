"""What clients see of a model with state, and models whose state does not go round."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx
import pytest
from onnx import TensorProto, helper

from packager.bundle.sequence import client_signature, sequence_fields
from packager.errors import EdgepackError, ModelUnsupported, UsageError
from packager.model import Signature
from packager.recipe import Sequences
from tests.models import streaming_gru

if TYPE_CHECKING:
    from pathlib import Path

STATE = {"h_in": "h_out"}


@pytest.fixture(scope="module")
def gru(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gru") / "gru.onnx"
    onnx.save(streaming_gru.make_streaming_gru(), path)
    return path


def fields(path: Path, **recipe: Any) -> dict[str, Any]:
    return sequence_fields(
        Sequences(**{"state": STATE, **recipe}),
        path=path,
        signature=Signature.from_json(streaming_gru.signature()),
        memory_mib=1024,
    )


def test_clients_see_one_sequence_without_its_state(gru: Path) -> None:
    assert fields(gru, axis=1, chunk=4) == streaming_gru.sequences()


def test_a_manifest_tells_what_its_clients_see(gru: Path) -> None:
    manifest = {"model": {"signature": streaming_gru.signature()}}
    assert len(client_signature(manifest).inputs) == 2
    manifest["sequences"] = fields(gru)
    (seen,) = client_signature(manifest).inputs
    assert str(seen) == "signal: float32[1, time=1..64, 3]"


def test_a_model_without_an_axis_is_not_cut(gru: Path) -> None:
    found = fields(gru)
    assert (found["axis"], found["chunk"], found["cut"]) == (None, 0, [])


@pytest.mark.parametrize(
    ("recipe", "message", "told"),
    [
        ({"state": {"h": "h_out"}}, "the input `h`, which", "`signal`, `h_in`"),
        ({"state": {"h_in": "h"}}, "the output `h`, which", "`scores`, `h_out`"),
        ({"state": {"signal": "h_out", "h_in": "h_out"}}, "two inputs from one output", ""),
        ({"state": {"signal": "scores", "h_in": "h_out"}}, "no input besides its state", ""),
        ({"axis": 1, "chunk": 65}, "chunks of 65 along axis 1", "time=1..64"),
        ({"axis": 3, "chunk": 1}, "chunks of 1 along axis 3", "counts from 0"),
        ({"max_sequences": 10**8}, "of 20 bytes of state do not fit", "`max_sequences = 13421772`"),
    ],
)
def test_what_the_model_does_not_have_is_refused(
    gru: Path, recipe: dict[str, Any], message: str, told: str
) -> None:
    with pytest.raises(UsageError, match=message) as refused:
        fields(gru, **recipe)
    assert told in f"{refused.value.accepted} {refused.value.hint}"


def _model(state_out: str, kind: int = TensorProto.FLOAT, **attributes: Any) -> onnx.ModelProto:
    """Return x [n, 2] and s_in [1, 2] → y, and s_out that one operator makes of both."""
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Add", ["x", "s_in"], ["y"]),
        helper.make_node(state_out, ["x", "s_in"][: 1 if "to" in attributes else 2], ["s_out"],
                         **attributes),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes, "g",
        [value("x", TensorProto.FLOAT, ["n", 2]), value("s_in", TensorProto.FLOAT, [1, 2])],
        [value("y", TensorProto.FLOAT, None), value("s_out", kind, None)],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _fields_of(
    model: onnx.ModelProto, folder: Path, *, out: list[Any], dtype: str = "float32"
) -> Any:
    path = folder / "model.onnx"
    onnx.save(model, path)
    rows = {"name": "n", "min": 1, "max": 8, "opt": 1}

    def spec(name: str, shape: list[Any], kind: str = "float32") -> dict[str, Any]:
        return {"name": name, "dtype": kind, "shape": shape}

    wire = {
        "inputs": [spec("x", [rows, 2]), spec("s_in", [1, 2])],
        "outputs": [spec("y", [rows, 2]), spec("s_out", out, dtype)],
    }
    return sequence_fields(
        Sequences(state={"s_in": "s_out"}),
        path=path,
        signature=Signature.from_json(wire),
        memory_mib=1024,
    )


def test_a_batch_that_the_state_does_not_have_is_one_for_clients(tmp_path: Path) -> None:
    # the sum has as many rows as the batch, so that only one row keeps the state's shape
    wire = _fields_of(_model("Add"), tmp_path, out=[1, 2])["signature"]
    assert wire["inputs"][0]["shape"] == [1, 2]
    assert wire["outputs"][0]["shape"] == [1, 2]


@pytest.mark.parametrize(
    ("model", "out", "dtype", "message"),
    [
        (_model("Concat", axis=0), [2, 2], "float32", r"in run 1 .* came out as float32\[2, 2\]"),
        (
            _model("Cast", TensorProto.DOUBLE, to=TensorProto.DOUBLE), [1, 2], "float64",
            "`s_in` is float32 and `s_out`, which feeds it, is float64",
        ),
        (_model("Gemm", alpha=1.0), [1, 2], "float32", "does not run from a state of zeros"),
    ],
)  # fmt: skip
def test_a_state_that_does_not_go_round_is_refused(
    tmp_path: Path, model: onnx.ModelProto, out: list[Any], dtype: str, message: str
) -> None:
    with pytest.raises(ModelUnsupported, match=message) as refused:
        _fields_of(model, tmp_path, out=out, dtype=dtype)
    assert isinstance(refused.value, EdgepackError)


def test_a_dimension_that_is_cut_here_and_whole_there_is_refused(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info
    nodes = [helper.make_node("Tanh", ["s_in"], ["s_out"]),
             helper.make_node("MatMul", ["x", "mask"], ["y"])]  # fmt: skip
    graph = helper.make_graph(
        nodes, "g",
        [value("x", TensorProto.FLOAT, [1, "t"]), value("mask", TensorProto.FLOAT, ["t", 2]),
         value("s_in", TensorProto.FLOAT, [1, 1])],
        [value("y", TensorProto.FLOAT, [1, 2]), value("s_out", TensorProto.FLOAT, None)],
    )  # fmt: skip
    path = tmp_path / "model.onnx"
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path
    )
    time = {"name": "t", "min": 1, "max": 8, "opt": 1}

    def spec(name: str, shape: list[Any]) -> dict[str, Any]:
        return {"name": name, "dtype": "float32", "shape": shape}

    wire = {
        "inputs": [spec("x", [1, time]), spec("mask", [time, 2]), spec("s_in", [1, 1])],
        "outputs": [spec("y", [1, 2]), spec("s_out", [1, 1])],
    }
    with pytest.raises(UsageError, match="has the dimension that is cut, `t`, in axis 0"):
        sequence_fields(
            Sequences(state={"s_in": "s_out"}, axis=1, chunk=1),
            path=path,
            signature=Signature.from_json(wire),
            memory_mib=1024,
        )


def test_a_state_that_is_never_of_one_sequence_is_refused(gru: Path) -> None:
    wire = streaming_gru.signature()
    for spec in (*wire["inputs"], *wire["outputs"]):
        for dim in spec["shape"]:
            if isinstance(dim, dict) and dim["name"] == "batch":
                dim["min"] = dim["opt"] = 2
    with pytest.raises(ModelUnsupported, match="one sequence is 1"):
        sequence_fields(
            Sequences(state=STATE),
            path=gru,
            signature=Signature.from_json(wire),
            memory_mib=1024,
        )
