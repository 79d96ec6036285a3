"""Cuts channels and heads out of a module until the wanted share of its parameters is gone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Final

import torch

from packager.errors import EdgepackError, ModelUnsupported, UsageError
from packager.training.importance import importance
from packager.training.modules import alike, copy_of, count_parameters
from packager.training.structure import Graph, Group, Unit, column_mask

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import nn

    from packager.importers.torch_calls import Callee
    from packager.training.structure import Share

    Feed = Mapping[str, torch.Tensor]
    Cuts = Sequence[tuple["Group", Sequence["Unit"]]]

# A cut module and the original with the same columns zeroed differ by the order of sums only.
_TOLERANCE: Final = 1e-3
# Widths of the residual stream, which stays as it is while heads go.
_STREAM: Final = ("embed_dim", "hidden_size", "dim", "d_model")


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """A smaller module.

    Attributes:
        module: Not trained yet; in evaluation mode.
        before: Parameters of the original.
        after: Parameters of this one.
        widths: By the name of the first layer of a group: (left, before), in channels or heads.
        notes: What stays, and why.
    """

    module: nn.Module
    before: int
    after: int
    widths: Mapping[str, tuple[int, int]]
    notes: tuple[str, ...]


def prune(
    callee: Callee,
    share: float,
    *,
    samples: Sequence[Feed],
    probes: Sequence[Feed],
    seed: int,
    tell: Callable[[str], None],
) -> Pruned:
    """Return a copy of the callee's module without at least `share` of its parameters.

    What matters least for the answers per parameter goes first, over all layers at once. Every
    group of channels is tried before: cutting it has to give what the original gives when the
    layers behind read zeros, else it stays. The outputs stay whole.

    Args:
        callee: The original.
        share: In 0..1, of the number of parameters.
        samples: What importance is measured on; empty for the weights' norms.
        probes: Inputs that cuts are checked on.
        seed: For the importance.
        tell: Told what happens.

    Raises:
        ModelUnsupported: no channel can be followed through the module.
        UsageError: so many parameters cannot go.
    """
    tell("follow the channels through the module")
    graph = Graph(copy_of(callee.module), callee)
    groups, notes = graph.groups()
    groups, unsound = _with_sizes(callee, groups, probes)
    unsound += _unsound(callee, groups, probes)
    notes += [
        f"the channels of `{g.root}` stay: the module does not work without some" for g in unsound
    ]
    groups = [group for group in groups if group not in unsound]
    before = count_parameters(callee.module)
    if not groups:
        raise ModelUnsupported(
            "no channel or head of the module can be cut out"
            + "".join(f"\n  {note}" for note in notes[:6]),
            hint="leave out `train.prune`",
        )
    tell(f"weigh the channels of {len(groups)} groups")
    scores = importance(graph, groups, callee, samples, seed=seed)
    cuts = _choose(graph, groups, scores, share, before)
    module = _cut(callee, cuts)
    if not _agree(callee, module, cuts, probes):
        raise ModelUnsupported(
            "the pruned module does not compute what the original does without these channels",
            hint="leave out `train.prune`",
        )
    return Pruned(
        module=module,
        before=before,
        after=count_parameters(module),
        widths={g.root: (len(g.units) - len(units), len(g.units)) for g, units in cuts},
        notes=tuple(notes),
    )


def _choose(
    graph: Graph,
    groups: Sequence[Group],
    scores: Mapping[str, Sequence[float]],
    share: float,
    before: int,
) -> Cuts:
    """Return the cuts that change the answers least for each parameter and reach the share.

    Raises:
        UsageError: so many parameters cannot go.
    """
    order = sorted(
        (score / max(unit.cost, 1), number, position)
        for number, group in enumerate(groups)
        for position, (unit, score) in enumerate(zip(group.units, scores[group.root], strict=True))
    )
    ranked = [
        [group.units[position] for _, owner, position in order if owner == number]
        for number, group in enumerate(groups)
    ]
    sizes = {name: p.numel() for name, p in graph.module.named_parameters()}
    shares = {group.root: graph.shares(group) for group in groups}

    def counts(length: int) -> list[int]:
        found = [0] * len(groups)
        for _, number, _ in order[:length]:
            found[number] += 1
        return [_allowed(group, n) for group, n in zip(groups, found, strict=True)]

    def gone(numbers: Sequence[int]) -> float:
        return 1 - _left(sizes, shares, _cuts(groups, ranked, numbers)) / before

    most = gone(counts(len(order)))
    if most < share:
        raise UsageError(
            f"`train.prune` is {share:g}, but no more than {most:.3f} of the parameters can go",
            accepted=f"0 to {int(most * 100) / 100:.2f}",
        )
    low, high = 0, len(order)  # gone(counts(low)) < share <= gone(counts(high))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if gone(counts(middle)) >= share else (middle, high)
    # The last step of a wide layer may go far past the share: one of another layer may do.
    base = counts(low)
    last = [counts(high)]
    for number, group in enumerate(groups):
        stepped = list(base)
        stepped[number] = _allowed(group, base[number] + group.multiple)
        last.append(stepped)
    best = min((n for n in last if gone(n) >= share), key=gone)
    return _cuts(groups, ranked, best)


def _allowed(group: Group, count: int) -> int:
    """Return how many of `count` units may go, so that the width left is as it must be."""
    width = len(group.units)
    left = max(width - count, group.keep)
    return width - min(width, -(-left // group.multiple) * group.multiple)


def _cuts(
    groups: Sequence[Group], ranked: Sequence[Sequence[Unit]], counts: Sequence[int]
) -> list[tuple[Group, Sequence[Unit]]]:
    return [
        (group, units[:count])
        for group, units, count in zip(groups, ranked, counts, strict=True)
        if count
    ]


def _left(sizes: Mapping[str, int], shares: Mapping[str, Sequence[Share]], cuts: Cuts) -> int:
    """Return the parameters that are left after the cuts, without making them."""
    left: dict[str, Fraction] = {}
    rest: dict[tuple[str, bool], Fraction] = {}
    for group, units in cuts:
        for share in shares[group.root]:
            # Groups that lie side by side on one axis, as behind a concatenation, add up; the
            # two axes of a weight multiply.
            key = (share.parameter, share.reads)
            rest[key] = rest.get(key, Fraction(1)) - Fraction(
                share.positions * len(units), share.of
            )
    for (name, _), part in rest.items():
        left[name] = left.get(name, Fraction(sizes[name])) * part
    return int(sum(left.values()) + sum(n for name, n in sizes.items() if name not in left))


def _cut(callee: Callee, cuts: Cuts) -> nn.Module:
    """Return a copy of the original without the units."""
    graph = Graph(copy_of(callee.module), callee)
    for group, units in cuts:
        left = len(group.units) - len(units)
        size = len(group.units[0].channels)
        resize = dict.fromkeys(group.sizes, left * size)
        if group.heads:
            resize[group.heads] = left
        graph.cut(group, units, resize=resize)
    return graph.module.eval()


def _with_sizes(
    callee: Callee, groups: Sequence[Group], probes: Sequence[Feed]
) -> tuple[list[Group], list[Group]]:
    """Return the groups with those attributes of their owner that must follow the heads.

    Which these are is tried on one owner of a class.

    Returns:
        The groups, then those where no choice of attributes works.
    """
    found: list[Group] = []
    unsound: list[Group] = []
    known: dict[type, tuple[str, ...] | None] = {}
    for group in groups:
        if not group.owner:
            found.append(group)
            continue
        kind = type(callee.module.get_submodule(group.owner))
        narrow = tuple(name for name in group.sizes if name not in _STREAM)
        if kind not in known:
            known[kind] = next(
                (
                    sizes
                    for sizes in dict.fromkeys(((), narrow, group.sizes))
                    if not _unsound(callee, [replace(group, sizes=sizes)], probes)
                ),
                None,
            )
        sizes = known[kind]
        if sizes is None:
            unsound.append(group)
        else:
            found.append(replace(group, sizes=tuple(n for n in sizes if n in group.sizes)))
    return found, unsound


def _unsound(callee: Callee, groups: Sequence[Group], probes: Sequence[Feed]) -> list[Group]:
    """Return the groups whose cut changes more than it should, found by halving."""
    if not groups:
        return []
    cuts = [(group, [group.units[len(group.units) // 2]]) for group in groups]
    try:
        sound = _agree(callee, _cut(callee, cuts), cuts, probes)
    except (EdgepackError, RuntimeError, TypeError, ValueError, IndexError, AttributeError):
        sound = False  # the surgery itself, or the user's code on the result, does not work
    if sound:
        return []
    if len(groups) == 1:
        return list(groups)
    half = len(groups) // 2
    return [
        *_unsound(callee, groups[:half], probes),
        *_unsound(callee, groups[half:], probes),
    ]


def _agree(callee: Callee, module: nn.Module, cuts: Cuts, probes: Sequence[Feed]) -> bool:
    """Return whether the cut module answers like the original whose layers read zeros instead."""
    reference = Graph(copy_of(callee.module), callee)
    with torch.no_grad():
        for group, units in cuts:
            gone = {c for unit in units for c in unit.channels}
            numbers = {i for i, unit in enumerate(group.units) if gone.issuperset(unit.channels)}
            for name, positions, of_unit in reference.readers(group):
                layer = reference.module.get_submodule(name)
                read = [p for p, u in zip(positions, of_unit, strict=True) if u in numbers]
                layer.weight.masked_fill_(column_mask(layer, read), 0.0)
        want, got = callee.wrapper(reference.module), callee.wrapper(module)
        for probe in probes:
            inputs = [probe[name] for name in callee.examples]
            for a, b in zip(
                want(*(t.clone() for t in inputs)), got(*(t.clone() for t in inputs)), strict=True
            ):
                if not alike(a, b, tolerance=_TOLERANCE):
                    return False
    return True
