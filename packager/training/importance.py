"""Tells how much the model's answers change when channels or heads are cut out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from packager.importers.torch_calls import Callee
    from packager.training.structure import Graph, Group

    Feed = Mapping[str, torch.Tensor]

# Random directions of the answers that are looked along per sample.
_DIRECTIONS: Final = 1
_MOST_SAMPLES: Final = 24


def importance(
    graph: Graph,
    groups: Sequence[Group],
    callee: Callee,
    samples: Sequence[Feed],
    *,
    seed: int,
) -> dict[str, list[float]]:
    """Return, by a group's root, one score per unit; a higher one changes the answers more.

    With samples it is the expected squared first-order change of the answers along random
    directions when the layers that read a unit no longer do (the Taylor criterion of Molchanov
    et al., CVPR 2019, on the answers instead of a loss, so that no labels are needed). Without,
    it is the squared norm of the unit's weights, whose scale is evened out per group.
    """
    if samples:
        return _by_answers(graph, groups, callee, samples[:_MOST_SAMPLES], seed=seed)
    return {group.root: _by_weights(graph, group) for group in groups}


def _by_answers(
    graph: Graph, groups: Sequence[Group], callee: Callee, samples: Sequence[Feed], *, seed: int
) -> dict[str, list[float]]:
    readers = {group.root: graph.readers(group) for group in groups}
    names = sorted({name for entries in readers.values() for name, _, _ in entries})
    layers = {name: graph.module.get_submodule(name) for name in names}
    weights = [layers[name].weight for name in names]
    sums = {group.root: torch.zeros(len(group.units), dtype=torch.float64) for group in groups}
    wrapper = callee.wrapper(graph.module)
    random = torch.Generator().manual_seed(seed)
    for sample in samples:
        answers = [y for y in wrapper(*_inputs(callee, sample)) if y.grad_fn is not None]
        for direction in range(_DIRECTIONS):
            target = torch.zeros((), dtype=torch.float32)
            for answer in answers:
                signs = torch.randint(0, 2, answer.shape, generator=random) * 2 - 1
                size = answer.detach().square().mean().sqrt().clamp_min(1e-12)
                target = target + ((answer / size).float() * signs).sum()
            gradients = torch.autograd.grad(
                target, weights, retain_graph=direction + 1 < _DIRECTIONS, allow_unused=True
            )
            change = {
                name: by_input(layers[name], layers[name].weight.detach() * gradient)
                for name, gradient in zip(names, gradients, strict=True)
                if gradient is not None
            }
            for root, entries in readers.items():
                units = torch.zeros_like(sums[root])
                for name, positions, of_unit in entries:
                    if name in change:
                        units.index_add_(0, torch.tensor(of_unit), change[name][positions].double())
                sums[root] += units.square()
    return {root: total.tolist() for root, total in sums.items()}


def _by_weights(graph: Graph, group: Group) -> list[float]:
    scores = torch.zeros(len(group.units), dtype=torch.float64)
    for name, positions, of_unit in graph.readers(group):
        layer = graph.module.get_submodule(name)
        squares = by_input(layer, layer.weight.detach().square())[positions].double()
        scores.index_add_(0, torch.tensor(of_unit), squares / squares.mean().clamp_min(1e-12))
    for weight, positions, of_unit in graph.writers(group):
        squares = weight.detach().square().flatten(1).sum(1)[positions].double()
        scores.index_add_(0, torch.tensor(of_unit), squares / squares.mean().clamp_min(1e-12))
    found: list[float] = scores.tolist()
    return found


def by_input(layer: nn.Module, values: torch.Tensor) -> torch.Tensor:
    """Return the sums of values shaped like the layer's weight, one per input position."""
    if getattr(layer, "transposed", False):
        return values.flatten(1).sum(1)
    groups = getattr(layer, "groups", 1)
    parts = values.flatten(2) if values.ndim > 2 else values[..., None]
    parts = parts.reshape(groups, -1, *parts.shape[1:])
    return parts.sum((1, 3)).reshape(-1)


def _inputs(callee: Callee, sample: Feed) -> list[torch.Tensor]:
    return [sample[name] for name in callee.examples]
