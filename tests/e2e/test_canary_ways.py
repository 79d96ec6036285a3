"""No payload leaves a server by the other ways in: streams, sequences, TLS with keys, files."""

from __future__ import annotations

import http.client
import io
import json
import signal
import socket
import ssl
import struct
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from hpack import Encoder
from PIL import Image, PngImagePlugin
from tritonclient.grpc import service_pb2 as pb

from runtime.grpc import frames
from tests.canary import (
    INDEX,
    MODEL,
    NUMBER,
    ROWS,
    SOURCE,
    TEXT,
    TRIGGERS,
    canary_bundle,
    search,
    treacherous_bundle,
    watched,
)
from tests.hostile.http2_client import Http2Client
from tests.unit.runtime.bodies import photos, sounds
from tests.unit.runtime.closed.authority import Authority
from tests.unit.runtime.live_server import Client, pack_strings, tensor

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from tests.canary import Watched

STREAM = MODEL + "/infer_stream"
FAILING = ("raise", "thread", "unraisable")
_TIME = {"name": "time", "min": 1, "max": 16, "opt": 4}


def rows(*triggers: float, index: int = 3) -> bytes:
    """Return a request of a row for each trigger, every one with canaries."""
    count = len(triggers)
    x = [value for trigger in triggers for value in (NUMBER, trigger, 0, 0)]
    inputs = [
        {"name": "text", "shape": [count], "datatype": "BYTES", "data": [TEXT] * count},
        {"name": "x", "shape": [count, 4], "datatype": "FP32", "data": x},
        {"name": "index", "shape": [count], "datatype": "INT64", "data": [index] * count},
    ]
    return json.dumps({"id": TEXT, "inputs": inputs}).encode()


def message(trigger: float = 0.0, *, index: int = 3, model: str = "mlp") -> pb.ModelInferRequest:
    asked = pb.ModelInferRequest(model_name=model, id=TEXT)
    for name, datatype, shape, raw in (
        ("text", "BYTES", [1], pack_strings(TEXT.encode())),
        ("x", "FP32", [1, 4], struct.pack("<4f", NUMBER, trigger, 0, 0)),
        ("index", "INT64", [1], struct.pack("<q", index)),
    ):
        asked.inputs.add(name=name, datatype=datatype, shape=shape)
        asked.raw_input_contents.append(raw)
    return asked


def ask_stream(
    channel: grpc.Channel, messages: Iterable[pb.ModelInferRequest], **metadata: str
) -> list[pb.ModelStreamInferResponse]:
    """Return the answers of one `ModelStreamInfer`, which ends well."""
    call = channel.stream_stream(
        "/inference.GRPCInferenceService/ModelStreamInfer",
        request_serializer=pb.ModelInferRequest.SerializeToString,
        response_deserializer=pb.ModelStreamInferResponse.FromString,
    )
    answers: Iterator[Any] = call(iter(messages), metadata=tuple(metadata.items()), timeout=30)
    return list(answers)


def stopped(server: Watched) -> list[dict[str, Any]]:
    """End a server and return its log."""
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(30) == 0, server.read()
    return [json.loads(line) for line in server.read().splitlines() if line.startswith("{")]


def requests_in(log: list[dict[str, Any]]) -> int:
    return sum(line["event"] == "request" for line in log)


