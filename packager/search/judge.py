"""Makes one candidate and passes the verdict on it: loads, parity with the original, latency."""

from __future__ import annotations

import dataclasses
import math
import os
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from packager.artifact import Candidate, Latency, Parity
from packager.checks.latency import alternate, open_session
from packager.checks.parity import compare, contradiction
from packager.console import human_size
from packager.data import synthetic
from packager.passes.clean_up import CleanUp
from packager.passes.contract import PassContext, apply, first_line, tool_faults
from packager.passes.graph import constant_sizes, op_types, strip_texts
from packager.passes.quantizer import constant_weights

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from packager.console import Reporter
    from packager.data import Samples
    from packager.model import Model
    from packager.recipe import Compression
    from packager.search.forms import Form
    from packager.target import Target

    Sample = dict[str, NDArray[Any]]

HOLDOUT: Final = 0.3
MOST_CALIBRATION: Final = 256
MOST_COMPARISON: Final = 256
ENOUGH_ROWS: Final = 20
LEAST_CONFIDENCE: Final = 0.95
# Seen: a CNN of 26 thousand weights runs slower in int8. Where nothing can be timed, models of
# this size stay float.
LEAST_WEIGHTS: Final = 50_000
_SYNTHETIC_SAMPLES: Final = 8
_PROBES: Final = 2
_KEPT_BYTES: Final = 256 << 20


