"""What a server is sent and must not keep, a model that quotes it, and every trace it leaves."""

from __future__ import annotations

import base64
import re
import resource
import struct
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.unit.runtime import small_bundle
from tests.unit.runtime.live_server import tensor

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

TEXT = "kanarienvogel-7f3a9c"
# exact in every float type that holds it, and found nowhere else
NUMBER = 7531902.5
INDEX = 918273645
MODEL = "/v2/models/mlp"
ROWS = {"name": "rows", "min": 1, "max": 8, "opt": 1}
TRIGGERS = {"raise": 1.0, "thread": 2.0, "unraisable": 3.0, "crash": 4.0, "leak": 5.0, "abort": 6.0}
SOURCE: dict[str, Any] = {
    "source": "canary.onnx", "source_sha256": "0" * 64, "exporter": "none",
    "images": {}, "labels": {},
}  # fmt: skip
# What goes wrong on a device when nobody expects it, and quotes what it was working on.
TREACHEROUS = """
import gc
import os
import signal
import threading

_build = build


class Careless:
    def __init__(self, said):
        self.said = said

    def __repr__(self):
        return self.said

    def __del__(self):
        raise ValueError(self.said)


def _values(tensor):
    if type(tensor.data) is list:
        return tensor.data
    data = memoryview(tensor.data).cast("B")
    if tensor.dtype == "uint8":
        return bytes(data)
    return data.cast({"float32": "f", "int64": "q"}[tensor.dtype]).tolist()


class Treacherous:
    def __init__(self, engine):
        self._engine = engine
        self._said = ""
        signal.signal(signal.SIGUSR1, self._crash)

    def __getattr__(self, name):
        return getattr(self._engine, name)

    def _crash(self, *_):
        try:
            raise KeyError(self._said)
        except KeyError as error:
            raise RuntimeError(self._said) from error

    def _fail(self):
        raise RuntimeError(self._said)

    def run(self, feeds, outputs=None):
        x = _values(feeds["x"])
        said = self._said = repr({name: _values(one) for name, one in feeds.items()})
        if x[1] == 1.0:
            self._fail()
        if x[1] == 2.0:
            thread = threading.Thread(target=self._fail, name=said)
            thread.start()
            thread.join()
        if x[1] == 3.0:
            Careless(said)
            gc.collect()
        if x[1] == 4.0:
            os.kill(os.getpid(), signal.SIGUSR1)
        if x[1] == 5.0:
            print(said, file=__import__("sys").stderr, flush=True)
        if x[1] == 6.0:
            os.abort()
        return self._engine.run(feeds, outputs)


def build(release, engine):
    return _build(release, Treacherous(engine))
"""


def forms() -> dict[str, bytes]:
    """Return every form in which a canary could lie in a file."""
    found = {
        "text": TEXT.encode(),
        "UTF-16": TEXT.encode("utf-16-le"),
        "UTF-32": TEXT.encode("utf-32-le"),
        "hexadecimal": TEXT.encode().hex().encode(),
        "number": b"%.1f" % NUMBER,
        "number with exponent": b"7.5319025e+06",
        "float32": struct.pack("<f", NUMBER),
        "float64": struct.pack("<d", NUMBER),
        "index": b"%d" % INDEX,
        "int64": struct.pack("<q", INDEX),
    }
    for skipped in range(3):  # base64 looks otherwise at each place in a group of three
        inside = base64.b64encode(b"\0" * skipped + TEXT.encode())
        found[f"base64, {skipped}"] = inside[4 if skipped else 0 : -4]
    return found


def search(folder: Path) -> list[str]:
    """Return where a canary lies in any file or name below a folder."""
    found = []
    for path in sorted(folder.rglob("*")):
        data = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        name = path.relative_to(folder).as_posix()
        found += [
            f"{name}: {form}"
            for form, needle in forms().items()
            if needle in data or needle in name.encode()
        ]
    return found


def canary_model() -> bytes:
    from onnx import TensorProto, helper, numpy_helper

    value = helper.make_tensor_value_info
    table = numpy_helper.from_array(np.zeros((10, 4), np.float32), "table")
    graph = helper.make_graph(
        [
            helper.make_node("Identity", ["text"], ["echo"]),
            helper.make_node("Gather", ["table", "index"], ["row"]),
            helper.make_node("Add", ["x", "row"], ["y"]),
        ],
        "canary",
        [
            value("text", TensorProto.STRING, ["rows"]),
            value("x", TensorProto.FLOAT, ["rows", 4]),
            value("index", TensorProto.INT64, ["rows"]),
        ],
        [value("echo", TensorProto.STRING, ["rows"]), value("y", TensorProto.FLOAT, ["rows", 4])],
        [table],
    )
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


