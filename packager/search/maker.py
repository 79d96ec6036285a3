"""Makes the file of a form: the graph's shape, the passes, the layers that go back to float."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from packager.passes.clean_up import CleanUp
from packager.passes.contract import PassContext, apply
from packager.passes.correct_bias import CorrectBias
from packager.passes.graph import strip_texts
from packager.passes.int8_static import Int8Static
from packager.passes.pool_means import PoolMeans
from packager.passes.quantizer import name_nodes
from packager.passes.raise_opset import RaiseOpset
from packager.passes.revert_layers import revert_layers
from packager.passes.round_weights import RoundWeights
from packager.search.forms import CLEANED, ORIGINAL, SHAPES

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from packager.passes.contract import Pass, PassReport
    from packager.search.forms import Form
    from packager.search.setting import Setting

_PROBES: Final = 2


@dataclass(frozen=True, kw_only=True)
class Made:
    """A model that passes made.

    Attributes:
        model: `onnx.ModelProto`.
        reference: The float graph that the compressing passes were given.
        notes: What the passes told.
    """

    model: Any
    reference: Any
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class NotMade:
    """Why there is no file: a verdict, `failed` or `skipped`, and its reason."""

    verdict: str
    reason: str


class Maker:
    """Makes forms of one model, keeping what several of them have in common."""

    def __init__(self, setting: Setting, probes: Sequence[Any]) -> None:
        self._setting = setting
        self._shapes: dict[tuple[str, str], Made | NotMade] = {}
        self._made: dict[tuple[Any, ...], Made | NotMade] = {}
        self._context = PassContext(
            target=setting.target,
            samples=setting.calibration,
            probes=[probes[i] for i in range(min(_PROBES, len(probes)))],
            workdir=setting.workdir,
            reporter=setting.reporter,
            seed=setting.seed,
        )

    @property
    def context(self) -> PassContext:
        """Return what the passes are given."""
        return self._context

    def graph(self, shape: str = CLEANED, source: str = "") -> Made | NotMade:
        """Return the float graph of a shape; one but the cleaned has to differ from it."""
        key = (source, shape)
        if key not in self._shapes:
            self._shapes[key] = self._shaped(shape, source)
        return self._shapes[key]

    def make(self, form: Form) -> Made | NotMade:
        """Return the model of a form, or why there is none."""
        made = self._made_but_for_the_last(form)
        if isinstance(made, NotMade) or not form.last:
            return made
        model, reports = apply(form.last, made.model, self._context)
        if reports[-1].status != "applied":
            broken = reports[-1].status == "left out"
            reason = "; ".join([reports[-1].reason or "nothing changes", *reports[-1].notes])
            return NotMade(verdict="failed" if broken else "skipped", reason=reason)
        return dataclasses.replace(made, model=model, notes=(*made.notes, *_notes(reports)))

    def _made_but_for_the_last(self, form: Form) -> Made | NotMade:
        base = self.graph(form.shape, form.source)
        if isinstance(base, NotMade) or not form.passes:
            return base
        if form.float_layers and any(isinstance(step, CorrectBias) for step in form.passes):
            # Biases that make up for errors of layers now in float would be wrong.
            passes = tuple(_keeping_float(step, form.float_layers) for step in form.passes)
            return self._noted(self._compress_once(form, base, passes), form)
        made = self._compress_once(form, base, form.passes)
        if isinstance(made, NotMade) or not form.float_layers:
            return made
        absent = set(form.float_layers) - {node.name for node in made.reference.graph.node}
        if absent:
            reason = f"the graph has no layer `{min(absent)}`"
            return NotMade(verdict="skipped", reason=reason)
        fused = self._setting.target.tensorrt is None
        model = revert_layers(
            made.model, made.reference, form.float_layers, shield=fused, fused=fused
        )
        return self._noted(dataclasses.replace(made, model=model), form)

    def write(self, form: Form, path: Path) -> Made | NotMade:
        """Write a form's file, or tell why there is none."""
        import onnx

        made = self.make(form)
        if isinstance(made, Made):
            onnx.save(made.model, path)
        return made

    def _compress_once(self, form: Form, base: Made, passes: tuple[Pass, ...]) -> Made | NotMade:
        key = (form.source, form.shape, passes)
        if key not in self._made:
            self._made[key] = self._compressed(base, passes)
        return self._made[key]

    @staticmethod
    def _noted(made: Made | NotMade, form: Form) -> Made | NotMade:
        if isinstance(made, NotMade):
            return made
        count = len(form.float_layers)
        note = f"{count} layer{'s' if count > 1 else ''} in float"
        return dataclasses.replace(made, notes=(*made.notes, note))

    def _shaped(self, shape: str, source: str) -> Made | NotMade:
        import onnx

        if shape in {CLEANED, ORIGINAL}:
            setting = self._setting
            model = onnx.load(setting.data.sources[source] if source else setting.model.path)
            strip_texts(model)
            if shape == ORIGINAL:
                return Made(model=model, reference=model)
            model, reports = apply((CleanUp(), PoolMeans()), model, self._context)
            return Made(model=model, reference=model, notes=_notes(reports))
        base = self.graph(CLEANED, source)
        if isinstance(base, NotMade):
            return base
        wanted = SHAPES[shape]
        model, reports = apply(wanted.passes, base.model, self._context)
        own = reports[-wanted.own :]
        if all(report.status != "applied" for report in own):
            reasons = [report.reason for report in own if report.reason]
            broken = any(report.status == "left out" for report in own)
            return NotMade(
                verdict="failed" if broken else "skipped",
                reason="; ".join(reasons) or "the graph has nothing of the kind",
            )
        return Made(model=model, reference=model, notes=_notes(reports))

    def _compressed(self, base: Made, passes: Sequence[Pass]) -> Made | NotMade:
        raised = [step for step in passes if isinstance(step, RaiseOpset)]
        raised_model, reports = apply(raised, base.model, self._context)
        reference = type(raised_model)()
        reference.CopyFrom(raised_model)
        # Layers are spoken of by name from here on.
        name_nodes(reference)
        rest = [step for step in passes if not isinstance(step, RaiseOpset)]
        model, more = apply(rest, reference, self._context)
        for report in (*reports, *more):
            if report.status == "left out" or (report.status == "skipped" and report in more):
                verdict = "failed" if report.status == "left out" else "skipped"
                return NotMade(verdict=verdict, reason=report.reason)
        return Made(model=model, reference=reference, notes=_notes((*reports, *more)))


def _keeping_float(step: Any, layers: tuple[str, ...]) -> Any:
    """Return a static int8 pass, or one around it, that leaves these layers float."""
    if isinstance(step, Int8Static):
        return dataclasses.replace(step, keep_float=layers)
    if isinstance(step, CorrectBias | RoundWeights):
        return dataclasses.replace(step, quantizer=_keeping_float(step.quantizer, layers))
    return step


def _notes(reports: Sequence[PassReport]) -> tuple[str, ...]:
    return tuple(note for report in reports for note in report.notes)
