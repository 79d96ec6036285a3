"""Copies, counts and compares torch modules."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch

from packager.errors import ModelUnsupported

if TYPE_CHECKING:
    from torch import nn


def copy_of(module: nn.Module) -> nn.Module:
    """Return a deep copy.

    Raises:
        ModelUnsupported: the module cannot be copied.
    """
    try:
        return copy.deepcopy(module)
    except (RuntimeError, TypeError, NotImplementedError) as fault:
        raise ModelUnsupported(
            f"the module cannot be copied, which training on the side needs: {str(fault)[:300]}",
            hint="keep tensors that are results, open files and locks out of its attributes",
        ) from fault


def count_parameters(module: nn.Module) -> int:
    """Return the number of elements of all parameters, shared ones counted once."""
    return sum(parameter.numel() for parameter in module.parameters())


def alike(a: torch.Tensor, b: torch.Tensor, *, tolerance: float) -> bool:
    """Return whether two answers are the same up to a share of the largest value.

    Integers count as the same: an arg max may turn where two scores are equal.
    """
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not a.is_floating_point():
        return True
    largest = float(a.abs().max()) if a.numel() else 0.0
    return bool(torch.allclose(a, b, rtol=0.0, atol=tolerance * largest + 1e-6, equal_nan=True))
