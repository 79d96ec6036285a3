"""The building side of TensorRT without a GPU: records what is asked, with a release's own names.

    trt = simulated_builder("8.5.3.1")      # no progress monitor, no strong typing, precision flags
    vendor = Vendor("tensorrt", "TensorRT", "8.5.3.1", (8, 5, 3, 1), trt)

A plan is the JSON of what the configuration held when it was built. What differs between releases
is what NVIDIA's headers say of 8.5, 10.3 and 11.x; `test_vendor_calls.py` holds the names against
the real 8.5.3.1.
"""

from __future__ import annotations

import json
import types
from typing import Any


class _Severity:
    def __init__(self, name: str) -> None:
        self.name = name


class _Cache:
    def __init__(self, content: bytes) -> None:
        self.content = content

    def serialize(self) -> bytes:
        return self.content


class _Tensor:
    def __init__(self, name: str, shape: tuple[int, ...], *, is_shape_tensor: bool) -> None:
        self.name = name
        self.shape = shape
        self.is_shape_tensor = is_shape_tensor


def simulated_builder(
    version: str,
    *,
    inputs: tuple[tuple[str, tuple[int, ...], bool], ...] = (("x", (-1, 64), False),),
    dla_cores: int = 0,
    layers: list[Any] | None = None,
    says: tuple[tuple[str, str], ...] = (),
    gives_plan: bool = True,
    parser_error: dict[str, Any] | None = None,
) -> Any:
    """Return a module with the names of a release that the builder uses.

    Args:
        version: Decides which names there are.
        inputs: Of every graph: name, shape, whether it holds a shape.
        dla_cores: Found on the device.
        layers: What the inspector tells; None: a layer in half precision.
        says: Severity and text of each line while an engine is built.
        gives_plan: Whether a build succeeds.
        parser_error: `desc`, `node` and `code` of the parser's only error.
    """
    major = int(version.split(".", maxsplit=1)[0])
    trt: Any = types.ModuleType("simulated_tensorrt_builder")
    trt.__version__ = version
    trt.calls = []

    def enumeration(name: str, words: dict[str, int]) -> None:
        setattr(trt, name, type(name, (), words))

    flags = {"SPARSE_WEIGHTS": 2, "GPU_FALLBACK": 3}
    flags.update({"FP16": 0, "INT8": 1} if major < 11 else {})
    flags.update({"VERSION_COMPATIBLE": 4} if major >= 10 else {})
    enumeration("BuilderFlag", flags)
    creation = {"STRONGLY_TYPED": 1} if major >= 10 else {}
    creation.update({"EXPLICIT_BATCH": 0} if major < 11 else {})
    enumeration("NetworkDefinitionCreationFlag", creation)
    sources = {"EDGE_MASK_CONVOLUTIONS": 3, "JIT_CONVOLUTIONS": 4}
    sources.update({"CUBLAS": 0, "CUBLAS_LT": 1, "CUDNN": 2} if major < 11 else {})
    enumeration("TacticSource", sources)
    enumeration("MemoryPoolType", {"WORKSPACE": 0})
    enumeration("ProfilingVerbosity", {"NONE": 1, "DETAILED": 2})
    enumeration("DeviceType", {"GPU": 0, "DLA": 1})
    enumeration("LayerInformationFormat", {"JSON": 1})
    enumeration("TensorLocation", {"DEVICE": 0, "HOST": 1})

    class ILogger:
        pass

    class Profile:
        def __init__(self) -> None:
            self.shapes: dict[str, Any] = {}

        def set_shape(self, name: str, low: Any, usual: Any, high: Any) -> None:
            self.shapes[name] = [list(low), list(usual), list(high)]

        def set_shape_input(self, name: str, low: Any, usual: Any, high: Any) -> None:
            self.shapes[name] = ["values", list(low), list(usual), list(high)]

    class Config:
        def __init__(self) -> None:
            self.profiling_verbosity = 0
            self.default_device_type = 0
            self.DLA_core = -1
            self.flags: list[int] = []
            self.pools: dict[int, int] = {}
            self.profiles: list[Any] = []
            self.cache: _Cache | None = None
            self.sources = sum(1 << bit for bit in sources.values())

        def set_flag(self, flag: int) -> None:
            self.flags.append(flag)

        def set_memory_pool_limit(self, pool: int, size: int) -> None:
            self.pools[pool] = size

        def get_tactic_sources(self) -> int:
            return self.sources

        def set_tactic_sources(self, mask: int) -> bool:
            self.sources = mask
            return True

        def add_optimization_profile(self, profile: Profile) -> int:
            self.profiles.append(profile.shapes)
            return len(self.profiles) - 1

        def create_timing_cache(self, content: bytes) -> _Cache | None:
            return None if content == b"of another release" else _Cache(content)

        def set_timing_cache(self, cache: _Cache, ignore_mismatch: bool) -> bool:
            self.cache = cache
            return not ignore_mismatch

        def get_timing_cache(self) -> _Cache | None:
            return self.cache

    class Network:
        num_inputs = len(inputs)

        def get_input(self, index: int) -> _Tensor:
            name, shape, holds_shape = inputs[index]
            return _Tensor(name, shape, is_shape_tensor=holds_shape)

    class Builder:
        num_DLA_cores = dla_cores  # noqa: N815 - as the library spells it

        def __init__(self, logger: Any) -> None:
            self.logger = logger

        def create_network(self, creation_flags: int) -> Network:
            trt.calls.append(("network", creation_flags))
            return Network()

        def create_builder_config(self) -> Config:
            return Config()

        def create_optimization_profile(self) -> Profile:
            return Profile()

        def build_serialized_network(self, network: Network, config: Config) -> bytes | None:
            trt.calls.append(("build", config.profiling_verbosity, len(config.flags)))
            monitor = getattr(config, "progress_monitor", None)
            if monitor is not None:
                monitor.phase_start("Building engine", None, 2)
                monitor.step_complete("Building engine", 0)
                monitor.phase_finish("Building engine")
            for severity, text in says:
                self.logger.log(_Severity(severity), text)
            if config.cache is not None:
                config.cache.content += b"+timed"
            fields = {
                "verbosity": config.profiling_verbosity, "flags": sorted(config.flags),
                "pools": config.pools, "profiles": config.profiles, "sources": config.sources,
                "device": config.default_device_type, "core": config.DLA_core,
            }  # fmt: skip
            return json.dumps(fields).encode() if gives_plan else None

    class Error:
        def __init__(self, fields: dict[str, Any]) -> None:
            self._fields = fields

        def desc(self) -> str:
            return str(self._fields["desc"])

        def node(self) -> int:
            return int(self._fields["node"])

        def code(self) -> _Severity:
            return _Severity(str(self._fields["code"]))

    class OnnxParser:
        num_errors = 0 if parser_error is None else 1

        def __init__(self, network: Network, logger: Any) -> None:
            self.network = network

        def parse_from_file(self, path: str) -> bool:
            return parser_error is None

        def get_error(self, index: int) -> Error:
            return Error(parser_error or {})

    class Inspector:
        execution_context: Any = None

        def get_engine_information(self, form: int) -> str:
            told = [{"Name": "a\x1fb", "LayerType": "CaskConvolution",
                     "Inputs": [{"Name": "x", "Format/Datatype": "Half"}]}]  # fmt: skip
            return json.dumps({"Layers": told if layers is None else layers})

    class Context:
        def set_input_shape(self, name: str, shape: Any) -> bool:
            trt.calls.append(("shape", name, tuple(shape)))
            return True

    class Engine:
        def create_engine_inspector(self) -> Inspector:
            return Inspector()

        def create_execution_context(self) -> Context:
            return Context()

        def get_tensor_location(self, name: str) -> int:
            return int(trt.TensorLocation.DEVICE)

    class Runtime:
        def __init__(self, logger: Any) -> None:
            self.engine_host_code_allowed = False

        def deserialize_cuda_engine(self, plan: bytes) -> Engine:
            trt.calls.append(("deserialize", self.engine_host_code_allowed))
            return Engine()

    trt.ILogger, trt.Builder, trt.OnnxParser, trt.Runtime = ILogger, Builder, OnnxParser, Runtime
    trt.IBuilderConfig = Config
    if major >= 10:
        Config.progress_monitor = None
        trt.IProgressMonitor = type("IProgressMonitor", (), {})
    return trt
