"""What the record tells about a search besides the candidates: data, sizes, times, differences."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final

from packager.checks.latency import distribution
from packager.passes.external import tensor_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from packager.artifact import Candidate
    from packager.data import Samples
    from packager.search.judge import Judge
    from packager.search.sensitivity import LayerSensitivity
    from packager.search.setting import Setting

_LATENCY_RUNS: Final = 60
_COVERED_ON: Final = 32


def measured_record(
    setting: Setting,
    judge: Judge,
    chosen: Candidate,
    *,
    ranking: Sequence[LayerSensitivity],
    took_s: float,
    complete: bool,
) -> dict[str, Any]:
    """Return the record's table about a search, as `docs/architecture.md` has it."""
    compression, drop = setting.compression, setting.max_drop
    precision = {layer.name: layer for layer in chosen.layers}
    latency = chosen.latency
    return {
        "objective": compression.objective,
        "metric": setting.metric.name if setting.metric is not None else "",
        "budget": dataclasses.asdict(drop) if drop is not None else None,
        "limits": {
            "min_cosine": compression.min_cosine, "min_agreement": compression.min_agreement,
        },
        "original": {
            "size_bytes": setting.model.size_bytes,
            "p50_ms": latency.original_p50_ms if latency is not None else None,
            "score": chosen.score.original if chosen.score is not None else None,
        },
        "evaluations": judge.evaluations,
        "probes": len(ranking),
        "took_s": round(took_s, 3),
        "complete": complete,
        "sensitivity": [
            {
                "name": layer.name, "op_type": layer.op_type, "weights": layer.weights,
                "sqnr_db": layer.sqnr_db,
                "precision": precision[layer.name].precision if layer.name in precision else "",
                "reason": precision[layer.name].reason if layer.name in precision else "",
            }
            for layer in ranking
        ],
        "coverage": _coverage(setting, chosen),
        "data": {
            "calibration": _told(setting.calibration),
            "comparison": _told(setting.comparison),
            "confirmation": _told(setting.confirmation),
        },
        "disagreements": judge.disagreements(chosen),
        "sizes": sizes(setting, chosen),
        "latencies_ms": _latencies(setting, judge, chosen),
    }  # fmt: skip


def sizes(setting: Setting, chosen: Candidate) -> list[dict[str, Any]]:
    """Return the bytes of weights per layer in the original and in the chosen candidate."""
    import onnx

    before: defaultdict[str, int] = defaultdict(int)
    after: defaultdict[str, int] = defaultdict(int)
    kinds: dict[str, str] = {}
    files = ((before, setting.model.path), (after, chosen.path))
    for found, path in files:
        if path is None:
            continue
        model = onnx.load(path, load_external_data=False)
        for name, kind, size in _owned(model):
            found[name] += size
            kinds.setdefault(name, kind)
    return [
        {"layer": name, "kind": kinds[name], "bytes_before": before[name],
         "bytes_after": after[name]}
        for name in kinds
    ]  # fmt: skip


def _owned(model: Any) -> list[tuple[str, str, int]]:
    """Return (layer, operator, bytes) of every constant; through a DequantizeLinear to its user."""
    users: dict[str, Any] = {}
    for node in model.graph.node:
        for name in node.input:
            users.setdefault(name, node)
    found = []
    for tensor in model.graph.initializer:
        node = users.get(tensor.name)
        while node is not None and node.op_type == "DequantizeLinear":
            node = users.get(node.output[0])
        name = node.name.removesuffix("_quant") if node is not None else ""
        kind = node.op_type if node is not None else "unused"
        outside = tensor_bytes(tensor) if tensor.external_data else 0
        size = outside or len(tensor.raw_data) or tensor.ByteSize()
        found.append((name or f"{kind} without a name", kind, size))
    return found


def _told(samples: Samples | None) -> dict[str, Any] | None:
    if samples is None:
        return None
    return {
        "origin": samples.origin, "digest": samples.digest, "kind": samples.kind,
        "samples": len(samples),
    }  # fmt: skip


def _coverage(setting: Setting, chosen: Candidate) -> list[dict[str, Any]] | None:
    from packager.checks.coverage import coverage

    if chosen.path is None or not setting.real or "int8-static" not in chosen.name:
        return None
    part = setting.comparison[:_COVERED_ON]
    found = coverage(chosen.path, part, threads=setting.threads)
    return [dataclasses.asdict(clipped) for clipped in found]


def _latencies(setting: Setting, judge: Judge, chosen: Candidate) -> dict[str, list[float]]:
    if setting.untimed or chosen.path is None:
        return {"original": [], "artifact": []}
    original, artifact = distribution(
        setting.model.path, chosen.path, judge.feeds(), setting.threads, runs=_LATENCY_RUNS
    )
    return {"original": original, "artifact": artifact}