def treacherous_bundle(
    path: Path, library: Path, model: bytes, fields: Mapping[str, Any], **parts: Any
) -> Path:
    """Write a bundle whose engine fails where a request's second number says so."""
    rendered = small_bundle.render_server

    def treacherous(manifest: Any) -> dict[str, bytes]:
        files = rendered(manifest)
        return {**files, "server/app.py": files["server/app.py"] + TREACHEROUS.encode()}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(small_bundle, "render_server", treacherous)
        return small_bundle.write_bundle(path, library, model=model, fields=fields, **parts)


def canary_bundle(path: Path, library: Path) -> Path:
    """Write a bundle with everything on that could keep or tell something."""
    signature = {
        "inputs": [
            tensor("text", "string", ROWS),
            tensor("x", "float32", ROWS, 4),
            tensor("index", "int64", ROWS),
        ],
        "outputs": [tensor("echo", "string", ROWS), tensor("y", "float32", ROWS, 4)],
    }
    fields = {
        "model": {**SOURCE, "signature": signature},
        "bodies": {"text/csv": {}},
        "privacy": {"mask": ["index"], "capture": 1.0, "keep_s": 3600.0, "drift": True},
    }
    return treacherous_bundle(path, library, canary_model(), fields)


@dataclass
class Watched:
    """A server whose every trace is under one folder.

    Attributes:
        folder: Working folder, home, caches, temporary files, state, standard streams.
        inputs: What clients have beside that: keys and the bundle.
    """

    folder: Path
    inputs: Path
    process: subprocess.Popen[bytes] = field(init=False)
    port: int = field(init=False)

    def read(self, name: str = "stderr") -> str:
        return (self.folder / name).read_text(errors="replace")

    @property
    def key(self) -> Path:
        return self.inputs / "capture.key"

    def captures(self, bundle: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Run `captures` of the bundle on what this server has kept."""
        return subprocess.run(
            [sys.executable, "-I", bundle, "captures", *map(str, arguments), "--dir",
             self.folder / "state", "--capture-key", self.key],
            env={"XDG_CACHE_HOME": str(self.inputs / "cache")}, cwd=self.inputs,
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip


@contextmanager
def watched(bundle: Path, tmp_path: Path, *options: str | Path) -> Iterator[Watched]:
    """Serve with all logs, capture and drift on, and with core files allowed by whoever started."""
    server = Watched(folder=tmp_path / "server", inputs=tmp_path / "inputs")
    server.inputs.mkdir(exist_ok=True)
    for name in ("cwd", "home", "cache", "tmp", "state"):
        (server.folder / name).mkdir(parents=True, mode=0o700)
    server.key.write_bytes(bytes(range(32)))
    server.key.chmod(0o600)
    with (
        (server.folder / "stderr").open("wb") as stderr,
        (server.folder / "stdout").open("wb") as out,
    ):
        server.process = subprocess.Popen(
            [sys.executable, "-I", bundle, "serve", "--port", "0", "--log", "json", "--access-log",
             *options],
            env={
                "HOME": str(server.folder / "home"), "TMPDIR": str(server.folder / "tmp"),
                "XDG_CACHE_HOME": str(server.folder / "cache"),
                "STATE_DIRECTORY": str(server.folder / "state"),
                "CREDENTIALS_DIRECTORY": str(server.inputs),
                "PATH": "/usr/bin:/bin",
            },
            cwd=server.folder / "cwd", stdin=subprocess.DEVNULL, stdout=out, stderr=stderr,
            preexec_fn=allow_core_files,  # noqa: PLW1509 - no other thread runs here
        )  # fmt: skip
    try:
        end = time.monotonic() + 60
        while not (match := re.search(r"https?://127\.0\.0\.1:(\d+)", server.read())):
            assert server.process.poll() is None, server.read()
            assert time.monotonic() < end, server.read()
            time.sleep(0.05)
        server.port = int(match[1])
        yield server
    finally:
        server.process.kill()
        server.process.wait(30)


def allow_core_files() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (most, most))
