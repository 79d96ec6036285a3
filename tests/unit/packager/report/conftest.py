"""A record as a build of a CNN of sixty layers leaves it, and its manifest."""

from __future__ import annotations

import copy
import random
from typing import TYPE_CHECKING, Any

import pytest

from tests.browser import axe, browser, page

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ("axe", "browser", "page")  # fixtures

DIGEST = "3f" * 32
KINDS = ("Conv", "Conv", "Conv", "MatMul", "Gemm")


def make_record(*, layers: int = 60) -> dict[str, Any]:
    """Return a record with every section filled, always the same."""
    draw = random.Random(11)
    names = [f"/features/blocks.{i // 3}/conv{i % 3}/Conv" for i in range(layers)]
    weights = [draw.randrange(2_000, 220_000) for _ in names]
    decibels = sorted(draw.uniform(14, 58) for _ in names)
    kept = set(names[:3])

    def score(value: float, rows: int) -> dict[str, Any]:
        return {
            "metric": "top1", "value": value, "original": 0.742, "drop": 0.742 - value,
            "rows": rows,
        }  # fmt: skip

    def candidate(
        name: str, size: int, verdict: str, speedup: float, value: float, **more: Any
    ) -> dict[str, Any]:
        return {
            "name": name, "size_bytes": size, "verdict": verdict, "reason": "",
            "scheme": "U8S8 per channel", "on_front": False, "layers": [], "confirmed": None,
            "parity": {
                "samples": 149, "max_abs": 0.61, "cosine": 1 - (0.742 - value) / 2 - 1e-4,
                "top1_agreement": 0.93 + value / 20, "exact": True,
            },
            "latency": {
                "p50_ms": 9.4 / speedup, "p90_ms": 10.1 / speedup, "original_p50_ms": 9.4,
                "speedup": speedup, "confidence": 1.0 if speedup > 1.02 else 0.43, "threads": 1,
                "runs": 41,
            },
            "score": score(value, 149), **more,
        }  # fmt: skip

    candidates = [
        candidate("fp32", 18_700_000, "passed", 1.0, 0.742, on_front=True, scheme=""),
        candidate("int8-dynamic", 5_400_000, "slower", 0.71, 0.741,
                  reason="runs at 0.71 × the original's speed, so it is not shipped"),
        candidate("int8-static", 4_980_000, "drifted", 2.1, 0.688, on_front=True,
                  reason="top1 falls by 0.054, and may fall by 0.005"),
        candidate("int8-static, rounded", 4_980_000, "drifted", 2.08, 0.731,
                  reason="top1 falls by 0.011, and may fall by 0.005"),
        candidate("int8-static, rounded, 3 layers in fp32", 5_120_000, "chosen", 2.02, 0.739,
                  on_front=True, confirmed=score(0.738, 149),
                  reason="2.02 × as fast and a quarter of the size inside the budget",
                  layers=[
                      {"name": n, "op_type": "Conv", "weights": w, "sqnr_db": d,
                       "precision": "fp32" if n in kept else "int8", "reason": ""}
                      for n, w, d in zip(names, weights, decibels, strict=True)
                  ]),
        candidate("fp16", 9_400_000, "slower", 0.55, 0.742, reason="no kernel for half precision"),
        {"name": "int4", "size_bytes": 0, "verdict": "skipped", "scheme": "",
         "reason": "no MatMul with constant weights", "parity": None, "latency": None,
         "score": None, "confirmed": None, "on_front": False, "layers": []},
    ]  # fmt: skip
    reason = "kept in fp32: 14.2 dB with it alone in int8, and the budget is lost without it"
    return {
        "bundle": {
            "target": "cpu-x86_64-vnni", "path": "dist/efficientnet-1.0.0-cpu-x86_64-vnni.edgepack",
            "digest": DIGEST, "size_bytes": 10_900_000, "original_bytes": 18_700_000,
            "parts": {"model": 4_700_000, "engine": 6_000_000, "runtime": 120_000, "other": 80_000},
            "precision": "int8-static, rounded, 3 layers in fp32", "scheme": "U8S8 per channel",
            "candidates": candidates,
            "checks": {"integrity": "verified", "self-test": "passed here (avx512_vnni)",
                       "emulated Haswell": "passed (avx2), cosine ≥ 0.999712"},
        },
        "plan": {
            "bundle": "dist/efficientnet-1.0.0-cpu-x86_64-vnni.edgepack",
            "steps": [
                {"stage": "import", "choice": "torch.export",
                 "reason": "the exporter of the installed torch; falls back to the older tracer"},
                {"stage": "compress", "choice": "search for latency, top1 may drop by 0.005",
                 "reason": "int8 dot products of VNNI; `--max-drop 0.5%`"},
                {"stage": "bundle", "choice": "onnxruntime 1.32.0",
                 "reason": "the engine of the target cpu-x86_64-vnni"},
            ],
        },
        "model": {
            "signature": {"inputs": [], "outputs": []},
            "provenance": {
                "kind": "torch", "source": "efficientnet_lite0.py:make_model",
                "source_sha256": "ab" * 32, "exporter": "torch.export",
                "rungs": [["torch.export", "passed"]],
                "notes": ["the batch axis of `image` is dynamic"],
            },
        },
        "facts": {"image_parity": {"image": {"photos": 16, "max_abs": 0.017}}},
        "host": {"platform": "Linux-6.1-x86_64-with-glibc2.36", "cores": 2,
                 "tools": {"edgepack": "0.2.0", "onnxruntime": "1.32.0", "torch": "2.13.0"}},
        "began": "2026-02-03T04:05:06Z",
        "took_s": 312.4,
        "search": {
            "objective": "latency", "metric": "top1",
            "budget": {"value": 0.005, "relative": False},
            "limits": {"min_cosine": 0.99, "min_agreement": 0.9},
            "original": {"size_bytes": 18_700_000, "p50_ms": 9.4, "score": 0.742},
            "candidates": candidates,
            "front": [c["name"] for c in candidates if c["on_front"]],
            "evaluations": 9, "took_s": 241.0, "probes": layers,
            "sensitivity": [
                {"name": n, "op_type": KINDS[i % 5], "weights": w, "sqnr_db": d,
                 "precision": "fp32" if n in kept else "int8",
                 "reason": reason if n in kept else ""}
                for i, (n, w, d) in enumerate(zip(names, weights, decibels, strict=True))
            ],
            "coverage": [
                {"tensor": "/features/stem/Relu_output_0", "share": 0.0123, "low": 0.0,
                 "high": 5.1, "seen_low": 0.0, "seen_high": 6.0},
                {"tensor": "/head/Add_output_0", "share": 0.0004, "low": -3.0, "high": 3.2,
                 "seen_low": -3.1, "seen_high": 3.9},
            ],
            "data": {
                "calibration": {"origin": "64 photos of calibration", "digest": "c1" * 32,
                                "kind": "photos", "samples": 64},
                "comparison": {"origin": "298 photos of photos", "digest": "e1" * 32,
                               "kind": "photos", "samples": 149},
                "confirmation": None,
            },
            "disagreements": [
                {"sample": f"photo-{i:03}.jpg", "row": 0, "distance": 0.21 / (i + 1),
                 "changed": i < 3, "original": [["espresso", 9.1], ["cup", 8.8], ["eggnog", 4.2]],
                 "artifact": [["cup", 8.9], ["espresso", 8.7], ["eggnog", 4.4]]}
                for i in range(8)
            ],
            "sizes": [
                {"layer": n, "kind": KINDS[i % 5], "bytes_before": 4 * w,
                 "bytes_after": 4 * w if n in kept else w}
                for i, (n, w) in enumerate(zip(names, weights, strict=True))
            ],
            "latencies_ms": {
                "original": [9.4 + draw.gammavariate(2, 0.15) for _ in range(60)],
                "artifact": [4.6 + draw.gammavariate(2, 0.1) for _ in range(59)] + [31.0],
            },
            "command": "edgepack build efficientnet_lite0.py:make_model -t cpu-x86_64-vnni"
                       " -c calibration --eval photos --metric top1 --max-drop 0.5%",
        },
    }  # fmt: skip