@dataclass(kw_only=True)
class Judge:
    """Everything the verdicts on one model and target have in common.

    Attributes:
        data: Samples as the model itself takes them; None where the user gave none.
        seed: For synthetic inputs in their place.
        untimed: Why nothing is timed here; empty where candidates are timed.
    """

    model: Model
    target: Target
    data: Samples | None
    compression: Compression
    threads: int
    workdir: Path
    reporter: Reporter
    seed: int
    untimed: str
    _base: Any = field(default=None, init=False)
    _base_notes: str = field(default="", init=False)

    def __post_init__(self) -> None:
        if self.data is None:
            self._calibration = None
            self._comparison = synthetic(self.model.signature, _SYNTHETIC_SAMPLES, self.seed)
        else:
            calibration, comparison = self.data.split(HOLDOUT)
            self._calibration = calibration[:MOST_CALIBRATION]
            self._comparison = comparison[:MOST_COMPARISON]
        self._inputs = _Kept(self._comparison)
        self._original = _Kept(_Answers(self.model.path, self._inputs, self.threads))
        self._context = PassContext(
            target=self.target,
            samples=self._calibration,
            probes=[self._inputs[i] for i in range(min(_PROBES, len(self._inputs)))],
            workdir=self.workdir,
            reporter=self.reporter,
            seed=self.seed,
        )

    def judge(self, form: Form, *, forced: bool) -> Candidate:
        """Make a candidate and return it with the verdict `passed`, or why not.

        Args:
            form: How to make it.
            forced: The user asked for it by name: no rule of thumb leaves it out.
        """
        import onnx

        blank = Candidate(name=form.name, path=None, size_bytes=0, verdict="skipped", reason="")
        reason = self._rule_of_thumb(form, forced=forced)
        if reason is not None:
            return dataclasses.replace(blank, reason=reason)
        model, reports = apply(form.passes, self._cleaned(), self._context)
        for report in reports:
            if report.status == "left out" or (
                report.status == "skipped" and report is reports[-1]
            ):
                verdict = "failed" if report.status == "left out" else "skipped"
                return dataclasses.replace(blank, verdict=verdict, reason=report.reason)
        path = self.workdir / f"{form.name}.onnx"
        onnx.save(model, path)
        made = dataclasses.replace(
            blank,
            path=path,
            size_bytes=path.stat().st_size,
            scheme=self.target.quantization.in_words() if form.passes else "",
            reason="; ".join([*self._said(), *(n for report in reports for n in report.notes)]),
        )
        if not form.passes:
            return self._judge_plain(made)
        return self._held_to_latency(self._held_to_parity(made))

    @property
    def compared_rows(self) -> int:
        """How many rows candidates are compared on; those of a batch count each."""
        return sum(_rows(sample) for sample in self._inputs)

    def parity_of(self, path: Path) -> Parity | str:
        """Return the parity of a file with the original, or why there is none."""
        answers = _Answers(path, self._inputs, self.threads)
        try:
            parity = compare(self._original, answers)
            if math.isinf(parity.max_abs):
                return next(filter(None, map(contradiction, self._original, answers)))
        except tool_faults() as fault:
            return f"it does not run: {first_line(fault)}"
        return parity

    def _said(self) -> list[str]:
        return ["compared on synthetic inputs"] if self.data is None else []

    def _cleaned(self) -> Any:
        if self._base is None:
            import onnx

            original = onnx.load(self.model.path)
            strip_texts(original)
            self._base, reports = apply((CleanUp(),), original, self._context)
            self._base_notes = "; ".join(note for report in reports for note in report.notes)
        return self._base

    def _rule_of_thumb(self, form: Form, *, forced: bool) -> str | None:
        if form.needs_samples and self._calibration is None:
            return "there is no calibration data: give a folder with `-c FOLDER`"
        if form.passes and not forced:
            model = self._cleaned()
            if form.needs_samples and is_attention(model):
                return "attention loses too much to one fixed range per tensor: see int8-dynamic"
            weights = sum(constant_weights(model, ("Conv", "Gemm", "MatMul", "Gather")).values())
            if self.untimed and 0 < weights < LEAST_WEIGHTS:
                return f"{weights} weights are too few to gain unmeasured"
        return None

    def _judge_plain(self, made: Candidate) -> Candidate:
        # The clean-up is held to what it replaces as well; where it loses, the original stays.
        judged = self._held_to_parity(made)
        if judged.verdict == "passed" and not self.untimed:
            latency = self._time(made, max_seconds=1.0)
            if latency is not None:
                judged = dataclasses.replace(judged, latency=latency)
                slower = latency.confidence <= 1 - LEAST_CONFIDENCE and latency.speedup < 0.95
                judged = dataclasses.replace(judged, verdict="slower" if slower else "passed")
        if judged.verdict == "passed" and made.path is not None:
            return dataclasses.replace(judged, reason=self._base_notes)
        import onnx

        original = onnx.load(self.model.path)
        strip_texts(original)
        path = self.workdir / "fp32.onnx"
        onnx.save(original, path)
        kept = dataclasses.replace(made, path=path, size_bytes=path.stat().st_size)
        reason = f"the graph as it came, as the cleaned one {judged.reason or 'is slower'}"
        judged = self._held_to_parity(kept)
        # Whatever limits say, the original is as near to itself as it can be.
        verdict = "failed" if judged.verdict == "failed" else "passed"
        return dataclasses.replace(judged, verdict=verdict, reason=reason)

    def _held_to_parity(self, made: Candidate) -> Candidate:
        if made.path is None:
            return made
        parity = self.parity_of(made.path)
        if isinstance(parity, str):
            return dataclasses.replace(made, verdict="failed", reason=parity)
        reason = self._drift(parity)
        if reason is not None:
            return dataclasses.replace(made, verdict="drifted", reason=reason, parity=parity)
        return dataclasses.replace(made, verdict="passed", parity=parity)

    def _drift(self, parity: Parity) -> str | None:
        limits = self.compression
        if parity.cosine < limits.min_cosine:
            return f"cosine {parity.cosine:.4f} is below {limits.min_cosine:g}"
        agreement = parity.top1_agreement
        # The largest score of a made-up input means nothing: only real data counts.
        enough = self.data is not None and self.compared_rows >= ENOUGH_ROWS
        if agreement is not None and enough and agreement < limits.min_agreement:
            return f"top-1 agreement {agreement:.1%} is below {limits.min_agreement:.1%}"
        floats = any("float" in spec.dtype for spec in self.model.signature.outputs)
        if not parity.exact and not floats:
            return "an integer or string output changed"
        return None

    def _held_to_latency(self, judged: Candidate) -> Candidate:
        if judged.verdict != "passed":
            return judged
        if self.untimed:
            return dataclasses.replace(judged, reason=_joined(judged.reason, self.untimed))
        latency = self._time(judged)
        if latency is None:
            return judged
        judged = dataclasses.replace(judged, latency=latency)
        if latency.speedup <= 1.0 or latency.confidence < LEAST_CONFIDENCE:
            reason = (
                f"{latency.speedup:.2f} × the original's speed "
                f"(confidence of a gain {latency.confidence:.0%})"
            )
            return dataclasses.replace(judged, verdict="slower", reason=reason)
        return judged

    def _time(self, made: Candidate, *, max_seconds: float = 6.0) -> Latency | None:
        if made.path is None:
            return None
        feeds = self._single()
        return alternate(
            self.model.path, made.path, feeds, self.threads, max_seconds=max_seconds,
            target_confidence=LEAST_CONFIDENCE,
        )  # fmt: skip

    def _single(self) -> Sample:
        # A real sample, as times can depend on the data; of a batch only the first entry.
        sample = self._inputs[0]
        leading = {s.shape[0].name if s.shape else None for s in self.model.signature.inputs}
        if len(leading) == 1 and None not in leading:
            return {name: array[:1] for name, array in sample.items()}
        return sample


