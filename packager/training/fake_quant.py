"""Simulates the target's int8 in a torch module, so that training gets used to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn
from torch.nn.utils import parametrize

from packager.importers.torch_calls import flatten

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from packager.importers.torch_calls import Callee

_LAYERS: Final = (nn.Linear, nn.modules.conv._ConvNd)
# How fast the range of an input follows the batches while training.
_MOMENTUM: Final = 0.05


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """Steps and ranges of the simulation.

    Attributes:
        weight_bits: Weights are symmetric around 0, with as many steps on both sides.
        per_channel: One scale per output channel; else one per weight.
        activation_bits: Of a layer's input, one asymmetric range per tensor.
        symmetric: The input's range is symmetric around 0 as well.
    """

    weight_bits: int = 8
    per_channel: bool = True
    activation_bits: int = 8
    symmetric: bool = False

    def most(self) -> int:
        """Return the largest integer of a weight: 127 for 8 bits, and 64 for 7.

        ONNX Runtime's quantizer takes -64..64 where the range is reduced.
        """
        return 64 if self.weight_bits == 7 else (1 << (self.weight_bits - 1)) - 1


class FakeWeight(nn.Module):  # type: ignore[misc]
    """Rounds a weight to the integers of its scale; gradients pass as if it did not.

    The scale covers the largest value, as post-training quantization has it: a weight that was
    rounded here is rounded to itself there.
    """

    def __init__(self, scheme: Scheme, axis: int) -> None:
        super().__init__()
        self.most = scheme.most()
        self.axis = axis if scheme.per_channel else None

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the rounded weight."""
        with torch.no_grad():
            if self.axis is None:
                largest = weight.abs().max()
            else:
                rest = [i for i in range(weight.ndim) if i != self.axis]
                largest = weight.abs().amax(rest, keepdim=True)
            scale = (largest / self.most).clamp_min(1e-12)
            rounded = (weight / scale).round().clamp(-self.most, self.most) * scale
        return weight + (rounded - weight).detach()


class FakeInput(nn.Module):  # type: ignore[misc]
    """Rounds and clips a layer's input to its range, which follows what is seen in training."""

    def __init__(self, scheme: Scheme) -> None:
        super().__init__()
        self.steps = (1 << scheme.activation_bits) - (2 if scheme.symmetric else 1)
        self.symmetric = scheme.symmetric
        self.watching = False
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        """Return the rounded value; gradients pass inside the range."""
        if self.watching or self.training:
            self._follow(value.detach())
        if self.watching or not bool(self.high > self.low):
            return value
        scale = (self.high - self.low) / self.steps
        zero = (-self.low / scale).round()
        lowest, highest = -zero * scale, (self.steps - zero) * scale
        clipped = value.clamp(lowest, highest)
        rounded = (clipped / scale).round() * scale
        return clipped + (rounded - clipped).detach()

    def _follow(self, value: torch.Tensor) -> None:
        low, high = value.amin().clamp_max(0.0).float(), value.amax().clamp_min(0.0).float()
        if self.symmetric:
            high = torch.maximum(-low, high)
            low = -high
        if self.watching or not bool(self.high > self.low):
            self.low.copy_(torch.minimum(self.low, low))
            self.high.copy_(torch.maximum(self.high, high))
        else:
            self.low.lerp_(low, _MOMENTUM)
            self.high.lerp_(high, _MOMENTUM)


def attach(
    module: nn.Module, scheme: Scheme, callee: Callee, samples: Sequence[Mapping[str, Any]]
) -> int:
    """Put the simulation into every convolution and linear layer, in place.

    Args:
        module: In evaluation mode, batch normalizations folded where they can be.
        scheme: The target's.
        callee: Tells how the module is called.
        samples: What the ranges of the inputs start from; without any, the first batch.

    Returns:
        How many layers were changed.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, _LAYERS)]
    fakes = []
    for layer in layers:
        axis = 1 if getattr(layer, "transposed", False) else 0
        parametrize.register_parametrization(layer, "weight", FakeWeight(scheme, axis))
        fake = FakeInput(scheme)
        layer.add_module(_INPUT, fake)
        layer.register_forward_pre_hook(_round_input, with_kwargs=True)
        fakes.append(fake)
    wrapper = callee.wrapper(module)
    for fake in fakes:
        fake.watching = True
    with torch.no_grad():
        for sample in samples:
            flatten(tuple(wrapper(*(sample[name].clone() for name in callee.examples))))
    for fake in fakes:
        fake.watching = False
    return len(layers)


def detach(module: nn.Module) -> None:
    """Take the simulation out again, in place; the weights stay rounded."""
    for layer in list(module.modules()):
        if hasattr(layer, _INPUT):
            delattr(layer, _INPUT)
            for key, hook in list(layer._forward_pre_hooks.items()):
                if hook is _round_input:
                    del layer._forward_pre_hooks[key]
                    layer._forward_pre_hooks_with_kwargs.pop(key, None)
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)


_INPUT: Final = "edgepack_input"


def _round_input(
    layer: nn.Module, inputs: tuple[torch.Tensor, ...], named: dict[str, Any]
) -> tuple[tuple[torch.Tensor, ...], dict[str, Any]]:
    fake = getattr(layer, _INPUT)
    if inputs:
        return (fake(inputs[0]), *inputs[1:]), named
    return inputs, {**named, "input": fake(named["input"])}
