"""The fields of a manifest that is as small as the reader takes it, without its files."""

from __future__ import annotations

from typing import Any

MANIFEST: dict[str, Any] = {
    "format": 1, "requires": ["xz"], "name": "m", "version": "1.0.0", "sequence": 1,
    "edgepack": "0.1.0",
    "target": {"name": "t", "arch": "x86_64", "os": "linux", "libc": "glibc 2.28",
               "cpu_features_all": [], "cpu_features_any": []},
    "engine": {"name": "onnxruntime", "version": "1", "library": "lib/e.so",
               "artifact": "model/m.onnx", "threads": 0, "precision": "fp32"},
    "model": {"signature": {"inputs": [], "outputs": []}, "labels": {}, "images": {}},
    "golden": {"samples": 0}, "server": {},
}  # fmt: skip
