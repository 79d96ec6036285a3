"""Makes the forms of a model over 2 GB, one weight in memory at a time, each in one file."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from packager.console import human_size
from packager.errors import BudgetMissed, ModelUnsupported
from packager.model import data_file
from packager.passes.contract import PassContext
from packager.passes.external import LARGE_FORMS, quantize_large
from packager.search.forms import PLAIN, Form, table
from packager.search.maker import Made, NotMade
from packager.search.table import as_table

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from packager.artifact import Candidate
    from packager.model import Model
    from packager.recipe import Compression
    from packager.search.setting import Setting
    from packager.target import Target

UNTIMED: Final = "latency: unmeasured, as the original fits into no bundle"
_OVER: Final = "the model is over 2 GB: only forms made weight by weight"
_PROBES: Final = 2


def large_forms(compression: Compression, target: Target) -> tuple[Form, ...]:
    """Return the forms of a model over 2 GB that a recipe allows, the most exact weights first.

    Ordinary forms that it allows stand before them, without passes: `LargeMaker` makes none of
    them.
    """
    asked, found = compression.precision, []
    wanted = {form.name: form for form in table(compression)}
    for form in wanted.values():
        allowed = form.name == PLAIN or form.asked_by(compression, target)
        if form.name not in LARGE_FORMS and allowed and not form.variant:
            found.append(replace(form, passes=()))
    for name in LARGE_FORMS:
        form = wanted[name]
        as_int8 = asked == "int8" and form.precision == "int8-weights"
        if asked == "auto" or as_int8 or form.asked_by(compression, target):
            found.append(form)
    return tuple(found)


def is_spared(form: Form, setting: Setting, found: Iterable[Candidate]) -> bool:
    """Tell whether a form of a large model is left out because another keeps the budget already.

    fp16 is the largest form and on processors no gain in speed: where the choice is left open it is
    tried for size, where the target lists it, and where nothing else passed.
    """
    return (
        setting.model.large
        and form.precision == "fp16"
        and setting.compression.precision == "auto"
        and not form.asked_by(setting.compression, setting.target)
        and any(candidate.verdict == "passed" for candidate in found)
    )


class LargeMaker:
    """Stands in for `search.maker.Maker` where no graph fits into memory with its weights.

    Args:
        setting: Of a search whose model is large.
        probes: Inputs on which fp16 finds out what its range bears.
    """

    def __init__(self, setting: Setting, probes: Sequence[Any]) -> None:
        self._setting = setting
        self._probes = probes

    @property
    def context(self) -> PassContext:
        """Return what the passes are given."""
        setting = self._setting
        return PassContext(
            target=setting.target,
            samples=setting.calibration,
            probes=[self._probes[i] for i in range(min(_PROBES, len(self._probes)))],
            workdir=setting.workdir,
            reporter=setting.reporter,
            seed=setting.seed,
        )

    def graph(self, shape: str = "", source: str = "") -> NotMade:
        """Return that there is none."""
        return NotMade(verdict="skipped", reason=_OVER)

    def make(self, form: Form) -> NotMade:
        """Return that there is none."""
        return self.graph(form.shape)

    def write(self, form: Form, path: Path) -> Made | NotMade:
        """Write a form's file, or tell why there is none."""
        if form.name not in LARGE_FORMS or not form.passes:
            return self.graph(form.shape)
        # Tools that look at values write beside them, and other builds read the original.
        folder = self._setting.workdir / "original"
        try:
            original = _linked(self._setting.model.path, folder)
            context = replace(self.context, workdir=folder)
            _, notes = quantize_large(original, path, context, form=form.name, one_file=True)
        except ModelUnsupported as fault:
            return NotMade(verdict="skipped", reason=fault.message)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return Made(model=None, reference=None, notes=notes)


def _linked(path: Path, folder: Path) -> Path:
    """Give a model's files a second name in a folder of ours; where links are not known, a copy."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    linked = folder / path.name
    shutil.copyfile(path, linked)
    try:
        os.link(data_file(path), data_file(linked))
    except OSError:
        shutil.copyfile(data_file(path), data_file(linked))
    return linked


def refuse_quantized(model: Model) -> None:
    """Refuse a model that came in quantized and still is too large for one file.

    Raises:
        ModelUnsupported: it is.
    """
    if model.large:
        raise ModelUnsupported(
            f"`{model.provenance.source}` came in quantized and holds "
            f"{human_size(model.size_bytes)}",
            accepted="2 GB, the most that one file of a bundle can hold",
            hint="give the float model it was made of",
        )


def missed(asked: str, model: Model, candidates: Sequence[Candidate]) -> BudgetMissed:
    """Return the error for a large model of which no form in one file keeps the budget."""
    reasons = "; ".join(f"{c.name}: {c.reason}" for c in candidates if c.reason)
    lines = as_table(candidates)
    size = human_size(model.size_bytes)
    return BudgetMissed(
        f"`{asked}` leads to no bundle: the original holds {size}, one file 2 GB at most, and "
        f"no form in one file keeps the budget: {reasons}\n" + "\n".join(lines),
        hint="allow more with `--max-drop`, or leave the choice open with `--precision auto`",
    )
