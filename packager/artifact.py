"""An artifact: what the target's engine loads, with what was measured about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from packager.model import Model, Signature


@dataclass(frozen=True, kw_only=True)
class Parity:
    """How far a candidate's outputs are from the original's, over every compared sample.

    Attributes:
        samples: Number of samples compared.
        max_abs: Largest absolute difference of any element of any output.
        cosine: Smallest over outputs of the mean cosine similarity over samples.
        top1_agreement: Share of samples with the same arg max, where an output is a row of scores
            ([batch, classes], at least 2 classes); None elsewhere.
        exact: Integer, boolean and string outputs are identical.
    """

    samples: int
    max_abs: float
    cosine: float
    top1_agreement: float | None
    exact: bool


@dataclass(frozen=True, kw_only=True)
class Latency:
    """One session's latency at the signature's `opt` sizes with the batch at 1, alternated.

    Attributes:
        speedup: Median over the alternating pairs of original time / candidate time.
        confidence: Share of bootstrap resamples whose median ratio is above 1.
    """

    p50_ms: float
    p90_ms: float
    original_p50_ms: float
    speedup: float
    confidence: float
    threads: int
    runs: int


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One compressed form of a model and the verdict on it.

    Attributes:
        name: `fp32`, `int8-dynamic`, `int8-static`; `int8-static-mixed` (first layers float) and
            `int8-static-layers` (all between the layers float); `quantized` as it came in.
        path: The ONNX file; None where it could not be made.
        size_bytes: Of the ONNX file.
        verdict: `chosen`, `passed`, `failed`, `drifted`, `slower`, `skipped`.
        reason: Why, in a sentence; empty for the chosen one only if nothing needs saying.
        scheme: The quantization scheme in words, as `U8S8 per channel, 7-bit weights`.
    """

    name: str
    path: Path | None
    size_bytes: int
    verdict: str
    reason: str
    scheme: str = ""
    parity: Parity | None = None
    latency: Latency | None = None


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """The chosen candidate as the engine of a target loads it.

    Attributes:
        path: The file the engine loads.
        model: The original it came from.
        signature: Of the artifact: the model's, or with a pre-processed input replaced.
        precision: The chosen candidate's name.
        opset: Read back from the file.
        candidates: Every candidate with its verdict, the chosen one included.
        facts: Anything else measured, for the record.
    """

    path: Path
    model: Model
    signature: Signature
    precision: str
    scheme: str
    opset: int
    ir_version: int
    candidates: tuple[Candidate, ...]
    facts: dict[str, Any]
