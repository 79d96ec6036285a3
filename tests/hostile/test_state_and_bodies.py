"""Misused sequences and event streams, broken sounds and tables, against bundles that take them."""

# ruff: noqa: E501 - a table of requests reads best a line each

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.hostile import corpus_grpc
from tests.hostile.corpus_http import INFER, ROW, STREAM
from tests.hostile.http2_client import Http2Client
from tests.models.streaming_gru import make_streaming_gru, sequences, signature
from tests.unit.runtime.bodies import sounds
from tests.unit.runtime.live_server import Client
from tests.unit.runtime.small_bundle import serving_process, write_bundle

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SIGNAL = {"name": "signal", "shape": [1, 4, 3], "datatype": "FP32", "data": [0.5] * 12}
_PLAIN_MODEL = {
    "source": "m.onnx",
    "source_sha256": "0" * 64,
    "exporter": "none",
    "images": {},
    "labels": {},
}


@pytest.fixture(scope="module")
def stateful(
    engine_library: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[int]:  # fmt: skip
    folder = tmp_path_factory.mktemp("stateful")
    fields = {
        "model": {**_PLAIN_MODEL, "signature": signature()},
        "sequences": sequences(max_sequences=8),
    }
    model = make_streaming_gru().SerializeToString()
    bundle = write_bundle(folder / "gru.edgepack", engine_library, model=model, fields=fields)
    with serving_process(bundle, folder / "cache") as (_, port):
        yield port


def asked(**parameters: Any) -> bytes:
    return json.dumps({"inputs": [SIGNAL], "parameters": parameters}).encode()


# Path, body, status, words.
SEQUENCES = {
    "a sequence that was not started": (INFER, asked(sequence_id=7), 400, "no sequence of this id"),
    "the end of a sequence that was not started": (INFER, asked(sequence_id=7, sequence_end=True), 400, "no sequence"),
    "a start without an id": (INFER, asked(sequence_start=True), 400, "sequence_id"),
    "an end without an id": (INFER, asked(sequence_end=True), 400, "sequence_id"),
    "a start of the id zero": (INFER, asked(sequence_id=0, sequence_start=True), 400, "sequence_id"),
    "an id below zero": (INFER, asked(sequence_id=-1, sequence_start=True), 400, "sequence_id"),
    "an id past 64 bits": (INFER, asked(sequence_id=2**64, sequence_start=True), 400, "sequence_id"),
    "an id of 400 digits": (INFER, asked(sequence_id=10**400, sequence_start=True), 400, "sequence_id"),
    "an id with a fraction": (INFER, asked(sequence_id=1.5, sequence_start=True), 400, "sequence_id"),
    "an id that is true": (INFER, asked(sequence_id=True, sequence_start=True), 400, "sequence_id"),
    "an id that is a list": (INFER, asked(sequence_id=[1], sequence_start=True), 400, ""),
    "an id of 9000 letters": (INFER, asked(sequence_id="a" * 9000, sequence_start=True), 400, "sequence_id"),
    "a start that is a number": (INFER, asked(sequence_id=1, sequence_start=1), 400, "sequence_start"),
    "a start that is a text": (INFER, asked(sequence_id=1, sequence_start="yes"), 400, "sequence_start"),
    "an end that is null and a start that is a list": (INFER, asked(sequence_id=1, sequence_start=[], sequence_end=None), 400, ""),
    "the state as an input": (
        INFER, json.dumps({"inputs": [SIGNAL, {"name": "h_in", "shape": [1, 1, 8], "datatype": "FP32", "data": [0] * 8}]}).encode(), 400, "takes 1"),
    "the state as an output": (INFER, json.dumps({"inputs": [SIGNAL], "outputs": [{"name": "h_out"}]}).encode(), 400, "h_out"),
    "two rows of a sequence": (
        INFER, json.dumps({"inputs": [{**SIGNAL, "shape": [2, 2, 3]}], "parameters": {"sequence_id": 1, "sequence_start": True}}).encode(), 400, "2"),
    "a stream of a sequence that was not started": (STREAM, asked(sequence_id=7), 400, "no sequence"),
    "a stream of nothing": (STREAM, b"{}", 400, "`inputs`"),
    "a stream of binary answers": (STREAM, asked(binary_data_output=True), 400, "binary"),
    "a stream of no time": (STREAM, json.dumps({"inputs": [{**SIGNAL, "shape": [1, 0, 3], "data": []}]}).encode(), 400, "size 0"),
}  # fmt: skip


def assert_refused(
    port: int, path: str, body: bytes, status: int, said: str, **fields: str
) -> None:
    with Client(port) as client:
        reply = client.ask(
            "POST", path, body, {key.replace("_", "-"): text for key, text in fields.items()}
        )
        assert reply.status == status, reply.body
        assert said in reply.error
    with Client(port) as client:
        assert client.ask("GET", "/v2/health/ready").status == 200


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", SEQUENCES)
def test_a_misused_sequence_is_refused(stateful: int, name: str) -> None:
    path, body, status, said = SEQUENCES[name]
    assert_refused(stateful, path, body, status, said)
    with Client(stateful) as client:
        good = client.ask(
            "POST", INFER, asked(sequence_id=99, sequence_start=True, sequence_end=True)
        )
        assert good.status == 200, good.body


@pytest.mark.timeout(60)
def test_more_sequences_than_are_kept_push_none_of_the_server_over(stateful: int) -> None:
    with Client(stateful) as client:
        statuses = [
            client.ask("POST", INFER, asked(sequence_id=f"s{n}", sequence_start=True)).status
            for n in range(200)
        ]
        assert set(statuses) <= {200, 429, 503}
        assert statuses[0] == 200
        for n in range(200):
            client.ask("POST", INFER, asked(sequence_id=f"s{n}", sequence_end=True))
        assert (
            client.ask(
                "POST", INFER, asked(sequence_id=1, sequence_start=True, sequence_end=True)
            ).status
            == 200
        )


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("choices", "said"),
    [
        ({"sequence_id": {"int64_param": 7}}, "no sequence"),
        ({"sequence_id": {"int64_param": -7}, "sequence_start": {"bool_param": True}}, "sequence_id"),
        ({"sequence_id": {"bool_param": True}, "sequence_start": {"bool_param": True}}, "sequence_id"),
        ({"sequence_id": {"double_param": 1.5}, "sequence_start": {"bool_param": True}}, "sequence_id"),
        ({"sequence_id": {"string_param": "a" * 5000}, "sequence_start": {"bool_param": True}}, "sequence_id"),
        ({"sequence_id": {"int64_param": 7}, "sequence_start": {"int64_param": 1}}, "sequence_start"),
        ({"sequence_start": {"bool_param": True}}, "sequence_id"),
    ],
)  # fmt: skip
def test_a_misused_sequence_of_a_call_is_refused(
    stateful: int, choices: dict[str, dict[str, Any]], said: str
) -> None:
    message = corpus_grpc.infer(raw=bytes(48), name="signal", shape=[1, 4, 3])
    for name, choice in choices.items():
        for key, value in choice.items():
            setattr(message.parameters[name], key, value)
    with Http2Client(stateful) as client:
        client.send(corpus_grpc.call(message))
        code, words = client.ending().grpc
    assert code == corpus_grpc.INVALID
    assert said in words


