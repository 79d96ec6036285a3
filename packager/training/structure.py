"""Finds what can be cut out of a torch module whole: channels and attention heads.

torch-pruning's dependency graph tells which rows and columns of which weights belong to one
channel (Fang et al., DepGraph, CVPR 2023); what to cut, and whether the cut is right, is decided
here and in `prune.py`.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn

from packager.errors import BackendMissing, ModelUnsupported

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from packager.importers.torch_calls import Callee

try:
    import torch_pruning
except ImportError as fault:
    raise BackendMissing(
        "torch-pruning is not installed, and pruning needs it",
        hint="pip install 'edgepack[train]'",
    ) from fault

_CONSUMERS: Final = (nn.Linear, nn.modules.conv._ConvNd)
# Layers that keep one value per channel, so that a channel leaves them without a trace.
_PER_CHANNEL: Final = (
    *_CONSUMERS,
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.PReLU,
    nn.Embedding,
)
# (width, multiple): from this width on, what is left is such a multiple: whole vectors of the
# processor. Narrow layers cannot afford it.
_MULTIPLES: Final = ((64, 8), (32, 4))
# One unit of so many stays in every group.
_MOST_CUT: Final = 10
_HEADS: Final = ("num_heads", "num_attention_heads", "n_heads", "n_head", "nhead", "heads")


@dataclass(frozen=True, kw_only=True)
class Unit:
    """The channels that only go together: one, or those of a head.

    Attributes:
        channels: Positions among the root's output channels.
        cost: Parameters that go with them, as long as everything else stays.
    """

    channels: tuple[int, ...]
    cost: int


@dataclass(frozen=True, kw_only=True)
class Share:
    """What a unit takes of a parameter: `positions` of the `of` that it reads, or writes."""

    parameter: str
    reads: bool
    positions: int
    of: int


@dataclass(frozen=True, kw_only=True)
class Group:
    """Channels that run through the same layers, named by the first of these.

    Attributes:
        root: The name of the layer whose output channels are counted.
        units: What can be cut alone, in the order of the channels.
        keep: So many units stay at least.
        multiple: How many units are left is a multiple of this.
        owner: The name of the attention module whose heads the units are; empty for channels.
        heads: The attribute of `owner` that holds their number.
        sizes: Attributes of `owner` that hold the width of all heads together.
    """

    root: str
    units: tuple[Unit, ...]
    keep: int
    multiple: int
    owner: str = ""
    heads: str = ""
    sizes: tuple[str, ...] = ()


class Graph:
    """The dependencies of one module; every cut makes it another module, which this follows."""

    def __init__(self, module: nn.Module, callee: Callee) -> None:
        """Trace the module.

        Args:
            module: In evaluation mode; every parameter is made to require gradients, which the
                trace follows.
            callee: Tells how the module is called, and with what.

        Raises:
            ModelUnsupported: the trace fails.
        """
        self.module = module
        wrapper = callee.wrapper(module)

        def answers(_: nn.Module, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
            return [y for y in wrapper(*inputs) if y.grad_fn is not None]

        for parameter in module.parameters():
            parameter.requires_grad_(requires_grad=parameter.is_floating_point())
        try:
            with warnings.catch_warnings(), torch.enable_grad():
                warnings.simplefilter("ignore")  # guesses are verified in prune.py
                self._graph = torch_pruning.DependencyGraph().build_dependency(
                    module,
                    example_inputs=tuple(t.clone() for t in callee.examples.values()),
                    forward_fn=answers,
                    verbose=False,
                )
        except Exception as fault:  # the tracer raises whatever the module's code makes it raise
            raise ModelUnsupported(
                f"the module's channels cannot be followed: {type(fault).__name__}: "
                f"{str(fault)[:300]}",
                hint="leave out `train.prune`",
            ) from fault
        self._names = {layer: name for name, layer in module.named_modules()}

    def groups(self) -> tuple[list[Group], list[str]]:
        """Return the groups that may be cut, and notes on those that may not."""
        found: list[Group] = []
        notes: list[str] = []
        for items in self._graph.get_all_groups(root_module_types=list(_CONSUMERS)):
            root = items[0].dep.target.module
            name = self._names[root]
            targets = [item.dep.target.module for item in items]
            if not any(self._consumes(item.dep) for item in items):
                continue  # an output of the model
            barred = [t for t in targets if _bars(t)]
            if barred:
                kind = type(barred[0]).__name__
                notes.append(f"the channels of `{name}` stay: they run through a {kind}")
                continue
            found.append(self._group(name, items))
        return found, notes

    def writers(self, group: Group) -> list[tuple[nn.Parameter, list[int], list[int]]]:
        """Return (weight, positions on its first axis, unit of each) of layers that write."""
        unit_of = {c: i for i, unit in enumerate(group.units) for c in unit.channels}
        return [
            (
                item.dep.target.module.weight,
                list(item.idxs),
                [unit_of[int(root)] for root in item.root_idxs],
            )
            for item in self._items(group, group.units)
            if isinstance(item.dep.target.module, _CONSUMERS) and not self._consumes(item.dep)
        ]

    def readers(self, group: Group) -> list[tuple[str, list[int], list[int]]]:
        """Return (layer, input positions, unit of each position) of layers that read."""
        unit_of = {c: i for i, unit in enumerate(group.units) for c in unit.channels}
        return [
            (
                self._names[item.dep.target.module],
                list(item.idxs),
                [unit_of[int(root)] for root in item.root_idxs],
            )
            for item in self._items(group, group.units)
            if self._consumes(item.dep)
        ]

    def shares(self, group: Group) -> list[Share]:
        """Return what a unit of the group takes of every parameter that it runs through."""
        names = {parameter: name for name, parameter in self.module.named_parameters()}
        found = []
        for item in self._items(group, group.units):
            layer = item.dep.target.module
            if isinstance(layer, nn.Parameter):
                sizes = {layer: layer.shape[item.dep.target.pruning_dim]}
            elif not isinstance(layer, nn.Module):
                continue
            elif self._consumes(item.dep):
                sizes = {layer.weight: _inputs(layer)}
            else:
                width = layer.weight.shape[-1] if isinstance(layer, nn.Embedding) else None
                own = list(layer.parameters(recurse=False))
                sizes = {p: width or _outputs(layer) for p in own if p.numel() > 1}
            found += [
                Share(
                    parameter=names[p],
                    reads=self._consumes(item.dep),
                    positions=len(item.idxs) // len(group.units),
                    of=size,
                )
                for p, size in sizes.items()
            ]
        return found

    def cut(self, group: Group, units: Sequence[Unit], *, resize: Mapping[str, int]) -> None:
        """Remove units from the module, in place.

        Args:
            group: One of `groups()`.
            units: Of that group, never all.
            resize: New values of attributes of the group's owner.
        """
        items = self._items(group, units)
        with torch.no_grad():
            items.prune(record_history=False)
        if group.owner:
            owner = self.module.get_submodule(group.owner)
            for name, value in resize.items():
                setattr(owner, name, value)

    def _items(self, group: Group, units: Sequence[Unit]) -> Any:
        layer = self.module.get_submodule(group.root)
        prune = self._graph.get_pruner_of_module(layer).prune_out_channels
        channels = [channel for unit in units for channel in unit.channels]
        return self._graph.get_pruning_group(layer, prune, channels)

    def _consumes(self, dep: Any) -> bool:
        layer = dep.target.module
        if not isinstance(layer, _CONSUMERS) or _is_depthwise(layer):
            return False
        return bool(self._graph.is_in_channel_pruning_fn(dep.handler))

    def _group(self, name: str, items: Any) -> Group:
        width = len(items[0].idxs)
        heads = self._heads(items, width)
        if heads is not None:
            owner, attribute, count, sizes = heads
            size = width // count
            sets = [tuple(range(i * size, (i + 1) * size)) for i in range(count)]
            keep, multiple = 1, 1
        else:
            owner, attribute, sizes = "", "", ()
            sets = _together(items, width)
            multiple = next((m for width_, m in _MULTIPLES if len(sets) >= width_), 1)
            keep = max(multiple, -(-len(sets) // _MOST_CUT))
        cost = sum(_elements(item) for item in items) // width
        return Group(
            root=name,
            units=tuple(Unit(channels=s, cost=cost * len(s)) for s in sets),
            keep=keep,
            multiple=multiple,
            owner=owner,
            heads=attribute,
            sizes=sizes,
        )

    def _heads(self, items: Any, width: int) -> tuple[str, str, int, tuple[str, ...]] | None:
        """Return (owner, attribute, number, attributes of the width) where channels are heads."""
        names = [
            self._names[item.dep.target.module]
            for item in items
            if isinstance(item.dep.target.module, nn.Linear) and not self._consumes(item.dep)
        ]
        owner = _common_parent(names)
        if len(names) < 3 or owner is None:
            return None
        values = vars(self.module.get_submodule(owner))
        for attribute in _HEADS:
            count = values.get(attribute)
            if isinstance(count, int) and 1 < count < width and width % count == 0:
                sizes = tuple(n for n, v in values.items() if type(v) is int and v == width)
                return owner, attribute, count, sizes
        return None


def column_mask(layer: nn.Module, positions: Sequence[int]) -> torch.Tensor:
    """Return a mask like the layer's weight, true where it reads the input positions."""
    mask = torch.zeros_like(layer.weight, dtype=torch.bool)
    groups = getattr(layer, "groups", 1)
    if getattr(layer, "transposed", False):
        mask[list(positions)] = True
        return mask
    if groups == 1:
        mask[:, list(positions)] = True
        return mask
    inside = layer.weight.shape[1]
    outside = layer.weight.shape[0] // groups
    for position in positions:
        part = position // inside
        mask[part * outside : (part + 1) * outside, position % inside] = True
    return mask


