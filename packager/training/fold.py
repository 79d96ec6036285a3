"""Folds batch normalizations into the convolutions before them, where that changes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn
from torch.nn.utils import fusion

from packager.training.modules import alike

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from packager.importers.torch_calls import Callee

_CONVOLUTIONS: Final = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TOLERANCE: Final = 1e-4


def fold_batch_norms(
    module: nn.Module, callee: Callee, probes: Sequence[Mapping[str, torch.Tensor]]
) -> int:
    """Fold, in place, every batch normalization that alone reads a convolution.

    Args:
        module: In evaluation mode.
        callee: Tells how it is called.
        probes: Inputs on which the answers are compared.

    Returns:
        How many were folded; those that would change the answers stay.
    """
    pairs = _pairs(module, callee, probes[0])
    wrapper = callee.wrapper(module)
    before = [_answers(wrapper, callee, probe) for probe in probes]
    folded = 0
    for conv_name, norm_name in pairs:
        conv, norm = module.get_submodule(conv_name), module.get_submodule(norm_name)
        _replace(module, conv_name, fusion.fuse_conv_bn_eval(conv, norm))
        _replace(module, norm_name, nn.Identity())
        if all(
            alike(a, b, tolerance=_TOLERANCE)
            for probe, answers in zip(probes, before, strict=True)
            for a, b in zip(answers, _answers(wrapper, callee, probe), strict=True)
        ):
            folded += 1
        else:  # the convolution is read elsewhere as well, or the layers are used twice
            _replace(module, conv_name, conv)
            _replace(module, norm_name, norm)
    return folded


def freeze_batch_norms(module: nn.Module) -> int:
    """Keep what is left at its running statistics even while training; return how many."""
    layers = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for layer in layers:
        layer.register_forward_pre_hook(_to_evaluation)
    return len(layers)


def release_batch_norms(module: nn.Module) -> None:
    """Undo `freeze_batch_norms`."""
    for layer in module.modules():
        hooks = layer._forward_pre_hooks
        for key in [key for key, hook in hooks.items() if hook is _to_evaluation]:
            del hooks[key]


def _to_evaluation(layer: nn.Module, inputs: Any) -> None:
    layer.training = False


def _pairs(
    module: nn.Module, callee: Callee, probe: Mapping[str, torch.Tensor]
) -> list[tuple[str, str]]:
    """Return (convolution, batch normalization) where one's output is the other's input."""
    made: dict[int, tuple[str, torch.Tensor]] = {}
    found: dict[str, str] = {}

    def after(name: str) -> Any:
        return lambda layer, inputs, output: made.__setitem__(id(output), (name, output))

    def before(name: str) -> Any:
        def note(layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            if inputs and id(inputs[0]) in made:
                found[name] = made[id(inputs[0])][0]

        return note

    handles = []
    for name, layer in module.named_modules():
        if isinstance(layer, _CONVOLUTIONS):
            handles.append(layer.register_forward_hook(after(name)))
        elif isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.track_running_stats:
            handles.append(layer.register_forward_pre_hook(before(name)))
    try:
        _answers(callee.wrapper(module), callee, probe)
    finally:
        for handle in handles:
            handle.remove()
    return [(conv, norm) for norm, conv in found.items()]


def _replace(module: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(parent), leaf, layer)


def _answers(
    wrapper: nn.Module, callee: Callee, probe: Mapping[str, torch.Tensor]
) -> tuple[torch.Tensor, ...]:
    with torch.no_grad():
        answers: tuple[torch.Tensor, ...] = wrapper(*(probe[n].clone() for n in callee.examples))
    return answers
