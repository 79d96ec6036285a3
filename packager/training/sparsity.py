"""Keeps two of every four weights at zero while a module trains."""

from __future__ import annotations

from typing import Final

import torch
from torch import nn
from torch.nn.utils import parametrize

_LAYERS: Final = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class TwoOfFour(nn.Module):  # type: ignore[misc]
    """Zeroes the two smallest of every four weights along the input, as they were at first.

    This is the pattern that sparse tensor cores skip (Mishra et al., arXiv 2104.08378).
    """

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        rows = weight.detach().movedim(1, -1)
        fours = rows.reshape(-1, 4).abs()
        kept = torch.zeros_like(fours, dtype=torch.bool)
        kept.scatter_(1, fours.topk(2, dim=1).indices, value=True)
        self.register_buffer("kept", kept.reshape(rows.shape).movedim(-1, 1).contiguous())

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the weight with the others at zero."""
        return weight * self.kept


def attach_masks(module: nn.Module) -> tuple[int, float]:
    """Put a mask on every layer whose inputs come in fours, in place.

    Returns:
        How many layers have one, and the share of all parameters that is zero now.
    """
    layers = [
        layer
        for layer in module.modules()
        if isinstance(layer, _LAYERS) and layer.weight.shape[1] % 4 == 0
    ]
    total = sum(parameter.numel() for parameter in module.parameters())
    zeros = 0
    for layer in layers:
        zeros += layer.weight.numel() // 2
        parametrize.register_parametrization(layer, "weight", TwoOfFour(layer.weight))
    return len(layers), zeros / total if total else 0.0


def detach_masks(module: nn.Module) -> None:
    """Take the masks off again, in place; the zeros stay."""
    for layer in list(module.modules()):
        if parametrize.is_parametrized(layer, "weight"):
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
