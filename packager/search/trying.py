"""One search: which forms are tried, in which order, and which of them is taken."""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING, Final

from packager.errors import BudgetMissed, UsageError
from packager.passes.int8_static import WEIGHTED
from packager.passes.revert_layers import depthwise_convolutions, quantized_layers
from packager.search.fit import holder_of_weights
from packager.search.forms import (
    CLEANED,
    HALF_REST,
    LAYERS_ALONE,
    NEAREST,
    ORIGINAL,
    PLAIN,
    Form,
    has_half_rest,
    locked_form,
)
from packager.search.forms import table as table_of_forms
from packager.search.front import allowed, loss_of, pick, relative_time, rivals, with_front
from packager.search.judge import ENOUGH_ROWS, Judge
from packager.search.large import is_spared, large_forms, missed
from packager.search.maker import NotMade
from packager.search.mixed import layer_choices, rank, search_mixed
from packager.search.outcome import Outcome
from packager.search.table import as_table, describe, joined
from packager.search.telling import measured_record

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from packager.artifact import Candidate
    from packager.search.journal import Journal
    from packager.search.sensitivity import LayerSensitivity
    from packager.search.setting import Setting

# The bar for a model of a hundred layers; what it takes beyond is left untried and said.
MOST_EVALUATIONS: Final = 20
# Verdicts on a form that is as near to the original as it has to be.
_KEPT: Final = ("passed", "slower", "larger")
_FIRST: Final = 2
_SAME_TIME: Final = 1.05
_SHORT: Final = {
    "slower": "is slower", "larger": "is larger", "drifted": "misses the budget",
    "passed": "is behind", "failed": "does not run",
}  # fmt: skip