class Closed:
    """A client of a server with TLS and keys."""

    def __init__(self, server: Watched, authority: Authority, secret: str) -> None:
        self.port = server.port
        self.secret = secret
        self._authority = authority

    def ask(
        self, path: str, body: bytes | None = None, key: str | None = None, **fields: str
    ) -> tuple[int, bytes]:
        connection = http.client.HTTPSConnection(
            "127.0.0.1", self.port, timeout=30, context=self._authority.context(None)
        )
        sent = {name.replace("_", "-"): value for name, value in fields.items()}
        sent.setdefault("Authorization", "Bearer " + (self.secret if key is None else key))
        try:
            connection.request("GET" if body is None else "POST", path, body, sent)
            reply = connection.getresponse()
            return reply.status, reply.read()
        finally:
            connection.close()

    def stream_over_http2(self, body: bytes) -> bytes:
        context = self._authority.context(None)
        context.set_alpn_protocols(["h2"])
        plain = socket.create_connection(("127.0.0.1", self.port), 15)
        connected = context.wrap_socket(plain, server_hostname="127.0.0.1")
        fields = {
            ":method": "POST", ":scheme": "https", ":path": STREAM, ":authority": "127.0.0.1",
            "authorization": "Bearer " + self.secret, "x-own": TEXT,
        }  # fmt: skip
        block = Encoder().encode(fields)
        with Http2Client(self.port, connected=connected) as client:
            head = frames.frame_header(len(block), frames.HEADERS, frames.END_HEADERS, 1)
            data = frames.frame_header(len(body), frames.DATA, frames.END_STREAM, 1)
            client.send(head + block + data + body)
            found = client.ending(1)
        assert found.status == 200, found
        return found.body

    def channel(self) -> grpc.Channel:
        credentials = grpc.ssl_channel_credentials(self._authority.cert.read_bytes())
        return grpc.secure_channel(f"127.0.0.1:{self.port}", credentials)

    def shake_hands_badly(self) -> None:
        """Send what is no TLS, and TLS that names canaries."""
        for data in (f"GET /{TEXT} HTTP/1.1\r\n\r\n".encode(), b"\x16\x03\x01" + TEXT.encode() * 9):
            with socket.create_connection(("127.0.0.1", self.port), 15) as connection:
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
                with suppress(OSError):
                    connection.recv(4096)
        for protocols in ([TEXT], ["http/1.1"]):
            context = ssl.create_default_context(cafile=str(self._authority.cert))
            context.set_alpn_protocols(protocols)
            with (
                socket.create_connection(("127.0.0.1", self.port), 15) as connection,
                pytest.raises(ssl.SSLError),
            ):
                context.wrap_socket(connection, server_hostname=TEXT).recv(1)


def _table(*lines: str) -> bytes:
    return "\n".join(("text,x.0,x.1,x.2,x.3,index", *lines, "")).encode()


