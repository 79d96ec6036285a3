"""The Open Inference Protocol on real models: every type, JSON and binary both ways."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest

from runtime.app import App
from runtime.dtypes import BY_NAME, BY_ONNX
from runtime.engine import open_engine
from runtime.errors import BadRequest
from runtime.http1 import Head
from runtime.inference import InferenceProtocol
from runtime.signature import Signature
from tests.unit.runtime.live_server import make_release, pack_strings, tensor

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from runtime.http1 import Answer

NAMES = (
    "mlp", "several", "int64", "int8", "uint8", "int16", "uint16", "int32", "uint32", "uint64",
    "bool", "double", "float16", "string", "scalar", "dynamic", "data_dependent", "branch",
    "strange_names", "zero_size",
)  # fmt: skip
BINARY = {"binary_data": True}


def describe(values: Any) -> list[dict[str, Any]]:
    """Return the wire form of a graph's inputs or outputs, every size open."""
    found = []
    for value in values:
        kind = value.type.tensor_type
        dtype = BY_ONNX[kind.elem_type].name
        dims = [
            dim.dim_value or {"name": dim.dim_param or None, "min": 0, "max": None, "opt": None}
            for dim in kind.shape.dim
        ]
        found.append(tensor(value.name, dtype, *dims))
    return found


@pytest.fixture(params=NAMES)
def case(
    request: pytest.FixtureRequest,
    small_models: dict[str, Any],
    engine_library: Path,
    tmp_path: Path,
) -> Iterator[tuple[App, Any, list[dict[str, np.ndarray]]]]:
    model = small_models[request.param]
    graph = onnx.load(model.path).graph
    inputs, outputs = describe(graph.input), describe(graph.output)
    release = make_release(tmp_path, model.path, engine_library, inputs, outputs)
    reference = onnxruntime.InferenceSession(model.path, providers=["CPUExecutionProvider"])
    engine = open_engine(release)
    yield App(release, engine), reference, list(model.feeds)
    engine.close()


def raw(array: np.ndarray) -> bytes:
    if array.dtype.kind in "OU":
        return pack_strings(*(str(item).encode() for item in array.ravel()))
    return array.tobytes()


def wire_type(array: np.ndarray) -> str:
    if array.dtype.kind in "OU":
        return "BYTES"
    return BY_NAME[str(array.dtype)].protocol


def ask(app: App, document: dict[str, Any], tails: list[bytes] | None = None) -> Answer:
    text = json.dumps(document).encode()
    fields = {"host": "127.0.0.1"}
    if tails is not None:
        fields["inference-header-content-length"] = str(len(text))
    body = text + b"".join(tails or ())
    path = f"/v2/models/{app.name}/infer"
    head = Head("POST", path, "127.0.0.1", fields, len(body), True, 1, False)
    answer: Answer = app.admit(head).act(body)
    return answer


def read_outputs(answer: Answer) -> dict[str, np.ndarray]:
    body, at = answer.body, len(answer.body)
    for line in answer.fields.split(b"\r\n"):
        if line.startswith(b"Inference-Header-Content-Length: "):
            at = int(line.partition(b": ")[2])
    found = {}
    for output in json.loads(body[:at])["outputs"]:
        names = {dtype.protocol: dtype.name for dtype in BY_NAME.values()}
        dtype = names[output["datatype"]]
        if "data" in output:
            array = np.array(output["data"], object if dtype == "string" else dtype)
        else:
            size = output["parameters"]["binary_data_size"]
            piece, at = body[at : at + size], at + size
            array = np.frombuffer(piece, dtype) if dtype != "string" else split(piece)
        found[output["name"]] = array.reshape(output["shape"])
    assert at == len(body)
    return found


def split(piece: bytes) -> np.ndarray:
    items = []
    while piece:
        size = int.from_bytes(piece[:4], "little")
        items.append(piece[4 : 4 + size].decode())
        piece = piece[4 + size :]
    return np.array(items, object)


@pytest.mark.parametrize("form", ["json", "binary", "mixed"])
def test_every_type_goes_in_and_comes_out_exactly(case: Any, form: str) -> None:
    app, reference, all_feeds = case
    for feeds in all_feeds:
        expected = reference.run(None, feeds)
        inputs, tails = [], []
        for index, (name, array) in enumerate(feeds.items()):
            item = {"name": name, "shape": list(array.shape), "datatype": wire_type(array)}
            if form == "json" or (form == "mixed" and index % 2):
                item["data"] = array.ravel().tolist()
            else:
                tails.append(raw(array))
                item["parameters"] = {"binary_data_size": len(tails[-1])}
            inputs.append(item)
        document: dict[str, Any] = {"id": "7", "inputs": inputs}
        if form == "binary":
            document["parameters"] = {"binary_data_output": True}
        answer = ask(app, document, None if form == "json" else tails)
        assert answer.status == 200
        assert b'"id":"7"' in answer.body
        found = read_outputs(answer)
        assert list(found) == [output.name for output in reference.get_outputs()]
        for array, want in zip(found.values(), expected, strict=True):
            assert array.shape == want.shape
            assert array.tolist() == want.tolist()


