"""What the adapter asks of TensorRT, by class: held against each release that can be had."""

from __future__ import annotations

from typing import Any

USED: dict[str, tuple[str, ...]] = {
    "ILogger": ("Severity", "log"),
    "Runtime": ("deserialize_cuda_engine",),
    "ICudaEngine": (
        "create_execution_context",
        "get_tensor_dtype",
        "get_tensor_location",
        "get_tensor_mode",
        "get_tensor_name",
        "get_tensor_profile_shape",
        "get_tensor_shape",
        "num_io_tensors",
        "num_optimization_profiles",
    ),
    "IExecutionContext": (
        "execute_async_v3",
        "get_tensor_shape",
        "infer_shapes",
        "set_input_shape",
        "set_optimization_profile_async",
        "set_output_allocator",
        "set_tensor_address",
    ),
    "IOutputAllocator": (),
    "TensorIOMode": ("INPUT",),
    "TensorLocation": ("DEVICE",),
    "DataType": ("BOOL", "FLOAT", "HALF", "INT32", "INT8"),
}
RTX: dict[str, tuple[str, ...]] = {
    "ICudaEngine": ("create_runtime_config",),
    "IRuntimeConfig": ("create_runtime_cache", "cuda_graph_strategy", "set_runtime_cache"),
    "IRuntimeCache": ("deserialize", "serialize"),
    "CudaGraphStrategy": ("WHOLE_GRAPH_CAPTURE",),
}


def missing(module: Any, used: dict[str, tuple[str, ...]]) -> list[str]:
    """Return what a release lacks, as `Class.name`."""
    return [
        f"{kind}.{name}"
        for kind, names in used.items()
        for name in ("__name__", *names)
        if not hasattr(getattr(module, kind, None), name)
    ]