@pytest.fixture(scope="module")
def bodied(engine_library: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Serve the MLP as one that takes tables, and sounds of 64 samples."""
    folder = tmp_path_factory.mktemp("bodied")
    spec = {"inputs": [{"name": "x", "dtype": "float32", "shape": [{"name": "batch", "min": 1, "max": 32, "opt": 1}, 64]}],
            "outputs": [{"name": "logits", "dtype": "float32", "shape": [{"name": "batch", "min": 1, "max": 32, "opt": 1}, 10]}]}  # fmt: skip
    model = {
        **_PLAIN_MODEL,
        "signature": spec,
        "audio": {"x": {"sample_rate": 16000, "window": None}},
    }
    fields = {"model": model, "bodies": {"text/csv": {}, "audio/wav": {}}}
    bundle = write_bundle(folder / "mlp.edgepack", engine_library, fields=fields)
    with serving_process(bundle, folder / "cache") as (_, port):
        yield port


WAV = sounds.wav(sounds.encoded(np.full(64, 0.25), 1, 16))
HEAD = b",".join(b"x.%d" % n for n in range(64)) + b"\n"
LINE = b",".join(b"1" for _ in range(64)) + b"\n"


def _with(at: int, data: bytes) -> bytes:
    return WAV[:at] + data + WAV[at + len(data) :]


# Media type, body, status.
BODIES = {
    "no sound": ("audio/wav", b"", 400),
    "a sound that is JSON": ("audio/wav", json.dumps({"data": [ROW]}).encode(), 400),
    "a sound cut in its header": ("audio/wav", WAV[:30], 400),
    "a sound cut in its samples": ("audio/wav", WAV[:-2], 400),
    "a sound of no samples": ("audio/wav", sounds.wav(b""), 400),
    "a sound of NaN": ("audio/wav", sounds.wav(struct.pack("<64f", *[float("nan")] * 64), kind=3, bits=32), 400),
    "a sound of infinity": ("audio/wav", sounds.wav(struct.pack("<64f", *[float("inf")] * 64), kind=3, bits=32), 400),
    "a sound of no channels": ("audio/wav", _with(22, b"\0\0"), 400),
    "a sound of 65535 channels": ("audio/wav", _with(22, b"\xff\xff"), 400),
    "a sound of no rate": ("audio/wav", _with(24, bytes(4)), 400),
    "a sound of 4 GHz": ("audio/wav", _with(24, b"\xff" * 4), 400),
    "a sound of an odd rate": ("audio/wav", _with(24, struct.pack("<I", 15991)), 400),
    "a sound of no bits": ("audio/wav", _with(34, b"\0\0"), 400),
    "a sound of an unknown form": ("audio/wav", _with(20, b"\x55\0"), 400),
    "a sound whose chunk is 4 GiB": ("audio/wav", _with(16, b"\xff" * 4), 400),
    "a sound of far too many samples": ("audio/wav", sounds.wav(bytes(1 << 19)), 400),
    "no table": ("text/csv", b"", 400),
    "a table without rows": ("text/csv", HEAD, 400),
    "a table of zeros": ("text/csv", bytes(100), 400),
    "a table that is not UTF-8": ("text/csv", HEAD + b"\xff" * 20, 400),
    "a table of words": ("text/csv", HEAD + LINE.replace(b"1", b"one"), 400),
    "a table of NaN": ("text/csv", HEAD + LINE.replace(b"1", b"nan", 1), 400),
    "a table of too large numbers": ("text/csv", HEAD + LINE.replace(b"1", b"1e99", 1), 400),
    "a table of 4000 digits": ("text/csv", HEAD + LINE.replace(b"1", b"9" * 4000, 1), 400),
    "a table with a cell too few": ("text/csv", HEAD + LINE[2:], 400),
    "a table with a cell too many": ("text/csv", HEAD + b"1," + LINE, 400),
    "a table with a column twice": ("text/csv", b"x.0," + HEAD + b"1," + LINE, 400),
    "a table with an open quote": ("text/csv", HEAD + b'"' + LINE, 400),
    "a table of too many rows": ("text/csv", HEAD + LINE * 33, 400),
    "a table of formulas": ("text/csv", HEAD + LINE.replace(b"1", b"=1+1", 1), 400),
    "a table of 30000 columns": ("text/csv", b"a," * 30000 + b"\n", 400),
    "a table in another coding": ("text/csv; charset=utf-16", HEAD + LINE, 415),
    "a table past the limit": ("text/csv", HEAD + LINE * 10000, 413),
}  # fmt: skip


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", BODIES)
def test_a_broken_body_is_refused(bodied: int, name: str) -> None:
    kind, body, status = BODIES[name]
    assert_refused(bodied, "/predict", body, status, "", Content_Type=kind)
    with Client(bodied) as client:
        assert client.ask("POST", "/predict", WAV, {"Content-Type": "audio/wav"}).status == 200
        assert (
            client.ask("POST", "/predict", HEAD + LINE, {"Content-Type": "text/csv"}).status == 200
        )
