"""What this machine is to a target, and what kind of model a graph is."""

from __future__ import annotations

import math
import os
import platform
from collections import Counter
from typing import TYPE_CHECKING, Any

from packager.checks.processor import processor_flags
from packager.passes.graph import all_nodes, constant_sizes, op_types
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


def holder_of_weights(model: Any) -> str | None:
    """Return the operator that holds or reads the most constants, branches and loops included."""
    sizes: Counter[str] = Counter()
    constants = constant_sizes(model)
    for node in all_nodes(model):
        sizes[node.op_type] += sum(constants.get(name, 0) for name in node.input)
        for attribute in node.attribute:
            # A branch and a loop's body have constants of their own.
            for tensor in attribute.g.initializer:
                sizes[node.op_type] += math.prod(tensor.dims)
            # Trees and support vectors are lists of numbers.
            sizes[node.op_type] += len(attribute.floats)
    ((largest, count),) = sizes.most_common(1) or [("", 0)]
    return largest if count else None


def is_this_machine(target: Target) -> bool:
    """Tell whether a time measured here holds for the target.

    This machine then has its architecture and processor features. Never so for a target with
    TensorRT: what counts there is the GPU's time, and a search runs on the CPU.
    """
    flags = processor_flags()
    some = target.cpu_features_any
    return (
        target.tensorrt is None
        and platform.machine() == target.arch
        and set(target.cpu_features_all) <= flags
        and (not some or bool(set(some) & flags))
    )


def may_lack_vnni(target: Target) -> bool:
    """Tell whether a target's processors may be such as add pairs of 8-bit products in 16 bits."""
    needed = {*target.cpu_features_all, *target.cpu_features_any}
    return target.arch == "x86_64" and not {"avx512_vnni", "avx_vnni"} & needed


def host_level() -> str:
    """Return what a search's outcome depends on here: architecture, kernels and cores."""
    kernels = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "asimddp")
    flags = processor_flags()
    found = [kernel for kernel in kernels if kernel in flags]
    return " ".join([platform.machine(), *found, f"{os.cpu_count()} cores"])
