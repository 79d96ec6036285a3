"""An artifact: what the target's engine loads, with what was measured about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from pathlib import Path

    from packager.model import Model, Signature


# Where the graph of an engine lies in a bundle, if ONNX Runtime does not load it.
ENGINE_GRAPH: Final = "model/engine.onnx"


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
class Score:
    """What a metric says of a candidate, on one part of the evaluation data.

    Attributes:
        metric: Its name.
        value: Of the candidate, in the metric's unit.
        original: Of the original, on the same rows, in the same engine.
        drop: How much worse the candidate is, in the metric's unit; below 0 where it is better.
        rows: How many labelled rows it was measured on.
    """

    metric: str
    value: float
    original: float
    drop: float
    rows: int


@dataclass(frozen=True, kw_only=True)
class LayerChoice:
    """One quantizable layer of a candidate, and why it is as it is.

    Attributes:
        name: The node's name in the original graph.
        op_type: As ONNX names it.
        weights: Number of elements of its constant weight.
        sqnr_db: Signal to quantization noise at the model's outputs with this layer alone
            quantized; None where it was not measured.
        precision: `int8`, `fp16`, `fp32` …
        reason: Why it stays in a higher precision; empty where it does not.
    """

    name: str
    op_type: str
    weights: int
    sqnr_db: float | None
    precision: str
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One compressed form of a model and the verdict on it.

    Attributes:
        name: The form's name, as `fp32`, `int8-dynamic`, `int8-static`; `quantized` as it came in.
        path: The ONNX file; None where it could not be made.
        size_bytes: Of the ONNX file.
        verdict: `chosen`, `passed`, `failed`, `drifted`, `slower`, `larger`, `skipped`.
        reason: Why, in a sentence; empty for the chosen one only if nothing needs saying.
        scheme: The quantization scheme in words, as `U8S8 per channel, 7-bit weights`.
        score: The metric on the half of the evaluation data that the search chooses on.
        confirmed: The metric on the other half; measured for those that may be chosen.
        on_front: No other candidate is better in size, latency and metric at once.
        layers: Per quantizable layer, where the form tells them apart.
        as_it_came: It is the original graph, which its clean-up had made slower or other.
    """

    name: str
    path: Path | None
    size_bytes: int
    verdict: str
    reason: str
    scheme: str = ""
    parity: Parity | None = None
    latency: Latency | None = None
    score: Score | None = None
    confirmed: Score | None = None
    on_front: bool = False
    layers: tuple[LayerChoice, ...] = ()
    as_it_came: bool = False


@dataclass(frozen=True, kw_only=True)
class Parts:
    """A graph in up to three, for two engines: what only the CPU runs is in front and behind.

    Attributes:
        head: ONNX file; None where the core takes the inputs as they come.
        core: The ONNX file that the accelerator's engine is built from.
        tail: ONNX file; None where the core gives the outputs.
        engine: What the engine is built from instead, where ONNX Runtime does not load it: the core
            in bf16. None where the core serves both.
    """

    head: Path | None
    core: Path
    tail: Path | None
    engine: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Prebuilt:
    """An engine that was built before the device got its bundle.

    Attributes:
        path: The serialized engine.
        fingerprint: Digest of what it depends on.
        facts: What that is, by name.
        soft: What it was tuned under, on the device that built it: GPU, driver, power mode.
    """

    path: Path
    fingerprint: str
    facts: dict[str, Any]
    soft: dict[str, Any] = field(default_factory=dict)


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
        parts: The same graph for two engines; None where one runs it whole.
        tensorrt: The engine recipe, `manifest["tensorrt"]` but for its engines; None without.
        engines: Built ahead, or on a reference device.
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
    parts: Parts | None = None
    tensorrt: dict[str, Any] | None = None
    engines: tuple[Prebuilt, ...] = ()
