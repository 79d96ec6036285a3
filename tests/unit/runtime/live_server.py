"""A server on 127.0.0.1 in a thread of the test, and a client that sends exact bytes."""

from __future__ import annotations

import json
import socket
import struct
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from runtime.app import App
from runtime.engine import open_engine
from runtime.options import ServeOptions
from runtime.server import Server

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

BATCH = {"name": "batch", "min": 1, "max": 32, "opt": 1}


def tensor(name: str, dtype: str, *dims: Any) -> dict[str, Any]:
    return {"name": name, "dtype": dtype, "shape": list(dims)}


@dataclass(frozen=True, kw_only=True)
class OpenRelease:
    """What an engine and an app need of a release."""

    folder: str
    manifest: dict[str, Any]


def make_release(
    folder: Path,
    model: Path,
    library: Path,
    inputs: list[dict[str, Any]],
    outputs: list[dict[str, Any]],
    *,
    name: str = "mlp.small-1",
    **server: Any,
) -> OpenRelease:
    manifest = {
        "name": name,
        "version": "1.2.0",
        "edgepack": "0.1.0",
        "target": {"name": "cpu-x86_64", "python": "3.8", "memory_mib": 1024},
        "engine": {
            "name": "onnxruntime",
            "version": "1.32.0",
            "library": str(library),
            "artifact": str(model),
            "threads": 1,
            "precision": "fp32",
        },
        "model": {"signature": {"inputs": inputs, "outputs": outputs}},
        "server": {"max_json_kb": 64, "metrics": True, "openapi": True, "plain": True, **server},
    }
    return OpenRelease(folder=str(folder), manifest=manifest)


@dataclass(kw_only=True)
class Reply:
    """A parsed answer."""

    status: int
    fields: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        message: str = self.json()["error"]
        return message


@dataclass
class Client:
    """One connection; `send` takes whatever bytes a test wants on the wire."""

    port: int
    timeout_s: float = 10.0
    _buffer: bytes = field(default=b"", init=False)

    def __enter__(self) -> Self:
        self.socket = socket.create_connection(("127.0.0.1", self.port), timeout=self.timeout_s)
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def is_closed(self) -> bool:
        """Wait until the server closes the connection."""
        try:
            return not self._buffer and self.socket.recv(1) == b""
        except ConnectionResetError:
            return True

    def read(self, *, head_only: bool = False) -> Reply:
        while b"\r\n\r\n" not in self._buffer:
            self._more()
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        fields = {key.lower(): value for key, _, value in (line.partition(": ") for line in lines)}
        length = 0 if head_only else int(fields.get("content-length", "0"))
        while len(self._buffer) < length:
            self._more()
        body, self._buffer = self._buffer[:length], self._buffer[length:]
        return Reply(status=int(first.split()[1]), fields=fields, body=body)

    def _more(self) -> None:
        data = self.socket.recv(1 << 16)
        if not data:
            raise EOFError(f"closed after {self._buffer!r}")
        self._buffer += data

    def ask(
        self, method: str, path: str, body: bytes = b"", fields: Mapping[str, str] | None = None
    ) -> Reply:
        self.send(request(method, path, body, fields))
        return self.read(head_only=method == "HEAD")


def request(
    method: str, path: str, body: bytes = b"", fields: Mapping[str, str] | None = None
) -> bytes:
    lines = {"Host": "127.0.0.1", **(fields or {})}
    if body or method == "POST":
        lines.setdefault("Content-Length", str(len(body)))
    head = "".join(f"{key}: {value}\r\n" for key, value in lines.items())
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + body


def infer_body(document: Mapping[str, Any], *tensors: bytes) -> tuple[bytes, dict[str, str]]:
    """Return the body and the header field of a binary infer request."""
    text = json.dumps(document).encode()
    return text + b"".join(tensors), {"Inference-Header-Content-Length": str(len(text))}


def pack_strings(*items: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(item)) + item for item in items)


@dataclass(frozen=True, kw_only=True)
class LiveServer:
    """A running server and what it serves."""

    app: App
    server: Server
    url: str

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def client(self) -> Client:
        return Client(self.port)


@contextmanager
def serving(app: App, options: ServeOptions | None = None) -> Iterator[LiveServer]:
    """Serve in a thread until the block ends, then drain."""
    server = Server(app, (options or ServeOptions())._replace(port=0))
    up = threading.Event()
    thread = threading.Thread(target=server.run, args=(lambda _: up.set(),))
    thread.start()
    try:
        assert up.wait(20)
        yield LiveServer(app=app, server=server, url=server.url)
    finally:
        server.stop()
        thread.join(60)
        assert not thread.is_alive()


@contextmanager
def serving_model(release: OpenRelease) -> Iterator[LiveServer]:
    """Serve a real model with the real engine."""
    engine = open_engine(release)
    try:
        with serving(App(release, engine)) as live:
            yield live
    finally:
        engine.close()
