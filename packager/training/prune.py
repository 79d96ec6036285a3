"""Cuts channels and heads out of a module until the wanted share of its parameters is gone."""

from __future__ import annotations

from dataclasses import dataclass, replace
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

    Feed = Mapping[str, torch.Tensor]
    Cuts = Sequence[tuple[Group, Sequence[Unit]]]

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
    groups = [_with_sizes(callee, group, probes) for group in groups]
    unsound = _unsound(callee, groups, probes)
    notes += [f"the channels of `{g.root}` stay: the code depends on their number" for g in unsound]
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
    order = sorted(
        (score / max(unit.cost, 1), number, position)
        for number, group in enumerate(groups)
        for position, (unit, score) in enumerate(zip(group.units, scores[group.root], strict=True))
    )

    def gone(count: int) -> float:
        return 1 - count_parameters(_cut(callee, _cuts(groups, order[:count]))) / before

    tell("search how many to cut")
    most = gone(len(order))
    if most < share:
        raise UsageError(
            f"`train.prune` is {share:g}, but no more than {most:.3f} of the parameters can go",
            accepted=f"0 to {most:.2f}",
        )
    low, high = 0, len(order)  # gone(low) < share <= gone(high)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if gone(middle) >= share else (middle, high)
    cuts = _cuts(groups, order[:high])
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


def _cuts(groups: Sequence[Group], order: Sequence[tuple[float, int, int]]) -> Cuts:
    """Return what goes of each group when the units in `order` may: widths stay as they must."""
    chosen: dict[int, list[Unit]] = {}
    for _, number, position in order:
        chosen.setdefault(number, []).append(groups[number].units[position])
    cuts = []
    for number, units in sorted(chosen.items()):
        group = groups[number]
        width = len(group.units)
        left = max(width - len(units), group.keep)
        left = -(-left // group.multiple) * group.multiple
        if left < width:
            cuts.append((group, units[: width - left]))
    return cuts


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


def _with_sizes(callee: Callee, group: Group, probes: Sequence[Feed]) -> Group:
    """Return the group with those attributes of its owner that must follow the heads."""
    if not group.owner:
        return group
    narrow = tuple(name for name in group.sizes if name not in _STREAM)
    for sizes in dict.fromkeys(((), narrow, group.sizes)):
        tried = replace(group, sizes=sizes)
        if not _unsound(callee, [tried], probes):
            return tried
    return group


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