def test_streams_tables_and_keys_over_tls_leave_nothing_of_what_was_sent(
    tmp_path: Path, engine_library: Path
) -> None:
    bundle = canary_bundle(tmp_path / "canary.edgepack", engine_library)
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    authority = Authority(inputs)
    pair = authority.issue("server")
    keys = inputs / "keys.json"
    told = subprocess.run(
        [sys.executable, "-I", bundle, "new-key", "line", "--file", keys, "--scopes",
         "infer,metrics"],
        env={"XDG_CACHE_HOME": str(inputs / "cache")}, check=True, capture_output=True, text=True,
        timeout=60,
    )  # fmt: skip
    secret = told.stdout.split()[0]
    options = ("--tls-cert", pair.cert, "--tls-key", pair.key, "--keys", keys)
    with watched(bundle, tmp_path, *options) as server:
        client = Closed(server, authority, secret)
        kind = {"Content_Type": "text/csv"}
        line = f"{TEXT},{NUMBER},0,0,0,3"
        good = [
            client.ask(STREAM, rows(0, 0, 0), x_own=TEXT),
            client.ask(MODEL + "/infer", rows(0), x_own=TEXT),
            client.ask("/predict", _table(line, line), **kind),
            client.ask("/openapi.json"),
        ]
        assert [status for status, _ in good] == [200] * 4, good
        assert good[0][1].count(TEXT.encode()) == 6  # the id and the echo of each row
        assert client.stream_over_http2(rows(0, 0)).count(b"event: end") == 1
        failed = [
            client.ask(STREAM, rows(0, TRIGGERS["raise"], 0)),
            client.ask(STREAM, rows(0, 0, index=INDEX)),
        ]
        assert failed[0][1].count(b"event: error") == 1
        assert client.stream_over_http2(rows(0, TRIGGERS["raise"])).count(b"event: error") == 1
        for name in FAILING[1:]:
            assert client.ask(STREAM, rows(TRIGGERS[name]))[0] == 200
        bad = [
            failed[1],
            client.ask(STREAM, rows(0)[:-9]),
            client.ask(STREAM, rows(0).replace(b'"BYTES"', b'"' + TEXT.encode() + b'"')),
            client.ask(STREAM + "/" + TEXT, rows(0)),
            client.ask("/predict", _table(f"{TEXT},{TEXT},0,0,0,3"), **kind),
            client.ask("/predict", _table(f"{TEXT},{NUMBER},0,0,0,{INDEX}"), **kind),
            client.ask("/predict", _table(f'"{TEXT},{NUMBER}'), **kind),
            client.ask("/predict", _table(line).replace(b"index", TEXT.encode()), **kind),
            client.ask("/predict", _table(line) + b"\xff" + TEXT.encode(), **kind),
            client.ask("/predict", _table(line), Content_Type=f"text/csv; charset={TEXT}"),
            # keys that are none
            client.ask(MODEL + "/infer", rows(0), key=TEXT),
            client.ask(STREAM, rows(0), key=secret[:-1] + TEXT),
            client.ask("/metrics", key="é" + TEXT),
            client.ask("/metrics", Authorization="Basic " + TEXT),
            client.ask("/v2?key=" + TEXT, Authorization=TEXT),
        ]
        assert {status // 100 for status, _ in bad} == {4}, bad
        client.shake_hands_badly()
        with client.channel() as channel:
            may = {"authorization": "Bearer " + secret, "x-own": TEXT}
            found = ask_stream(
                channel,
                [
                    message(), message(index=INDEX), message(model=TEXT), message(),
                    *(message(TRIGGERS[name]) for name in FAILING),
                ],
                **may,
            )  # fmt: skip
            assert [bool(one.error_message) for one in found] == [0, 1, 1, 0, 1, 0, 0]
            with pytest.raises(grpc.RpcError, match="needs a valid key"):
                ask_stream(channel, [message()], authorization="Bearer " + TEXT)
            call = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
            (broken,) = call(iter([TEXT.encode()]), metadata=tuple(may.items()), timeout=30)
            assert TEXT.encode() not in broken
        status, metrics = client.ask("/metrics")
        assert status == 200
        (server.folder / "metrics").write_bytes(metrics)
        log = stopped(server)
    assert requests_in(log) >= len(good) + len(bad) + 9
    assert server.read().count("RuntimeError") >= 5
    assert server.read().count("ValueError") >= 2
    assert search(server.folder) == []
    assert secret not in server.read()
    assert secret.encode() not in metrics


def _stateful_bundle(path: Path, library: Path) -> Path:
    """Write a bundle of a model that takes sounds, and keeps the loudest sample as its state."""
    from onnx import TensorProto, helper, numpy_helper

    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMax", ["x"], ["loudest"], axes=[1], keepdims=1),
            helper.make_node("Add", ["loudest", "zeros"], ["kept"]),
            helper.make_node("ReduceMax", ["state"], ["before"], axes=[1], keepdims=1),
            helper.make_node("Max", ["x", "before"], ["y"]),
        ],
        "loudest",
        [
            value("x", TensorProto.FLOAT, ["rows", "time"]),
            value("state", TensorProto.FLOAT, [1, 2]),
        ],
        [
            value("y", TensorProto.FLOAT, ["rows", "time"]),
            value("kept", TensorProto.FLOAT, [1, 2]),
        ],
        [numpy_helper.from_array(np.zeros((1, 2), np.float32), "zeros")],
    )
    opsets = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    x, y = tensor("x", "float32", 1, _TIME), tensor("y", "float32", 1, _TIME)
    signature = {
        "inputs": [x, tensor("state", "float32", 1, 2)],
        "outputs": [y, tensor("kept", "float32", 1, 2)],
    }
    fields = {
        "model": {**SOURCE, "signature": signature, "audio": {"x": {"sample_rate": 16000}}},
        "sequences": {
            "signature": {"inputs": [x], "outputs": [y]},
            "state": [{"input": "state", "output": "kept", "dtype": "float32", "shape": [1, 2]}],
            "max_sequences": 2, "idle_s": 60.0, "axis": 1, "chunk": 4, "cut": ["x"],
        },
        "bodies": {"audio/wav": {}},
        "privacy": {"mask": [], "capture": 1.0, "keep_s": 3600.0, "drift": True},
    }  # fmt: skip
    return treacherous_bundle(path, library, model, fields)