def is_attention(model: Any) -> bool:
    """Tell whether a graph is mostly a transformer.

    It multiplies computed matrices, takes a Softmax, and its convolutions hold fewer weights than
    its matrix products.
    """
    constants = constant_sizes(model).keys()
    products = [node for node in model.graph.node if node.op_type == "MatMul"]
    computed = any(not set(node.input) & constants for node in products)
    convolutions = sum(constant_weights(model, ("Conv",)).values())
    weights = sum(constant_weights(model, ("MatMul", "Gemm")).values())
    attention = (computed and "Softmax" in op_types(model)) or "Attention" in op_types(model)
    return attention and convolutions <= weights


def is_this_machine(target: Target) -> bool:
    """Tell whether this machine has the target's architecture and processor features."""
    flags = _host_flags()
    some = target.cpu_features_any
    return (
        platform.machine() == target.arch
        and set(target.cpu_features_all) <= flags
        and (not some or bool(set(some) & flags))
    )


def host_level() -> str:
    """Return what a search's outcome depends on here: architecture, kernels and cores."""
    kernels = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "asimddp")
    flags = _host_flags()
    found = [kernel for kernel in kernels if kernel in flags]
    return " ".join([platform.machine(), *found, f"{os.cpu_count()} cores"])


def _host_flags() -> set[str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return set()
    return {
        word
        for line in text.splitlines()
        if line.partition(":")[0].strip() in {"flags", "Features"}
        for word in line.partition(":")[2].split()
    }


def describe(candidate: Candidate) -> str:
    """Return a candidate, its figures and its verdict as one line."""
    parts = [candidate.verdict]
    if candidate.path is not None:
        parts.append(human_size(candidate.size_bytes))
    if candidate.parity is not None:
        parts.append(f"cosine {candidate.parity.cosine:.4f}")
        if candidate.parity.top1_agreement is not None:
            parts.append(f"top-1 agreement {candidate.parity.top1_agreement:.1%}")
    if candidate.latency is not None:
        parts.append(
            f"{candidate.latency.p50_ms:.2f} ms, {candidate.latency.speedup:.2f} × as fast"
        )
    return f"{candidate.name}: " + _joined(", ".join(parts), candidate.reason)


class _Answers:
    """The outputs of a file for a sequence of inputs, computed anew at each pass over them."""

    def __init__(self, path: Path, inputs: Iterable[Sample], threads: int) -> None:
        self._path = path
        self._inputs = inputs
        self._threads = threads

    def __iter__(self) -> Iterator[Sample]:
        session = open_session(self._path, self._threads)
        names = [output.name for output in session.get_outputs()]
        for sample in self._inputs:
            yield dict(zip(names, session.run(names, dict(sample)), strict=True))


class _Kept:
    """A sequence whose first entries are kept in memory, as far as a limit in bytes allows."""

    def __init__(self, source: Any) -> None:
        self._source = source
        self._kept: list[Sample] | None = None

    def __iter__(self) -> Iterator[Sample]:
        if self._kept is not None:
            yield from self._kept
            return
        kept: list[Sample] | None = []
        size = 0
        for sample in self._source:
            size += sum(array.nbytes for array in sample.values())
            if kept is not None:
                kept.append(sample)
                kept = kept if size <= _KEPT_BYTES else None
            yield sample
        self._kept = kept

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Sample:
        return self._kept[index] if self._kept is not None else self._source[index]


def _rows(sample: Sample) -> int:
    return max((array.shape[0] if array.ndim else 1 for array in sample.values()), default=1)


def _joined(first: str, second: str) -> str:
    return f"{first}; {second}" if first and second else first or second
