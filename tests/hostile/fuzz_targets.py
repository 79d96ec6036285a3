"""What of the runtime is fuzzed: the parsers of everything that a stranger can send.

Each target takes any bytes. It may raise the errors that stand for a stranger's mistake, and
nothing else; an answer that says the fault is ours counts as a failure too.
"""

# ruff: noqa: E501 - lists of words

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.app import App, Limits
from runtime.bodies.csvrows import TableDecoder
from runtime.bodies.wav import SoundDecoder
from runtime.errors import BadRequest
from runtime.framing import Admission, Admissions, BodyBudget, RequestReader
from runtime.grpc import frames, hpack
from runtime.grpc.infer import InferMessages
from runtime.http1 import Answer, Head, parse_head
from runtime.npz import pack_npz, read_npy, read_npz
from runtime.signature import Signature
from runtime.tensor import Tensor
from tests.hostile import corpus_grpc, corpus_http, corpus_http2, corpus_json
from tests.unit.runtime.bodies import sounds
from tests.unit.runtime.grpc.wire_client import Doubling, Wire, infer
from tests.unit.runtime.live_server import BATCH, OpenRelease, tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

OURS = ("2", "13")  # gRPC's UNKNOWN and INTERNAL


@dataclass(frozen=True, kw_only=True)
class Target:
    """One parser.

    Attributes:
        parse: Takes any bytes; returns a word for what became of them.
        seeds: Bytes to begin with.
        mistakes: Errors that a stranger's bytes may raise.
        words: What its format is made of.
    """

    parse: Callable[[bytes], str]
    seeds: Sequence[bytes]
    mistakes: tuple[type[Exception], ...] = (BadRequest,)
    words: Sequence[bytes] = ()


def targets() -> dict[str, Callable[[], Target]]:
    """Return what makes each target, by its name."""
    return {
        "head": _head,
        "framing": _framing,
        "json": _json,
        "http2": _http2,
        "hpack": _hpack,
        "protobuf": _protobuf,
        "npz": _npz,
        "wav": _wav,
        "csv": _csv,
    }


HTTP_WORDS = (
    b"\r\n", b"\r\n\r\n", b"\n", b"\r", b": ", b" HTTP/1.1", b"Content-Length: ", b"0\r\n\r\n", b"chunked",
    b"Transfer-Encoding: chunked\r\n", b"Host: localhost\r\n", b"Expect: 100-continue\r\n", b"POST /predict ", b"\0",
)  # fmt: skip
JSON_WORDS = (
    b"[", b"]", b"{", b"}", b",", b":", b'"', b"null", b"true", b"1e999", b"-", b"0.5", b"\\ud800", b'"data"', b'"shape"',
    b'"inputs"', b'"parameters"', b'"binary_data_size"', b"9223372036854775808", b"-1", b"NaN", b"\xff",
)  # fmt: skip


def _requests() -> list[bytes]:
    tables = (corpus_http.FRAMING, corpus_http.ADDRESSED)
    found = [data for table in tables for data, _ in table.values() if len(data) < 4096]
    return [
        *found,
        corpus_http.GOOD,
        corpus_http.binary(),
        corpus_http.chunked(b"5\r\nhello\r\n0\r\n\r\n"),
    ]


def _head() -> Target:
    def parse(data: bytes) -> str:
        head = parse_head(data)
        assert head.length is None or 0 <= head.length < 10**15
        return f"{head.minor} {head.length is None} {head.expects_continue}"

    seeds = [data.partition(b"\r\n\r\n")[0] for data in _requests()]
    return Target(parse=parse, seeds=seeds, words=HTTP_WORDS)


def _framing() -> Target:
    admissions = Admissions(lambda head: Admission(head, "any", lambda _: Answer(200, b""), 4096))

    def read(pieces: Sequence[bytes]) -> tuple[list[tuple[Head, bytes]], str]:
        budget = BodyBudget(1 << 20)
        reader = RequestReader(admissions, budget)
        found: list[tuple[Head, bytes]] = []
        fault = ""
        try:
            for piece in pieces:
                reader.feed(piece)
                while (item := reader.next()) is not None:
                    found.append((item[0].head, bytes(item[1])))
                    reader.release()  # it is answered
        except BadRequest as error:
            fault = str(error.status)
        assert all(len(body) <= max(head.length or 0, 4096) for head, body in found)
        reader.release()
        assert budget._left == 1 << 20, "a connection that ends gives all back"
        return found, fault

    def parse(data: bytes) -> str:
        step = data[0] % 61 + 1 if data else 1
        rest = data[1:]
        found, fault = read([rest[at : at + step] for at in range(0, len(rest), step)])
        # however a network cuts it, the same requests come of it
        if not fault:
            assert read([rest])[0] == found
        return f"{len(found)} {fault}"

    return Target(parse=parse, seeds=[b"\x07" + data for data in _requests()], words=HTTP_WORDS)