def _signal(trigger: float = 0.0, count: int = 4, **parameters: Any) -> bytes:
    data = [NUMBER, trigger, *[0.0] * (count - 2)]
    inputs = [{"name": "x", "shape": [1, count], "datatype": "FP32", "data": data}]
    return json.dumps({"inputs": inputs, "parameters": parameters}).encode()


def _piece(trigger: float = 0.0, **flags: bool) -> pb.ModelInferRequest:
    asked = pb.ModelInferRequest(model_name="mlp", id=TEXT)
    asked.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    asked.raw_input_contents.append(struct.pack("<4f", NUMBER, trigger, 0, 0))
    asked.parameters["sequence_id"].string_param = TEXT
    for name, flag in flags.items():
        asked.parameters[name].bool_param = flag
    return asked


def test_sequences_and_sounds_leave_nothing_of_what_was_sent(
    tmp_path: Path, engine_library: Path
) -> None:
    bundle = _stateful_bundle(tmp_path / "loudest.edgepack", engine_library)

    def sound(trigger: float = 0.0, rate: int = 16000, **form: Any) -> bytes:
        values = struct.pack("<4f", NUMBER, trigger, 0, 0)
        return sounds.wav(values, kind=3, bits=32, rate=rate, **form)

    with watched(bundle, tmp_path) as server:

        def ask(path: str, body: bytes, **fields: str) -> int:
            with Client(server.port) as client:
                sent = {name.replace("_", "-"): value for name, value in fields.items()}
                return client.ask("POST", path, body, sent).status

        note = b"LIST" + struct.pack("<I", len(TEXT)) + TEXT.encode()
        nan = sounds.wav(struct.pack("<2f", NUMBER, np.nan), kind=3, bits=32)
        infer, start, end = MODEL + "/infer", {"sequence_start": True}, {"sequence_end": True}
        kind = {"Content_Type": "audio/wav"}
        good = [
            ask(infer, _signal(sequence_id=TEXT, **start)),
            ask(infer, _signal(sequence_id=INDEX, **start)),
            ask(infer, _signal(sequence_id=TEXT)),
            ask(infer, _signal(sequence_id=INDEX, **end)),
            ask(infer, _signal()),
            ask("/predict", sound(), **kind),
            ask("/predict", sound(rate=22050), **kind),
            ask("/predict", sound(before=note), **kind),
        ]  # fmt: skip
        assert good == [200] * 8
        treacherous = [
            ask(infer, _signal(TRIGGERS["raise"], sequence_id=TEXT)),
            ask("/predict", sound(TRIGGERS["raise"]), **kind),
            *(ask("/predict", sound(TRIGGERS[name]), **kind) for name in FAILING[1:]),
        ]
        assert treacherous == [500, 500, 200, 200]
        bad = [
            ask(infer, _signal(sequence_id=TEXT + "!")),
            ask(infer, _signal(sequence_id=TEXT * 9, **start)),
            ask(infer, _signal(sequence_id=[TEXT], **start)),
            ask(infer, _signal(sequence_start=TEXT)),
            ask(STREAM, _signal(sequence_id=TEXT + "!")),
            ask("/predict", sound()[:-3], **kind),
            ask("/predict", sound(rate=INDEX), **kind),
            ask("/predict", sound(length=INDEX), **kind),
            ask("/predict", nan, **kind),
            ask("/predict", TEXT.encode() * 9, **kind),
            ask("/predict", b"RIFF\0\0\0\0WAVE" + TEXT.encode() * 9, **kind),
        ]  # fmt: skip
        assert set(bad) == {400}
        assert ask(infer, _signal(sequence_id=INDEX, **start)) == 200
        # both places are taken
        assert ask(infer, _signal(sequence_id=INDEX + 1, **start)) == 503
        assert ask(infer, _signal(sequence_id=TEXT, **end)) == 200
        with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            asked = [_piece(**start), _piece(), _piece(TRIGGERS["raise"]), _piece(**end), _piece()]
            found = ask_stream(channel, asked)
            assert [bool(one.error_message) for one in found] == [0, 0, 1, 0, 1]
        with Client(server.port) as client:
            body = _signal(count=14, sequence_id=TEXT, **start)
            client.send(f"POST {STREAM} HTTP/1.0\r\nContent-Length: {len(body)}\r\n".encode()
                        + b"Host: 127.0.0.1\r\n\r\n" + body)  # fmt: skip
            found_events = b"".join(iter(lambda: client.socket.recv(4096), b""))
            assert found_events.count(b"data: ") == 5
            metrics = client_metrics(server.port)
        (server.folder / "metrics").write_bytes(metrics)
        log = stopped(server)
    assert requests_in(log) >= len(good) + len(bad) + len(treacherous) + 4
    assert server.read().count("RuntimeError") >= 3
    assert search(server.folder) == []


