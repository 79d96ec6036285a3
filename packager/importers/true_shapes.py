"""Finds a model's true signature by running it at several sizes, whatever its file declares."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from packager.errors import ModelUnsupported
from packager.importers.axes import BATCH, PROMOTED, AxisPlan, declared_input, plan_axes
from packager.importers.first_sizes import base_candidates, rank_variants
from packager.importers.output_shapes import Observation, output_specs
from packager.importers.probe import STYLES, Probe, RunFailure, kernel_hint, sample
from packager.importers.repeats import check_repeats, same_answer
from packager.model import Dim, Signature, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import onnx

    from packager.recipe import DimRange

_SEARCH_S: Final = 180.0
_PATIENCE_S: Final = 5.0
_SEEDS: Final = 3

Sizes = dict[str, int]


def find_signature(
    model: onnx.ModelProto,
    *,
    shapes: Mapping[str, tuple[int | str, ...]],
    dims: Mapping[str, DimRange],
    folder: Path,
    limit_s: float,
    source: str,
) -> tuple[Signature, list[str]]:
    """Return the true signature and notes on where it differs from the declared one.

    Args:
        model: Normalised; external data, where there is any, lies in `folder`.
        shapes: The recipe's shapes by input.
        dims: The recipe's ranges by dimension.
        folder: For temporary files.
        limit_s: Wall-clock limit of one run.
        source: What the user named, for messages.

    Raises:
        UsageError: the recipe names an input or dimension that does not exist.
        ModelUnsupported: the model does not load, runs at none of the sizes tried, or answers the
            same input differently each time.
    """
    try:
        probe = Probe(model, folder=folder, limit_s=limit_s, source=source)
    except RunFailure as fault:
        raise ModelUnsupported(
            f"ONNX Runtime does not load `{source}`: {fault}", hint=kernel_hint(model, fault)
        ) from fault
    declared = [declared_input(value) for value in model.graph.input]
    plan = plan_axes(declared, shapes=shapes, dims=dims)
    return _Search(probe, plan, model, source, patience_s=limit_s / 2).signature()


class _Search:
    """One search for a signature; holds the probe, the plan and what was observed."""

    def __init__(
        self,
        probe: Probe,
        plan: AxisPlan,
        model: onnx.ModelProto,
        source: str,
        *,
        patience_s: float,
    ) -> None:
        self._probe = probe
        self._patience_s = patience_s
        self._plan = plan
        self._model = model
        self._source = source
        self._style = "mixed"
        self._base: Sizes = {}
        self._base_s = 0.0
        self._seen: list[Observation] = []

    def signature(self) -> tuple[Signature, list[str]]:
        self._find_base()
        check_repeats(
            self._model,
            lambda: self._probe.run(self._feeds(self._base, 0, self._style)),
            source=self._source,
        )
        self._settle_symbols()
        self._observe_values()
        plan = self._plan
        ranges = {name: self._dim(name) for name in plan.symbols}
        inputs = tuple(
            TensorSpec(
                name=entry.name,
                dtype=entry.dtype,
                shape=tuple(Dim(size=a) if isinstance(a, int) else ranges[a] for a in entry.axes),
            )
            for entry in plan.inputs
        )
        outputs = output_specs(self._model, self._seen, ranges)
        return Signature(inputs=inputs, outputs=outputs), plan.notes

    def _feeds(self, sizes: Sizes, seed: int, style: str) -> dict[str, Any]:
        rng = np.random.default_rng(seed)
        return {
            entry.name: sample(entry.dtype, entry.sized(sizes), rng=rng, style=style)
            for entry in self._plan.inputs
        }

    def _run(self, sizes: Sizes, *, seed: int = 0, style: str | None = None) -> dict[str, Any]:
        """Run and record the output shapes; raises RunFailure."""
        got = self._probe.run(self._feeds(sizes, seed, style or self._style))
        self._seen.append(Observation.of(dict(sizes), got))
        return got

    def _fails(self, sizes: Sizes) -> str | None:
        try:
            self._run(sizes)
        except RunFailure as fault:
            return str(fault)
        return None

    def _find_base(self) -> None:
        declared = self._plan.inputs
        first_fault = ""
        deadline = time.monotonic() + _SEARCH_S
        for note, inputs in rank_variants(declared):
            self._plan.inputs = inputs
            for sizes in base_candidates(self._plan.symbols):
                for style in STYLES:
                    if time.monotonic() > deadline:
                        break
                    self._style = style
                    began = time.monotonic()
                    fault = self._fails(sizes)
                    self._base_s = time.monotonic() - began
                    if fault is None:
                        self._base = sizes
                        if note:
                            self._plan.notes.append(note)
                        return
                    first_fault = first_fault or fault
        self._plan.inputs = declared
        shapes = " ".join(f"--shape '{e.name}={','.join(map(str, e.axes))}'" for e in declared)
        raise ModelUnsupported(
            f"`{self._source}` does not run at its declared shapes: {first_fault}",
            accepted="the shapes that the model really takes",
            hint=f"give them, starting from what the file declares: {shapes}",
        )

    def _settle_symbols(self) -> None:
        failing: dict[str, str] = {}
        for name, symbol in list(self._plan.symbols.items()):
            if symbol.explicit:
                self._check_explicit(name)
            elif name != PROMOTED:
                fault = self._first_failure(name)
                if fault is not None and not self._varies_in_one_input(name):
                    failing[name] = fault
        if failing:
            self._settle_failing(failing)
        if PROMOTED in self._plan.symbols:
            self._settle_promotion()
        for name, symbol in list(self._plan.symbols.items()):
            if symbol.range is None:
                self._find_range(name)
        self._check_default_batch()

    def _other_sizes(self, name: str) -> tuple[int, ...]:
        base = self._base[name]
        return (
            (2, 3)
            if name in (BATCH, PROMOTED) and base == 1
            else (base + 1, base * 2, max(1, base // 2))
        )

    def _first_failure(self, *names: str) -> str | None:
        """Vary the symbols together; None where at least one other size runs."""
        fault = None
        for size in self._other_sizes(names[0]):
            text = self._fails({**self._base, **dict.fromkeys(names, size)})
            if text is None:
                return None
            fault = fault or text
        return fault

    def _check_explicit(self, name: str) -> None:
        given = self._plan.symbols[name].range
        if given is None:
            return
        middle = (given.min + given.max) // 2
        for size in sorted({given.min, middle, middle + 1, given.max} - {given.opt}):
            if not given.min <= size <= given.max:
                continue
            if self._base_s * size / given.opt > self._patience_s:
                self._plan.notes.append(f"`{name}` = {size} would take too long to run at import")
                continue
            fault = self._fails({**self._base, name: size})
            if fault is None:
                continue
            together = {n: size for n, s in self._plan.symbols.items() if s.range == given}
            if len(together) > 1 and self._fails({**self._base, **together}) is None:
                continue
            if given.min < size < given.max:
                self._plan.notes.append(
                    f"`{name}` does not run at every size of its range, as {size}"
                )
                continue
            raise ModelUnsupported(
                f"`{self._source}` does not run with `{name}` = {size}: {fault}",
                hint=f"narrow the range: `--dim {name}={given.opt}..{given.opt}`",
            )

    def _varies_in_one_input(self, name: str) -> bool:
        """Where several inputs share a name by default: keep it on the one that varies alone."""
        before = self._plan.inputs
        owners = [entry.name for entry in before if name in entry.axes]
        size = self._base[name]
        for owner in owners if len(owners) > 1 else ():
            self._plan.inputs = tuple(
                entry if entry.name == owner else entry.renamed({name: size}) for entry in before
            )
            if self._first_failure(name) is None:
                self._plan.notes.append(f"only `{owner}` varies along `{name}`")
                return True
        self._plan.inputs = before
        return False

    def _settle_promotion(self) -> None:
        """Make first axes that the file fixes to 1 a batch, but only where rows stay independent.

        Where another input's batch varies without them, the file means what it says.
        """
        if BATCH in self._plan.symbols or not self._rows_are_independent(PROMOTED):
            self._fix(PROMOTED, 1)
            return
        self._plan.notes.append(
            f"the file fixes the first dimension to 1, but the model runs with more: `{BATCH}`"
        )
        self._plan.symbols[BATCH] = replace(self._plan.symbols[PROMOTED], name=BATCH)
        self._base[BATCH] = self._base[PROMOTED]
        self._seen = [
            replace(run, sizes={**run.sizes, BATCH: run.sizes[PROMOTED]})
            for run in self._seen
            if PROMOTED in run.sizes
        ]
        self._plan.substitute({PROMOTED: BATCH})
        self._forget(PROMOTED)

    def _rows_are_independent(self, name: str) -> bool:
        owners = {e.name for e in self._plan.inputs if e.axes and e.axes[0] == name}
        rows = [self._feeds({**self._base, name: 1}, seed, self._style) for seed in range(3)]
        rows = [{k: (row if k in owners else rows[0])[k] for k in row} for row in rows]
        seen = len(self._seen)
        try:
            singles = [self._probe.run(row) for row in rows]
            for count in (2, 3):
                feeds = dict(rows[0])
                for owner in owners:
                    feeds[owner] = np.concatenate([row[owner] for row in rows[:count]])
                together = self._probe.run(feeds)
                self._seen.append(Observation.of({**self._base, name: count}, together))
                for key, value in together.items():
                    if not _stacks_to(value, [single[key] for single in singles[:count]]):
                        del self._seen[seen:]
                        return False
        except RunFailure:
            del self._seen[seen:]
            return False
        return True

    def _settle_failing(self, failing: dict[str, str]) -> None:
        """Tie symbols that only vary together; fix those that do not vary at all."""
        together = len(failing) > 1 and self._same_base(failing)
        if together and self._first_failure(*failing) is None:
            names = list(failing)
            self._tie(names, BATCH if BATCH in names else names[0])
            return
        for name in failing:
            if name not in self._plan.symbols:
                continue  # tied to an earlier one
            partners = [n for n in self._plan.symbols if n != name and self._same_base((n, name))]
            for partner in partners:
                if self._first_failure(name, partner) is None:
                    self._tie([name, partner], BATCH if BATCH in (name, partner) else partner)
                    break
            else:
                self._plan.notes.append(
                    f"dimension `{name}` is declared open but runs only at {self._base[name]}, "
                    "so it is fixed"
                )
                self._fix(name, self._base[name])

    def _same_base(self, names: Any) -> bool:
        return len({self._base[name] for name in names}) == 1

    def _tie(self, names: list[str], keep: str) -> None:
        gone = [name for name in names if name != keep]
        if PROMOTED not in names:
            listed = " and ".join(f"`{name}`" for name in names)
            self._plan.notes.append(f"dimensions {listed} must be equal: all are `{keep}`")
        self._plan.substitute(dict.fromkeys(gone, keep))
        for name in gone:
            self._forget(name)

    def _fix(self, name: str, size: int) -> None:
        self._plan.substitute({name: size})
        self._forget(name)

    def _forget(self, name: str) -> None:
        self._base.pop(name, None)
        kept = []
        for seen in self._seen:
            sizes = {key: size for key, size in seen.sizes.items() if key != name}
            kept.append(replace(seen, sizes=sizes))
        self._seen = kept

    def _find_range(self, name: str) -> None:
        """Find the smallest size that runs; the largest stays open."""
        from packager.recipe import DimRange

        base = self._base[name]
        smallest = base
        for size in (1, 2, 3, 4, 8, 16, 32, 64):
            if size >= base:
                break
            if self._fails({**self._base, name: size}) is None:
                smallest = size
                break
        largest = self._base[name] * 2 + 1
        uneven = self._fails({**self._base, name: largest})
        if uneven is not None:
            self._plan.notes.append(
                f"dimension `{name}` does not run at every size, as {largest}: {uneven}"
            )
        self._plan.symbols[name] = replace(
            self._plan.symbols[name], range=DimRange(min=smallest, max=-1, opt=base)
        )

    def _check_default_batch(self) -> None:
        symbol = self._plan.symbols.get(BATCH)
        if symbol is None or symbol.explicit or symbol.range is None:
            return
        if self._base[BATCH] > 1 and self._fails({**self._base, BATCH: 1}) is not None:
            least = replace(symbol.range, min=self._base[BATCH], opt=self._base[BATCH])
            self._plan.symbols[BATCH] = replace(symbol, range=least)
            self._plan.notes.append(f"`batch` must be at least {self._base[BATCH]}")
        if self._base_s * symbol.range.max > _PATIENCE_S:
            return
        fault = self._fails({**self._base, BATCH: symbol.range.max})
        if fault is not None:
            raise ModelUnsupported(
                f"`{self._source}` does not run with `batch` = {symbol.range.max}: {fault}",
                hint="give the range that it takes: `--dim batch=1..8`",
            )

    def _observe_values(self) -> None:
        """Run other values at the same sizes: a shape that changes depends on the data."""
        attempts = [(seed, self._style) for seed in range(1, _SEEDS)]
        attempts += [(0, style) for style in STYLES]
        for seed, style in attempts:
            try:
                self._run(self._base, seed=seed, style=style)
            except RunFailure:
                continue  # values that the model does not take tell nothing about its shapes

    def _dim(self, name: str) -> Dim:
        given = self._plan.symbols[name].range
        if given is None:
            return Dim(name=name, opt=self._base[name])
        top = None if given.max == -1 else given.max
        return Dim(name=name, min=given.min, max=top, opt=given.opt)


def _stacks_to(value: Any, parts: list[Any]) -> bool:
    """Return whether `value` is the parts one below the other."""
    if value.ndim == 0 or any(part.shape[:1] != (1,) for part in parts):
        return False
    return same_answer(value, np.concatenate(parts))