def make_manifest() -> dict[str, Any]:
    return {
        "name": "efficientnet", "version": "1.0.0", "edgepack": "0.2.0",
        "target": {"name": "cpu-x86_64-vnni"},
        "engine": {"name": "onnxruntime", "version": "1.32.0"},
        "model": {"source": "efficientnet_lite0.py:make_model"},
    }  # fmt: skip


@pytest.fixture
def record() -> dict[str, Any]:
    return make_record()


@pytest.fixture
def render() -> Callable[..., str]:
    """Render a record with the manifest of the same bundle, or another one."""
    from packager.report.page import render_report
    from packager.report.reading import Part

    def rendered(record: dict[str, Any], manifest: dict[str, Any] | None = None) -> str:
        page, _ = render_report(Part(record), Part(manifest or make_manifest()))
        return page

    return rendered


HOSTILE = (
    "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    "'\"--> {{ 7 * 7 }} </style></svg><style>*{display:none}</style>"
    "\u202egnp.exe\u2066\x00\x1b[31m\u200b" + "Z" * 3000 + "́" * 50
)


@pytest.fixture
def short_record() -> dict[str, Any]:
    """Return a record of few layers, for checks that look at every element of the page."""
    return make_record(layers=8)


@pytest.fixture
def hostile(short_record: dict[str, Any]) -> dict[str, Any]:
    """Return a record with every text in it replaced by a hostile one, keys included."""

    def spoiled(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            keys = {} if key in ("search", "bundle", "") else {HOSTILE: HOSTILE}
            return {**{k: spoiled(v, k) for k, v in value.items()}, **keys}
        if isinstance(value, list):
            return [spoiled(entry, "entry") for entry in value]
        # These are words of ours: spoiled ones only make the sections empty.
        keep = key in ("verdict", "precision", "metric", "digest")
        return HOSTILE if isinstance(value, str) and not keep else value

    return spoiled(copy.deepcopy(short_record))