class Search:
    """One search: the forms that were judged, in order, and what they said."""

    def __init__(self, setting: Setting, journal: Journal) -> None:
        self._setting = setting
        self._judge = Judge(setting, journal)
        self._forms: dict[str, Form] = {}
        self._found: dict[str, Candidate] = {}
        self._rankings: dict[str, tuple[LayerSensitivity, ...]] = {}
        self._began = time.monotonic()
        self._left_untried = 0

    def repeat(self, locked: Mapping[str, Any]) -> Candidate:
        """Judge the form that an earlier build chose, and nothing else."""
        forms = self._table()
        form = locked_form(forms, locked)
        if form is None:
            raise UsageError(
                f"there is no candidate `{locked.get('precision')}`",
                accepted=", ".join(f.name for f in forms),
            )
        if form.needs_samples and self._setting.calibration is None:
            raise UsageError(
                f"`{form.name}` needs calibration data", hint="give a folder with `-c FOLDER`"
            )
        candidate = self._try(form, forced=True)
        if candidate.verdict not in _KEPT:
            raise self._missed(form.name)
        return candidate

    def run(self) -> Candidate:
        """Judge the forms that may be asked for and return the best that keeps the budget."""
        asked = self._setting.compression.precision
        self._check_half_rest(asked)
        tried = [
            f for f in self._table()
            if f.name == PLAIN or self._setting.model.large
            or f.asked_by(self._setting.compression, self._setting.target)
        ]  # fmt: skip
        forced = asked not in ("auto", PLAIN)
        self._check_data(tried, asked, forced=forced)
        self._say_what_is_compared()
        for form in tried:
            later = form.precision == "int8-static" and not form.float_layers
            if later or is_spared(form, self._setting, self._found.values()):
                continue
            if self._may_go_on() or form.name == PLAIN:
                self._try(self._on_fastest_shape(form), forced=forced)
        families = dict.fromkeys(f.source for f in tried if f.precision == "int8-static")
        for source in families:
            static = [f for f in tried if f.precision == "int8-static" and f.source == source]
            self._run_static(static, forced=forced)
        self._try_half_rest(asked)
        if self._left_untried:
            self._setting.reporter.note("the budget of time or evaluations ended the search")
        best = self._settle(asked)
        if self._wants_ranking():
            self._rank_for_the_record(best)
        return best

    def _table(self) -> tuple[Form, ...]:
        setting = self._setting
        if setting.model.large:
            return large_forms(setting.compression, setting.target)
        sources = tuple(setting.data.sources)
        tensorrt = setting.target.tensorrt is not None
        return table_of_forms(setting.compression, sources, tensorrt=tensorrt)

    def outcome(self, chosen: Candidate, *, began: float) -> Outcome:
        """Return the candidates with the chosen one marked, and the record."""
        form = self._forms[chosen.name]
        ranking = self._rankings.get(form.family, ())
        final = dataclasses.replace(
            chosen,
            verdict="chosen",
            reason=self._why(chosen),
            layers=layer_choices(ranking, form, chosen.path),
        )
        self._found[chosen.name] = final
        candidates = with_front(tuple(self._found.values()))
        # Where a float form is chosen, the ranking of what was not is still worth telling.
        ranking = ranking or next(iter(self._rankings.values()), ())
        record = measured_record(
            self._setting, self._judge, final, ranking=ranking,
            took_s=time.monotonic() - began, complete=not self._left_untried,
        )  # fmt: skip
        lock = form.to_lock()
        if final.as_it_came:
            lock["shape"] = ORIGINAL
        return Outcome(candidates=candidates, lock=lock, record=record)

    def _run_static(self, forms: Sequence[Form], *, forced: bool) -> None:
        """Judge static int8: the forms of the table, then some with a few layers in float."""
        tried: list[Form] = []
        for plain in forms:
            if self._is_worth_trying(plain, tried) and self._may_go_on():
                form = self._on_fastest_shape(plain)
                if self._try(form, forced=forced).parity is not None:
                    tried.append(form)
        if not tried:
            return
        nearest = min(tried, key=lambda f: loss_of(self._found[f.name]))
        self._try_first_layers(nearest)
        alone = next((f for f in tried if f.family.endswith(LAYERS_ALONE)), None)
        if alone is not None and self._found[alone.name].verdict in _KEPT:
            self._try_without_depthwise(alone)
        if not any(c.verdict in _KEPT for c in self._found.values() if self._is_static(c, nearest)):
            self._mix(nearest)

    def _is_worth_trying(self, form: Form, tried: Sequence[Form]) -> bool:
        kept = any(self._found[f.name].verdict in _KEPT for f in tried)
        if form.family.endswith(LAYERS_ALONE):
            # Quantizing less can only gain time, which must be seen, or save the budget.
            return not (kept and self._setting.untimed)
        return not (kept and form.family.endswith(NEAREST))

    def _is_static(self, candidate: Candidate, like: Form) -> bool:
        form = self._forms[candidate.name]
        return form.precision == like.precision and form.source == like.source

    def _try_first_layers(self, form: Form) -> None:
        """Judge a form with the first two layers in float, where they are convolutions.

        The first convolution reads few channels and runs no faster in int8; the first layers see
        the widest ranges. On EfficientNet-Lite0 this gained speed and accuracy.
        """
        made = self._judge.maker.make(form)
        if isinstance(made, NotMade) or not self._may_go_on():
            return
        layers = tuple(quantized_layers(made.model, made.reference))
        kinds = {node.name: node.op_type for node in made.reference.graph.node}
        if len(layers) > _FIRST * _FIRST and all(kinds[n] == "Conv" for n in layers[:_FIRST]):
            self._try(form.with_float(layers[:_FIRST], "first"), forced=True)

    def _try_half_rest(self, asked: str) -> None:
        """Judge the best int8 form with fp16 between its layers, where the engine has that."""
        asks = asked in ("auto", "int8") or asked.endswith(HALF_REST)
        if not asks or not has_half_rest(self._setting.target):
            return
        kept = [
            self._forms[c.name] for c in self._found.values()
            if c.verdict in _KEPT and self._forms[c.name].precision == "int8-static"
        ]  # fmt: skip
        if kept and self._may_go_on():
            nearest = min(kept, key=lambda f: loss_of(self._found[f.name]))
            self._try(nearest.with_half_rest(), forced=True)

    def _check_half_rest(self, asked: str) -> None:
        target = self._setting.target
        if asked.endswith(HALF_REST) and not has_half_rest(target):
            raise UsageError(
                f"`{target.name}` has no engine that takes int8 layers beside fp16 ones as the "
                "graph is typed: TensorRT 10 and TensorRT-RTX do",
                hint=f"ask for `--precision {asked.removesuffix(HALF_REST)}`",
            )

    def _try_without_depthwise(self, form: Form) -> None:
        """Judge a form with its depthwise convolutions in float, where the form is the fastest.

        Between float operators an int8 depthwise convolution costs more than it gains; between
        quantized layers it is the other way round.
        """
        made = self._judge.maker.make(form)
        timed = [c for c in self._found.values() if c.latency is not None and c.verdict in _KEPT]
        if isinstance(made, NotMade) or not timed or not self._may_go_on():
            return
        layers = depthwise_convolutions(made.reference)
        if layers and min(timed, key=relative_time).name == form.name:
            self._try(form.with_float(layers, "depthwise-float"), forced=True)

    def _mix(self, form: Form) -> None:
        self._setting.reporter.stage("rank the layers by sensitivity")
        ranking = self._rank(form)
        if ranking:
            search_mixed(self._judge, form, ranking, may_go_on=self._may_go_on, tried=self._tried)

    def _rank(self, form: Form | None) -> tuple[LayerSensitivity, ...]:
        if form is None or self._found[form.name].path is None:
            return ()
        if form.family not in self._rankings:
            self._rankings[form.family] = rank(self._judge, self._setting, form)
        return self._rankings[form.family]

    def _wants_ranking(self) -> bool:
        # Who states a budget wants to know what it was spent on; others should not wait for it.
        return self._setting.metric is not None and not self._setting.over

    def _rank_for_the_record(self, best: Candidate) -> None:
        """Rank the layers of what was chosen; where that is no static int8, of the first that was.

        Ranking is no evaluation: it only costs time.
        """
        made = {name: f for name, f in self._forms.items() if name in self._found}
        chosen = made.get(self._forms[best.name].family)
        if chosen is not None and chosen.precision == "int8-static":
            self._rank(chosen)
        elif not self._rankings:
            self._rank(next((f for f in made.values() if f.precision == "int8-static"), None))

    def _on_fastest_shape(self, form: Form) -> Form:
        usable = [s for s in form.shapes if not isinstance(
            self._judge.maker.graph(s, form.source), NotMade)]  # fmt: skip
        if not usable:
            return form

        def time_of(shape: str) -> float:
            name = PLAIN if shape == CLEANED else f"{PLAIN}-{shape}"
            latency = self._found[name].latency if name in self._found else None
            return 1.0 / latency.speedup if latency is not None else 1.0

        least = min(map(time_of, usable))
        fastest = next(shape for shape in usable if time_of(shape) <= least * _SAME_TIME)
        return dataclasses.replace(form, shapes=(fastest,))

    def _try(self, form: Form, *, forced: bool) -> Candidate:
        self._setting.reporter.stage(f"try {form.name}{self._estimate()}")
        candidate = self._judge.judge(form, forced=forced)
        self._tried(form, candidate)
        return candidate

    def _tried(self, form: Form, candidate: Candidate) -> None:
        self._forms[form.name] = form
        if form.variant and candidate.verdict == "skipped":
            return
        self._setting.reporter.note(describe(candidate))
        self._found[form.name] = candidate

    def _estimate(self) -> str:
        done = len(self._found)
        if done < 2:
            return ""
        spent = time.monotonic() - self._began
        left = self._setting.compression.time_budget_s - spent
        return f" (candidate {done + 1}, {spent / done:.0f} s each, at most {left:.0f} s more)"

    def _may_go_on(self) -> bool:
        may = not self._setting.over and self._judge.evaluations < MOST_EVALUATIONS
        self._left_untried += not may
        return may

    def _check_data(self, tried: Sequence[Form], asked: str, *, forced: bool) -> None:
        needing = [f.needs_samples for f in tried if f.name != PLAIN]
        if forced and self._setting.calibration is None and needing and all(needing):
            hint = "give a folder with `-c FOLDER`"
            raise UsageError(f"`{asked}` needs calibration data", hint=hint)
        setting = self._setting
        if setting.metric is None or setting.confirmation is None:
            return
        from packager.checks.metrics import check_budget

        check_budget(setting.metric, self._judge.measured_original(), self._judge.limit())

    def _say_what_is_compared(self) -> None:
        setting, judge = self._setting, self._judge
        if not setting.real:
            why = "there is no data" if setting.calibration is None else "the data is random"
            setting.reporter.note(f"{why}: candidates are compared on made-up inputs")
        elif judge.compared_rows < ENOUGH_ROWS:
            rows = judge.compared_rows
            setting.reporter.note(
                f"only {rows} sample{'s are' if rows > 1 else ' is'} left to compare on: top-1 "
                f"agreement is shown, and enforced from {ENOUGH_ROWS} on"
            )

    def _settle(self, asked: str) -> Candidate:
        compression, target = self._setting.compression, self._setting.target
        original_bytes = self._setting.model.size_bytes
        may = allowed(asked, tuple(self._found.values()), self._forms)
        near = rivals(may, compression.objective, original_bytes)
        if near:
            self._setting.reporter.stage(f"time {', '.join(c.name for c in near)} side by side")
            for candidate in self._judge.race(near):
                # Nothing is expected of the original's own graph: it stays whatever it measures.
                plain = self._forms[candidate.name].precision == PLAIN
                verdict = "passed" if plain else candidate.verdict
                self._found[candidate.name] = dataclasses.replace(candidate, verdict=verdict)
            names = {c.name for c in near}
            may = allowed(asked, tuple(self._found.values()), self._forms)
            may = [c for c in may if c.name in names] or may
        best = pick(
            may, self._forms, target, objective=compression.objective,
            original_bytes=original_bytes, raced=bool(near),
        )  # fmt: skip
        if best is None:
            raise self._missed(asked)
        return best

    def _why(self, chosen: Candidate) -> str:
        if chosen.verdict in ("slower", "larger"):
            return f"asked for by name, though it has {chosen.reason}"
        others = [
            c for c in self._found.values()
            if c is not chosen and self._forms[c.name].precision != PLAIN
        ]  # fmt: skip
        if self._forms[chosen.name].precision != PLAIN or not others:
            return chosen.reason
        if all(c.path is None for c in others):
            return joined(f"nothing compressed could be made of it{self._where()}", chosen.reason)
        told = ", ".join(f"{c.name} {_SHORT.get(c.verdict, c.verdict)}" for c in others if c.path)
        return joined(f"nothing compressed is better: {told}", chosen.reason)

    def _where(self) -> str:
        import onnx

        model = onnx.load(self._setting.model.path, load_external_data=False)
        holder = holder_of_weights(model)
        if holder is None:
            return ": it has no weights"
        known = holder in (*WEIGHTED, "Gather")
        return "" if known else f": most of its weights are in `{holder}`, which no pass supports"

    def _missed(self, asked: str) -> BudgetMissed:
        if self._setting.model.large:
            return missed(asked, self._setting.model, with_front(tuple(self._found.values())))
        tried = [c for c in self._found.values() if self._forms[c.name].precision != PLAIN]
        reasons = "; ".join(f"{c.name}: {c.reason}" for c in tried if c.reason)
        lines = as_table(with_front(tuple(self._found.values())))
        what, hint = "does not keep the budget", "give more calibration data, or "
        if all(c.verdict == "skipped" for c in tried):
            what, hint = "cannot be made of this model", ""
        if self._left_untried:
            what, hint = (
                "was not found before the search ended",
                "give it a longer `--time-budget`, or ",
            )
        return BudgetMissed(
            f"`{asked}` {what}{': ' * bool(reasons)}{reasons}\n" + "\n".join(lines),
            hint=f"{hint}leave the choice open with `--precision auto`",
        )
