"""Passes the verdict on one form: loads, parity with the original, metric, latency, gain."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any, Final

from packager.artifact import Candidate, Latency, Parity, Score
from packager.checks.latency import alternate, race
from packager.checks.parity import compare, contradiction
from packager.console import human_size
from packager.errors import UsageError
from packager.passes.contract import first_line, tool_faults
from packager.passes.graph import strip_texts
from packager.passes.quantizer import constant_weights
from packager.search.answers import Answers, Kept, finished, rows_of
from packager.search.fit import is_attention
from packager.search.forms import ORIGINAL, PLAIN
from packager.search.large import LargeMaker
from packager.search.maker import Made, Maker, NotMade
from packager.search.table import joined

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from packager.checks.metrics import Measured
    from packager.data import Samples
    from packager.search.forms import Form
    from packager.search.journal import Journal
    from packager.search.setting import Setting

    Sample = dict[str, NDArray[Any]]

ENOUGH_ROWS: Final = 20
LEAST_CONFIDENCE: Final = 0.95
SAME_ANSWERS: Final = 0.99
# Seen: a CNN of 26 thousand weights runs slower in int8. Where nothing can be timed, models of
# this size stay float.
LEAST_WEIGHTS: Final = 50_000
_TIMED_S: Final = 6.0
# For one that is out of the budget, or the original under another name: only the plot needs it.
_GLANCE_S: Final = 1.0
# For those among which the fastest is sought.
_RACE_S: Final = 8.0


class Judge:
    """Judges forms of one model on one setting; what was judged before is taken from the journal.

    Attributes:
        maker: What makes their files.
        evaluations: How often a candidate answered a whole set of samples so far.
    """

    def __init__(self, setting: Setting, journal: Journal) -> None:
        self._setting = setting
        self._journal = journal
        self._inputs = Kept(setting.comparison)
        self._original = Kept(Answers(setting.model.path, self._inputs, setting.threads))
        self._values: dict[str, Measured] = {}
        maker = LargeMaker if setting.model.large else Maker
        self.maker = maker(setting, self._inputs)  # type: ignore[arg-type]
        self.evaluations = 0

    @property
    def compared_rows(self) -> int:
        """How many rows candidates are compared on; those of a batch count each."""
        return sum(rows_of(sample) for sample in self._inputs)

    def judge(self, form: Form, *, forced: bool) -> Candidate:
        """Make a candidate and return it with the verdict `passed`, or why not.

        Args:
            form: How to make it.
            forced: The user asked for it by name: no rule of thumb leaves it out.
        """
        known = self._journal.find(form)
        if known is not None:
            if known.path is not None:
                self._setting.reporter.note(f"{form.name}: judged in an earlier run")
            self.evaluations += known.parity is not None
            return known
        candidate = self._judged(form, forced=forced)
        self._journal.keep(form, candidate)
        return candidate

    def limit(self, part: str = "comparison") -> float:
        """Return how much of the metric may be lost on a part of the data, in the metric's unit."""
        drop = self._setting.max_drop
        if drop is None:
            return math.inf
        return drop.value * abs(self._original_value(part)) if drop.relative else drop.value

    def disagreements(self, candidate: Candidate) -> list[dict[str, Any]]:
        """Return the samples on which a candidate and the original differ most."""
        from packager.checks.disagree import most_different

        if candidate.path is None:
            return []
        data = self._setting.data
        answers = Answers(candidate.path, self._inputs, self._setting.threads)
        return most_different(
            finished(self._original, data.finish),
            finished(answers, data.finish),
            self._setting.comparison.names,
            labels=data.alphabet or None,
        )

    def feeds(self) -> Sample:
        """Return one real sample to time on, as times can depend on the data; batch at 1."""
        sample = self._inputs[0]
        inputs = self._setting.model.signature.inputs
        leading = {s.shape[0].name if s.shape else None for s in inputs}
        if len(leading) == 1 and None not in leading:
            return {name: array[:1] for name, array in sample.items()}
        return sample

    def _judged(self, form: Form, *, forced: bool) -> Candidate:
        blank = Candidate(name=form.name, path=None, size_bytes=0, verdict="skipped", reason="")
        reason = self._rule_of_thumb(form, forced=forced)
        if reason is not None:
            return dataclasses.replace(blank, reason=reason)
        path = self._setting.workdir / f"{form.name}.onnx"
        made = self.maker.write(form, path)
        if isinstance(made, NotMade):
            return dataclasses.replace(blank, verdict=made.verdict, reason=made.reason)
        said = [] if self._setting.real else ["compared on made-up inputs"]
        candidate = dataclasses.replace(
            blank,
            path=path,
            size_bytes=path.stat().st_size,
            scheme=self._scheme(form),
            reason="; ".join([*said, *made.notes]),
        )
        if form.name == PLAIN and form.shape != ORIGINAL:
            return self._judge_plain(candidate, made)
        return self._held_to_gain(self._held_to_budget(candidate))

    def _scheme(self, form: Form) -> str:
        if form.precision.startswith("int8-") and form.precision != "int8-weights":
            return self._setting.target.quantization.in_words()
        return ""

    def _rule_of_thumb(self, form: Form, *, forced: bool) -> str | None:
        setting = self._setting
        if form.needs_samples and setting.calibration is None:
            return "there is no calibration data: give a folder with `-c FOLDER`"
        if form.needs_samples and not forced and setting.calibrated_rows < 2:
            return "one single sample is too little to calibrate on: ask for it with `--precision`"
        if form.passes and not forced:
            base = self.maker.graph()
            if isinstance(base, NotMade):
                return None
            if form.precision == "int8-static" and is_attention(base.model) and not form.rank:
                return "attention loses too much to one fixed range per tensor: see int8-dynamic"
            kinds = ("Conv", "Gemm", "MatMul", "Gather")
            weights = sum(constant_weights(base.model, kinds).values())
            if setting.untimed and 0 < weights < LEAST_WEIGHTS:
                return f"{weights} weights are too few to gain unmeasured"
        return None

    def _judge_plain(self, made: Candidate, cleaned: Made) -> Candidate:
        # The clean-up is held to what it replaces as well; where it loses, the original stays.
        judged = self._held_to_budget(made)
        if judged.verdict == "passed" and not self._setting.untimed:
            latency = self._time(made, max_seconds=_GLANCE_S)
            slower = latency.confidence <= 1 - LEAST_CONFIDENCE and latency.speedup < 0.95
            verdict = "slower" if slower else "passed"
            judged = dataclasses.replace(judged, latency=latency, verdict=verdict)
        if judged.verdict == "passed":
            return dataclasses.replace(judged, reason="; ".join(cleaned.notes))
        import onnx

        original = onnx.load(self._setting.model.path)
        strip_texts(original)
        path = self._setting.workdir / "fp32.onnx"
        onnx.save(original, path)
        kept = dataclasses.replace(made, path=path, size_bytes=path.stat().st_size)
        reason = f"the graph as it came, as the cleaned one {judged.reason or 'is slower'}"
        judged = self._held_to_budget(kept)
        # Whatever limits say, the original is as near to itself as it can be.
        verdict = "failed" if judged.verdict == "failed" else "passed"
        return dataclasses.replace(judged, verdict=verdict, reason=reason, as_it_came=True)

    def _held_to_budget(self, made: Candidate) -> Candidate:
        if made.path is None:
            return made
        self.evaluations += 1
        answers = Kept(Answers(made.path, self._inputs, self._setting.threads))
        parity = self._parity(answers)
        if isinstance(parity, str):
            return dataclasses.replace(made, verdict="failed", reason=parity)
        made = dataclasses.replace(made, parity=parity)
        if self._setting.metric is not None:
            score = self._score(answers, "comparison")
            made = dataclasses.replace(made, score=score)
        reason = self._drift(made, parity)
        if reason is not None:
            return dataclasses.replace(made, verdict="drifted", reason=reason)
        return self._confirmed(dataclasses.replace(made, verdict="passed"))

    def _confirmed(self, passed: Candidate) -> Candidate:
        """Hold a candidate to the half of the evaluation data that has no part in the choice."""
        setting = self._setting
        if setting.confirmation is None or setting.metric is None or passed.path is None:
            return passed
        score = self._score(
            Answers(passed.path, setting.confirmation, setting.threads), "confirmation"
        )
        passed = dataclasses.replace(passed, confirmed=score)
        if score.drop <= self.limit("confirmation"):
            return passed
        reason = (
            f"keeps the budget on one half of the data, and loses {score.drop:.4g} of "
            f"{score.metric} on the other"
        )
        return dataclasses.replace(passed, verdict="drifted", reason=reason)

    def _parity(self, answers: Kept) -> Parity | str:
        try:
            if self._setting.model.large:
                # One session after the other: both at once hold more than either needs.
                self._original.fill()
                answers.fill()
            parity = compare(self._original, answers)
            if math.isinf(parity.max_abs):
                return next(filter(None, map(contradiction, self._original, answers)))
        except tool_faults() as fault:
            return f"it does not run: {first_line(fault)}"
        return parity

    def _score(self, answers: Any, part: str) -> Score:
        from packager.checks.metrics import drop

        metric = self._metric
        labels = self._labels(part)
        original = self._original_value(part)
        found = metric.measure(
            finished(answers, self._setting.data.finish),
            finished(self._references(part), self._setting.data.finish),
            labels,
        )
        return Score(
            metric=metric.name,
            value=found.value,
            original=original,
            drop=drop(metric, original, found.value),
            rows=found.rows,
        )

    def measured_original(self) -> Measured:
        """Return what the metric says of the original on both halves of the evaluation data."""
        parts = ["comparison", *(["confirmation"] if self._setting.confirmation else [])]
        found = [self._original_measured(part) for part in parts]
        rows = sum(measured.rows for measured in found)
        first = found[0]
        step = first.step * first.rows / rows if first.step is not None else None
        value = sum(measured.value * measured.rows for measured in found) / rows
        return dataclasses.replace(first, value=value, rows=rows, step=step)

    def _original_value(self, part: str) -> float:
        return self._original_measured(part).value

    def _original_measured(self, part: str) -> Measured:
        if part not in self._values:
            finish = self._setting.data.finish
            answers = (finished(self._references(part), finish) for _ in range(2))
            found = self._metric.measure(*answers, self._labels(part))
            if not math.isfinite(found.value):
                raise UsageError(f"`{self._metric.name}` of the original model is {found.value}")
            self._values[part] = found
        return self._values[part]

    def _references(self, part: str) -> Any:
        if part == "comparison":
            return self._original
        return Answers(self._setting.model.path, self._part(part), self._setting.threads)

    def _labels(self, part: str) -> Any:
        return self._part(part).labels

    def _part(self, part: str) -> Samples:
        found = self._setting.comparison if part == "comparison" else self._setting.confirmation
        if found is None:
            raise ValueError(f"there is no {part} data")
        return found

    @property
    def _metric(self) -> Any:
        return self._setting.metric

    def _drift(self, made: Candidate, parity: Parity) -> str | None:
        limits = self._setting.compression
        agreement = parity.top1_agreement
        # The largest score of a made-up input means nothing: only real data counts.
        enough = self._setting.real and self.compared_rows >= ENOUGH_ROWS
        if made.score is not None:
            if made.score.drop > self.limit():
                lost = f"{made.score.metric} falls by {made.score.drop:.4g}"
                return f"{lost}, more than {self.limit():.4g}"
        elif parity.cosine < limits.min_cosine and not (
            agreement is not None and enough and agreement >= SAME_ANSWERS
        ):
            return f"cosine {parity.cosine:.4f} is below {limits.min_cosine:g}"
        if agreement is not None and enough and agreement < limits.min_agreement:
            return f"top-1 agreement {agreement:.1%} is below {limits.min_agreement:.1%}"
        floats = any("float" in spec.dtype for spec in self._setting.model.signature.outputs)
        if not parity.exact and not floats:
            return "an integer or string output changed"
        return None

    def _held_to_gain(self, judged: Candidate) -> Candidate:
        """Ship nothing that gains nothing: not faster, or not smaller where size is wanted."""
        objective = self._setting.compression.objective
        original_bytes = self._setting.model.size_bytes
        passed = judged.verdict == "passed"
        if passed and objective != "latency" and judged.size_bytes >= original_bytes:
            reason = f"{human_size(judged.size_bytes)} is not smaller than the original"
            judged = dataclasses.replace(judged, verdict="larger", reason=reason)
        if judged.verdict == "failed":
            return judged
        if self._setting.untimed:
            reason = joined(judged.reason, self._setting.untimed) if passed else judged.reason
            return dataclasses.replace(judged, reason=reason)
        latency = self._time(judged, max_seconds=_TIMED_S if passed else _GLANCE_S)
        judged = dataclasses.replace(judged, latency=latency)
        return self._with_gain(judged)

    def _with_gain(self, judged: Candidate) -> Candidate:
        latency, objective = judged.latency, self._setting.compression.objective
        if latency is None or judged.verdict != "passed" or objective == "size":
            return judged
        original_bytes = self._setting.model.size_bytes
        gain, confidence = latency.speedup, latency.confidence
        if objective == "balanced":
            # Slower is allowed where size makes up for it; only a sure loss on the whole is none.
            gain = latency.speedup * original_bytes / judged.size_bytes
            confidence = 1.0 if gain > 1 else 0.0
        if gain <= 1.0 or confidence < LEAST_CONFIDENCE:
            reason = (
                f"{latency.speedup:.2f} × the original's speed "
                f"(confidence of a gain {latency.confidence:.0%})"
            )
            return dataclasses.replace(judged, verdict="slower", reason=reason)
        return judged

    def race(self, rivals: Sequence[Candidate]) -> tuple[Candidate, ...]:
        """Return candidates timed side by side, each with the verdict that follows from it."""
        feeds, setting = self.feeds(), self._setting
        paths = [c.path for c in rivals if c.path is not None]
        found = race(setting.model.path, paths, feeds, setting.threads, seconds=_RACE_S)
        return tuple(
            self._with_gain(dataclasses.replace(c, latency=latency))
            for c, latency in zip(rivals, found, strict=True)
        )

    def _time(self, made: Candidate, *, max_seconds: float) -> Latency:
        if made.path is None:
            raise ValueError("there is no file to time")
        return alternate(
            self._setting.model.path, made.path, self.feeds(), self._setting.threads,
            max_seconds=max_seconds, target_confidence=LEAST_CONFIDENCE,
        )  # fmt: skip