# One input of each kind that values are read in another way for: name, protocol's type, values.
KINDS = (
    ("float16", "FP16", [1.5]),
    ("int64", "INT64", [-(2**63), 7]),
    ("uint8", "UINT8", [255]),
    ("bool", "BOOL", [True, False]),
    ("string", "BYTES", ["a", ""]),
)


def _good_json() -> bytes:
    others = [
        {"name": name, "shape": [len(data)], "datatype": kind, "data": data}
        for name, kind, data in KINDS
    ]
    return json.dumps(
        {"id": "a", "inputs": [corpus_http.X, *others], "parameters": {"timeout": 9}}
    ).encode()


def _good_protobuf(*, raw: bool) -> bytes:
    """Return a message of all inputs, whose values are raw or, where that is possible, typed."""
    message = corpus_grpc.infer(raw=corpus_grpc.VALUES if raw else None)
    fields = {
        "INT64": "int64_contents",
        "UINT8": "uint_contents",
        "BOOL": "bool_contents",
        "BYTES": "bytes_contents",
    }
    raws = {
        "FP16": bytes(2),
        "INT64": bytes(16),
        "UINT8": b"a",
        "BOOL": b"\1\0",
        "BYTES": b"\1\0\0\0a" + bytes(4),
    }
    if not raw:
        message.inputs[0].contents.fp32_contents.extend(corpus_http.ROW)
    for name, kind, data in KINDS:
        added = message.inputs.add(name=name, datatype=kind, shape=[len(data)])
        if raw:
            message.raw_input_contents.append(raws[kind])
        elif kind in fields:
            values = [item.encode() if isinstance(item, str) else item for item in data]
            getattr(added.contents, fields[kind]).extend(values)
    return corpus_grpc.serialized(message)


def _app() -> App:
    """Return a model with an input of many kinds, which answers nothing of use."""

    class Silent(Doubling):
        def run(self, feeds: Any, outputs: Any = None) -> dict[str, Tensor]:
            return {"y": Tensor("float32", (1,), bytes(4))}

    def size_of(name: str) -> dict[str, Any]:
        return {"name": f"{name}_size", "min": 1, "max": 64, "opt": 1}

    signature = {
        "inputs": [
            tensor("x", "float32", BATCH, 64),
            *(tensor(name, name, size_of(name)) for name, _, _ in KINDS),
        ],
        "outputs": [tensor("y", "float32", 1)],
    }
    manifest = {
        "name": "mlp",
        "version": "1",
        "edgepack": "0",
        "model": {"signature": signature},
        "server": {},
    }
    app = App(
        OpenRelease(folder="nowhere", manifest=manifest), Silent(), limits=Limits(1 << 16, 1 << 16)
    )
    app.ready = True
    return app


def _json() -> Target:
    app = _app()

    def parse(data: bytes) -> str:
        plain = bool(data) and data[0] & 1 == 1
        text = data[3:]
        path = "/predict" if plain else corpus_http.INFER
        fields: dict[str, str] = {}
        if data[1:2] and data[1] & 1:
            fields["inference-header-content-length"] = str(int.from_bytes(data[1:3], "big"))
        head = Head("POST", path, "localhost", fields, len(text), True, 1, False)
        admission = app.admit(head)
        answer = admission.refusal or admission.act(text)
        assert 200 <= answer.status < 500, answer
        return f"{answer.status} {answer.body[:30]!r}"

    seeds = [data.partition(b"\r\n\r\n")[2] for data, _ in corpus_json.BODIES.values()]
    good = _good_json()
    head = b"\0\0\0"
    return Target(
        parse=parse,
        seeds=[head + data for data in (*seeds, good) if len(data) < 4096] + [b"\1\0\0" + b'{"data":[[1]]}'],
        words=JSON_WORDS,
    )  # fmt: skip


def _http2() -> Target:
    def parse(data: bytes) -> str:
        step = data[0] * 8 + 1 if data else 1
        wire = Wire(limit=1 << 16)
        for at in range(1, len(data), step):
            wire.connection.data_received(data[at : at + step])
            wire.clock.turn()
        wire.read()
        told = [fields for heads in wire.heads.values() for fields in heads]
        assert not [one for one in told if one.get("grpc-status") in OURS], told
        assert not [one for one in told if one.get(":status", "2")[0] == "5"], told
        wire.connection.connection_lost()
        assert wire.held_bytes == 0, "a connection that ends gives all back"
        return (
            f"{[code for _, code, _ in wire.aways]} {sorted(wire.resets.values())[:3]} {told[:1]}"
        )

    calls = [case[0] for case in corpus_grpc.CALLS.values()]
    calls += [corpus_grpc.call(infer(2)), corpus_grpc.call(infer(2), "ModelStreamInfer")]
    table = [case[0] for case in (*corpus_http2.FAULTS.values(), *corpus_http2.RESETS.values())]
    heads = [
        corpus_http2.frame(frames.HEADERS, 5, 1, hpack.encode(fields))
        for fields, _ in corpus_http2.HEADS.values()
    ]
    seeds = [b"\xff" + data for data in (*calls, *table, *heads) if len(data) < 4096]
    words = [corpus_http2.frame(kind, 0, 1, bytes(4)) for kind in range(10)]
    return Target(parse=parse, seeds=seeds, words=words)


