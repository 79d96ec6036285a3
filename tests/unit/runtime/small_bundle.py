"""A bundle of the MLP with the whole runtime, and a process that serves it."""

from __future__ import annotations

import http.client
import json
import os
import platform
import re
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnxruntime

from packager.bundle.archive import Entry, write_archive
from packager.bundle.render import render_server
from tests.models.mlp import make_mlp
from tests.unit.runtime.live_server import BATCH, tensor

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ROOT = Path(__file__).resolve().parents[3]
INFER = "/v2/models/mlp/infer"
ROW = [0.5] * 64
_SERVER = {
    "max_json_kb": 64, "metrics": True, "openapi": True, "plain": True, "grpc": True,
    "page": False, "workers": None, "queue": 64, "deadline_s": 0.0, "batching": None,
}  # fmt: skip


def write_bundle(
    path: Path,
    library: Path,
    *,
    version: str = "1.2.0",
    model: bytes | None = None,
    fields: Mapping[str, Any] | None = None,
    files: Mapping[str, Path] | None = None,
    **server: Any,
) -> Path:
    """Write a bundle of a model with the MLP's signature, without golden samples.

    Args:
        path: The file to write.
        library: ONNX Runtime's shared library.
        version: The release's version.
        model: None for the MLP.
        fields: Further keys of the manifest.
        files: Further files by their path in the bundle.
        server: What differs in its `server` table.
    """
    manifest = {
        "format": 1,
        "requires": ["xz"],
        "name": "mlp",
        "version": version,
        "sequence": 1,
        "edgepack": "0.1.0",
        "target": {
            "name": "any", "family": "cpu", "arch": platform.machine(), "os": "linux",
            "libc": "glibc 2.28", "python": "3.8",
            "cpu_features_all": [], "cpu_features_any": [], "memory_mib": 64,
            "board": None,
        },
        "engine": {
            "name": "onnxruntime", "version": onnxruntime.__version__,
            "library": "lib/libonnxruntime.so", "artifact": "model/model.onnx", "threads": 1,
            "precision": "fp32", "scheme": "",
        },
        "model": {
            "source": "mlp.onnx", "source_sha256": "0" * 64, "exporter": "none",
            "signature": {
                "inputs": [tensor("x", "float32", BATCH, 64)],
                "outputs": [tensor("logits", "float32", BATCH, 10)],
            },
            "images": {}, "labels": {},
        },
        "golden": {"samples": 0},
        "server": {**_SERVER, **server},
        **(fields or {}),
    }  # fmt: skip
    runtime = ROOT / "runtime"
    entries = [
        *(Entry(path=name, source=data) for name, data in render_server(manifest).items()),
        *(
            Entry(path=f"runtime/{file.relative_to(runtime)}", source=file)
            for file in sorted(runtime.rglob("*.py"))
        ),
        Entry(path="model/model.onnx", source=model or make_mlp().SerializeToString()),
        Entry(path="lib/libonnxruntime.so", source=library),
        *(Entry(path=name, source=file) for name, file in (files or {}).items()),
    ]
    write_archive(path, manifest, entries)
    return path


@contextmanager
def serving_process(
    bundle: Path, cache: Path, *options: str, python: str = sys.executable, **environment: str
) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Serve a bundle in a process of its own, which is ended with whatever it starts.

    Gives the process and its port.
    """
    process = subprocess.Popen(
        [python, "-I", str(bundle), "serve", "--port", "0", *options],
        env={"XDG_CACHE_HOME": str(cache), **environment},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stderr is not None
        seen = ""
        while not (match := re.search(r"https?://127\.0\.0\.1:(\d+)", seen)):
            line = process.stderr.readline()
            assert line, seen
            seen += line
        yield process, int(match[1])
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=30)


def ask(port: int, path: str, document: Any = None) -> tuple[int, Any]:
    """Ask over a connection of its own; returns the status and the JSON that came."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        body = None if document is None else json.dumps(document)
        connection.request("GET" if body is None else "POST", path, body)
        reply = connection.getresponse()
        return reply.status, json.loads(reply.read() or b"null")
    finally:
        connection.close()


def infer_document(row: list[float] | None = None) -> dict[str, Any]:
    """Return an infer request of one row."""
    data = ROW if row is None else row
    return {"inputs": [{"name": "x", "shape": [1, 64], "datatype": "FP32", "data": data}]}
