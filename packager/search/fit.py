"""What this machine is to a target, and what kind of model a graph is."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packager.passes.graph import constant_sizes, op_types
from packager.passes.quantizer import constant_weights

if TYPE_CHECKING:
    from packager.target import Target


def is_attention(model: Any) -> bool:
    """Tell whether a graph is mostly a transformer.

    It multiplies computed matrices, takes a Softmax, and its convolutions hold fewer weights than
    its matrix products.
    """
    constants = constant_sizes(model).keys()
    products = [node for node in model.graph.node if node.op_type == "MatMul"]
    computed = any(not set(node.input) & constants for node in products)
    convolutions = sum(constant_weights(model, ("Conv",)).values())
    weights = sum(constant_weights(model, ("MatMul", "Gemm")).values())
    attention = (computed and "Softmax" in op_types(model)) or "Attention" in op_types(model)
    return attention and convolutions <= weights


def is_this_machine(target: Target) -> bool:
    """Tell whether this machine has the target's architecture and processor features."""
    flags = _host_flags()
    some = target.cpu_features_any
    return (
        platform.machine() == target.arch
        and set(target.cpu_features_all) <= flags
        and (not some or bool(set(some) & flags))
    )


def host_level() -> str:
    """Return what a search's outcome depends on here: architecture, kernels and cores."""
    kernels = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "asimddp")
    flags = _host_flags()
    found = [kernel for kernel in kernels if kernel in flags]
    return " ".join([platform.machine(), *found, f"{os.cpu_count()} cores"])


def _host_flags() -> set[str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return set()
    return {
        word
        for line in text.splitlines()
        if line.partition(":")[0].strip() in {"flags", "Features"}
        for word in line.partition(":")[2].split()
    }