def _hpack() -> Target:
    def parse(data: bytes) -> str:
        decoder = hpack.Decoder()
        pieces = data.split(b"\xfe\xfe") if len(data) < 1 << 14 else [data]
        fields: list[Any] = []
        for piece in pieces:
            fields = decoder.decode(piece)
            size = sum(len(name) + len(value) + 32 for name, value in fields)
            assert size <= hpack.MAX_LIST_BYTES
            assert decoder._used <= hpack.TABLE_BYTES
        return f"{len(fields)} {decoder.oversized} {decoder.changed}"

    blocks = [hpack.encode(fields) for fields, _ in corpus_http2.HEADS.values()]
    bombs = [fuse + b"\xfe\xfe" + bomb[:2000] for fuse, bomb, _ in corpus_http2.BOMBS.values()]
    broken = [data[9:] for data, code, _ in corpus_http2.FAULTS.values() if code == 9]
    return Target(parse=parse, seeds=[*blocks, *bombs, *broken], mistakes=(ValueError,))


def _protobuf() -> Target:
    app = _app()
    codec = InferMessages(app.inference.signature, name="mlp", version="1", max_typed_bytes=1 << 16)

    def parse(data: bytes) -> str:
        return str(sorted(codec.decode(data).feeds))

    seeds = []
    for data, _, _ in corpus_grpc.CALLS.values():
        head = int.from_bytes(data[:3], "big") + 9
        if len(data) < 4096:
            seeds.append(data[head + 14 :])
    return Target(
        parse=parse,
        seeds=[*seeds, _good_protobuf(raw=True), _good_protobuf(raw=False)],
        words=[b"\x0a", b"\x2a\x00", b"\x3a\x00", b"\xff\x01"],
    )


def _npz() -> Target:
    def parse(data: bytes) -> str:
        if data[:1] == b"P":
            return str(sorted(read_npz(data, max_bytes=1 << 20)))
        found = read_npy(data)
        return f"{found.dtype} {len(found.shape)}"

    seeds = [
        pack_npz({"x": Tensor("float32", (2,), bytes(8)), "t": Tensor("string", (1,), [b"a"])})
    ]
    for kind in ("<f4", ">f4", "<i8", "?", "S3", "<U2", "f2"):
        stream = io.BytesIO()
        np.save(stream, np.zeros((2, 2), kind))
        seeds.append(stream.getvalue())
    return Target(
        parse=parse,
        seeds=seeds,
        words=[b"'descr'", b"'<f4'", b"(2, 2)", b"True", b"PK\x01\x02", b"PK\x03\x04"],
    )


def _wav() -> Target:
    signature = Signature(
        {
            "inputs": [
                tensor("x", "float32", BATCH, {"name": "t", "min": 1, "max": 4096, "opt": 1})
            ],
            "outputs": [],
        }
    )
    decoder = SoundDecoder(signature, {"x": {"sample_rate": 16000, "window": None}})

    def parse(data: bytes) -> str:
        return str(len(decoder.decode(data)["x"].shape))

    seeds = [
        sounds.wav(sounds.encoded(np.array([0.5, -0.25]), kind, bits), kind=kind, bits=bits)
        for kind, bits in ((1, 16), (1, 8), (1, 24), (1, 32), (3, 32), (3, 64))
    ]
    return Target(
        parse=parse,
        seeds=seeds,
        words=[b"RIFF", b"WAVE", b"fmt ", b"data", b"LIST", b"\xff\xff\xff\xff"],
    )


def _csv() -> Target:
    signature = Signature(
        {"inputs": [tensor("x", "float32", BATCH, 2), tensor("k", "int64", BATCH), tensor("t", "string", BATCH), tensor("b", "bool", BATCH)],
         "outputs": []}
    )  # fmt: skip
    decoder = TableDecoder(signature, {})

    def parse(data: bytes) -> str:
        return str(sorted(found.shape for found in decoder.decode(data).values()))

    head = b"x.0,x.1,k,t,b\n"
    seeds = [
        head + b"1,2,3,a,true\n", head + b'1e5,-2,3,"a,""b""\n",0\r\n', head, b"", b"x;y\n1;2\n", head + b"nan,inf,9223372036854775808,,2\n",
        b"\xef\xbb\xbf" + head + b"1,2,3,a,true", head + b'1,2,3,"a\n',
    ]  # fmt: skip
    return Target(
        parse=parse,
        seeds=seeds,
        words=[b'"', b",", b"\n", b"\r", b"nan", b"-", b"1e400", b"9" * 30, b"\0"],
    )