def client_metrics(port: int) -> bytes:
    with Client(port) as client:
        return client.ask("GET", "/metrics").body


def test_photos_leave_nothing_of_what_was_sent(tmp_path: Path, engine_library: Path) -> None:
    from onnx import TensorProto, helper

    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "photo",
        [value("x", TensorProto.UINT8, ["rows", 4, 4, 3])],
        [value("y", TensorProto.UINT8, ["rows", 4, 4, 3])],
    )
    opsets = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    signature = {
        "inputs": [tensor("x", "uint8", ROWS, 4, 4, 3)],
        "outputs": [tensor("y", "uint8", ROWS, 4, 4, 3)],
    }
    libraries = {
        "image/png": ("lib/libpng16.so", photos.library("image/png")),
        "image/jpeg": ("lib/libturbojpeg.so", photos.library("image/jpeg")),
    }
    fields = {
        "model": {**SOURCE, "signature": signature, "images": {"x": {"size": [4, 4]}}},
        "bodies": {kind: {"library": name} for kind, (name, _) in libraries.items()},
        "privacy": {"mask": [], "capture": 1.0, "keep_s": 3600.0, "drift": True},
    }
    bundle = treacherous_bundle(
        tmp_path / "photo.edgepack", engine_library, model, fields, files=dict(libraries.values())
    )

    def photo(trigger: float = 0.0, form: str = "PNG", side: int = 4) -> bytes:
        """Return a photo whose pixels and notes are canaries."""
        pixels = np.frombuffer(bytes([0, int(trigger)]) + TEXT.encode() * 90, np.uint8)
        image = Image.fromarray(pixels[: side * side * 3].reshape(side, side, 3))
        notes = PngImagePlugin.PngInfo()
        notes.add_text(TEXT, TEXT)
        stream = io.BytesIO()
        more: dict[str, Any] = {"pnginfo": notes} if form == "PNG" else {"comment": TEXT.encode()}
        image.save(stream, form, **more)
        return stream.getvalue()

    with watched(bundle, tmp_path) as server:

        def ask(body: bytes, kind: str = "image/png") -> tuple[int, bytes]:
            with Client(server.port) as client:
                reply = client.ask("POST", "/predict", body, {"Content-Type": kind})
                return reply.status, reply.body

        png, jpeg = photo(), photo(form="JPEG")
        good = [ask(png), ask(jpeg, "image/jpeg")]
        assert [status for status, _ in good] == [200, 200]
        shown = np.array(json.loads(good[0][1])["result"]).astype(np.uint8).tobytes()
        assert TEXT.encode() in shown
        treacherous = [ask(photo(TRIGGERS[name]))[0] for name in FAILING]
        assert treacherous == [500, 200, 200]
        bad = [
            ask(png[:-20]),
            ask(png[:60] + TEXT.encode() + png[60:]),
            ask(png, "image/jpeg"),
            ask(jpeg[:-30], "image/jpeg"),
            ask(jpeg[:2] + TEXT.encode() * 9, "image/jpeg"),
            ask(photo(side=5)),
            ask(png, f"image/png{TEXT}"),
        ]
        assert {status // 100 for status, _ in bad} == {4}, bad
        (server.folder / "metrics").write_bytes(client_metrics(server.port))
        log = stopped(server)
    assert requests_in(log) >= len(good) + len(bad) + len(treacherous)
    assert server.read().count("RuntimeError") >= 2
    assert search(server.folder) == []