@pytest.fixture
def several(small_models: dict[str, Any], engine_library: Path, tmp_path: Path) -> Iterator[App]:
    model = small_models["several"]
    graph = onnx.load(model.path).graph
    release = make_release(
        tmp_path, model.path, engine_library, describe(graph.input), describe(graph.output)
    )
    engine = open_engine(release)
    yield App(release, engine)
    engine.close()


def several_inputs() -> list[dict[str, Any]]:
    return [
        {"name": "k", "shape": [1], "datatype": "INT64", "data": [2]},
        {"name": "a", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]},
        {"name": "b", "shape": [1, 3], "datatype": "FP32", "data": [[3, 2, 1]]},
    ]


def test_only_the_outputs_asked_for_are_sent_in_their_order(several: App) -> None:
    wanted = [{"name": "best", "parameters": BINARY}, {"name": "scaled"}]
    found = read_outputs(ask(several, {"inputs": several_inputs(), "outputs": wanted}))
    assert {name: array.tolist() for name, array in found.items()} == {
        "best": [2], "scaled": [[8.0, 8.0, 8.0]],
    }  # fmt: skip
    assert list(found) == ["best", "scaled"]


def test_the_default_for_outputs_can_be_overruled(several: App) -> None:
    wanted = [{"name": "best", "parameters": {"binary_data": False}}, {"name": "scaled"}]
    document = {
        "inputs": several_inputs(), "outputs": wanted, "parameters": {"binary_data_output": True},
    }  # fmt: skip
    answer = ask(several, document)
    assert b'"data":[2]' in answer.body
    assert b'"binary_data_size":12' in answer.body


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"outputs": [{"name": "worst"}]}, "no output `worst`"),
        ({"outputs": [{"name": "best"}] * 2}, "came twice"),
        ({"outputs": [{"name": "best"}] * 1000}, "came twice"),
        ({"outputs": {"name": "best"}}, "`outputs` has to be a list"),
        ({"outputs": [{}]}, "needs a `name`"),
        ({"outputs": ["best"]}, "has to be an object"),
        ({"outputs": [{"name": "best", "parameters": {"classification": 3}}]}, "classification"),
        ({"outputs": [{"name": "best", "parameters": {"binary_data": 1}}]}, "true or false"),
        ({"parameters": {"binary_data_output": "yes"}}, "true or false"),
        ({"parameters": {"sequence_id": 5}}, "sequence_id"),
        ({"inputs": several_inputs()[:2]}, "missing input `b`"),
        ({"inputs": [*several_inputs()[:2], several_inputs()[1]]}, "`a` came twice"),
    ],
)
def test_a_wish_that_cannot_be_met_is_refused(
    several: App, change: dict[str, Any], said: str
) -> None:
    with pytest.raises(BadRequest, match=said):
        ask(several, {"inputs": several_inputs(), **change})


def test_a_body_may_repeat_which_model_it_is_for_and_not_name_another(several: App) -> None:
    # as KServe's client does
    request = {"inputs": several_inputs(), "model_name": several.name, "model_version": "1.2.0"}
    ask(several, request)
    for key in ("model_name", "model_version"):
        with pytest.raises(BadRequest, match=f"`{key}` is another than the address names"):
            ask(several, {**request, key: "nope"})
    with pytest.raises(BadRequest, match="the request takes no `models`"):
        ask(several, {"inputs": several_inputs(), "models": 1})


def test_equal_dimensions_have_to_be_equal(several: App) -> None:
    inputs = several_inputs()
    inputs[2] |= {"shape": [2, 3], "data": [[3, 2, 1]] * 2}
    with pytest.raises(BadRequest, match="dimension `n` is 1 in input `a` and 2 in input `b`"):
        ask(several, {"inputs": inputs})


STRINGS = Signature({"inputs": [tensor("s", "string", 2)], "outputs": []})


@pytest.mark.parametrize(
    "tail",
    [
        b"", b"\1\0\0\0", pack_strings(b"a"), pack_strings(b"a", b"b", b"c"),
        pack_strings(b"a", b"b") + b"\0", b"\xff\xff\xff\xff" + pack_strings(b"a", b"b"),
        pack_strings(b"a", b"b")[:-1],
    ],
)  # fmt: skip
def test_strings_whose_lengths_lie_are_refused(tail: bytes) -> None:
    protocol = InferenceProtocol(STRINGS, name="m", version="1")
    item = {
        "name": "s", "shape": [2], "datatype": "BYTES",
        "parameters": {"binary_data_size": len(tail)},
    }  # fmt: skip
    text = json.dumps({"inputs": [item]}).encode()
    with pytest.raises(BadRequest, match="2 strings"):
        protocol.decode(text + tail, len(text))


def test_a_byte_that_is_no_boolean_is_refused() -> None:
    signature = Signature({"inputs": [tensor("b", "bool", 2)], "outputs": []})
    protocol = InferenceProtocol(signature, name="m", version="1")
    item = {
        "name": "b", "shape": [2], "datatype": "BOOL", "parameters": {"binary_data_size": 2},
    }  # fmt: skip
    text = json.dumps({"inputs": [item]}).encode()
    with pytest.raises(BadRequest, match="neither 0 nor 1"):
        protocol.decode(text + b"\1\2", len(text))