def _is_depthwise(layer: nn.Module) -> bool:
    groups = getattr(layer, "groups", 1)
    return bool(groups > 1 and groups == layer.out_channels)


def _bars(target: Any) -> bool:
    """Return whether a channel cannot leave this layer without changing the others."""
    if not isinstance(target, nn.Module) or isinstance(target, _PER_CHANNEL):
        return False
    return any(True for _ in target.parameters(recurse=False))


def _together(items: Any, width: int) -> list[tuple[int, ...]]:
    """Return the channels that go together: grouped convolutions lose one of each part."""
    parts = 1
    for item in items:
        layer = item.dep.target.module
        if isinstance(layer, _CONSUMERS) and not _is_depthwise(layer):
            parts = max(parts, getattr(layer, "groups", 1))
    size = width // parts
    return [tuple(i + part * size for part in range(parts)) for i in range(size)]


def _elements(item: Any) -> int:
    """Return how many parameters the item's positions hold."""
    layer = item.dep.target.module
    if isinstance(layer, nn.Parameter):
        return int(layer.numel())
    if not isinstance(layer, nn.Module):
        return 0
    weight = getattr(layer, "weight", None)
    if weight is None:
        return 0
    if isinstance(layer, _CONSUMERS) and "in_channels" in item.dep.handler.__name__:
        return int(weight.numel() // _inputs(layer) * len(item.idxs))
    axis = weight.shape[-1] if isinstance(layer, nn.Embedding) else weight.shape[0]
    bias = getattr(layer, "bias", None)
    return int((weight.numel() // axis + (bias is not None)) * len(item.idxs))


def _inputs(layer: nn.Module) -> int:
    return int(layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels)


def _outputs(layer: nn.Module) -> int:
    if isinstance(layer, nn.Linear):
        return int(layer.out_features)
    return int(layer.out_channels if isinstance(layer, _CONSUMERS) else layer.weight.shape[0])


def _common_parent(names: Sequence[str]) -> str | None:
    parents = {name.rpartition(".")[0] for name in names}
    return parents.pop() if len(parents) == 1 else None
