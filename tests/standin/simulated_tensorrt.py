"""A TensorRT without a GPU: the interface that the runtime uses, over the stand-in `cudart.c`.

    library = build_cudart(folder)                 # compiles cudart.c with cc; a Path
    trt = load_simulated(library, version="10.3.0.30")            # or rtx=True, version="1.7.1.116"
    plan = make_plan(
        inputs={"x": ("float32", [-1, 3])},
        outputs={"y": {"dtype": "float32", "of": "x", "scale": 2.0, "offset": 1.0}},
        profiles=[{"x": ([1, 3], [4, 3], [32, 3])}],               # (min, opt, max)
    )
    trt.faults.wrong_answer = 0.5                  # every fault is an attribute of `Faults`

`trt` is a module object with the real names: `Runtime(logger).deserialize_cuda_engine(plan)`,
`ICudaEngine`, `IExecutionContext`, `ILogger`, `Logger`, `IOutputAllocator`, `DataType`,
`TensorIOMode`, `TensorLocation`, `Dims`; with `rtx` also `IRuntimeConfig` and `IRuntimeCache`.
`simulated_vendor(trt)` wraps it as a `runtime.nvidia.vendor.Vendor`.

Outputs: `{"of": input, "scale":, "offset":}` computes `scale * x + offset` in the output's type;
`{"sum": input}` sums each row of the first axis; `{"nonzero": input}` gives the elements that are
not zero, so that its size depends on the data. Work is queued on the stream and computed when
something waits for it. Contexts and engines hold device memory, so leaks show in
`standin_live()` and out-of-memory is real (`standin_configure`). A plan names its TensorRT version
and compute capability: another one is refused with the real library's sentences.

CPython 3.8 reads this file: the adapter is tried in every interpreter that a device may have.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import subprocess
import threading
import time
import types
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.dtypes import BY_NAME, integer_range, pack, unpack
from runtime.nvidia.vendor import NAMES, Vendor
from tests.standin.simulated_nouns import (
    Dims,
    Faults,
    ILogger,
    IOutputAllocator,
    IRuntimeCache,
    IRuntimeConfig,
    Logger,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
MAGIC = b"simulated-engine\n"
ALIGNMENT = 256  # what TensorRT asks of every tensor's address
CONTEXT_BYTES = 1 << 16  # activations, one block for each context


def build_cudart(folder: Path, name: str = "libcudart.so.12") -> Path:
    """Return the stand-in library, compiled into `folder`."""
    library = folder / name
    source = Path(__file__).with_name("cudart.c")
    subprocess.run(
        ["cc", "-O1", "-shared", "-fPIC", "-fvisibility=hidden", "-pthread", "-o", library, source],
        check=True, capture_output=True,
    )  # fmt: skip
    return library


def make_plan(
    *,
    inputs: Mapping[str, tuple[str, Sequence[int]]],
    outputs: Mapping[str, Mapping[str, Any]],
    profiles: Sequence[Mapping[str, Sequence[Sequence[int]]]] = (),
    version: str = "10.3.0.30",
    compute_capability: str = "9.0",
    host_inputs: Sequence[str] = (),
) -> bytes:
    """Return the bytes of an engine; see the module's docstring."""
    fields = {
        "inputs": inputs,
        "outputs": outputs,
        "profiles": list(profiles),
        "version": version,
        "compute_capability": compute_capability,
        "host_inputs": list(host_inputs),
    }
    return MAGIC + json.dumps(fields).encode()


def simulated_vendor(trt: Any) -> Vendor:
    """Return a simulated module as the adapter is given one."""
    module = "tensorrt_rtx" if hasattr(trt, "IRuntimeCache") else "tensorrt"
    numbers = tuple(int(part) for part in trt.__version__.split("."))
    return Vendor(module, NAMES[module], trt.__version__, numbers, trt)


def load_simulated(cudart: Path, *, version: str = "10.3.0.30", rtx: bool = False) -> Any:
    """Return a module with the interface of `tensorrt`, or of `tensorrt_rtx`.

    Args:
        cudart: From `build_cudart`; the same file that the adapter loads.
        version: What the module says it is; 8.5 knows neither int64 nor bfloat16.
        rtx: Whether it has a runtime configuration and a runtime cache.
    """
    module: Any = types.ModuleType("tensorrt_rtx" if rtx else "tensorrt")
    module.__version__ = version
    module.faults = Faults()
    module.library = _open(cudart)
    names = ["FLOAT", "HALF", "INT8", "INT32", "BOOL", "UINT8", "FP8"]
    if rtx or int(version.partition(".")[0]) >= 10:
        names += ["BF16", "INT64", "INT4"]
    module.DataType = IntEnum("DataType", {name: index for index, name in enumerate(names)})
    module.TensorIOMode = IntEnum("TensorIOMode", {"NONE": 0, "INPUT": 1, "OUTPUT": 2})
    module.TensorLocation = IntEnum("TensorLocation", {"DEVICE": 0, "HOST": 1})
    module.Dims = Dims
    module.ILogger = ILogger
    module.Logger = Logger
    module.IOutputAllocator = IOutputAllocator
    module.ICudaEngine = ICudaEngine
    module.IExecutionContext = IExecutionContext
    module.Runtime = type("Runtime", (_Runtime,), {"module": module})
    module.init_libnvinfer_plugins = lambda logger, namespace: True
    if rtx:
        module.IRuntimeConfig = IRuntimeConfig
        module.IRuntimeCache = IRuntimeCache
        module.CudaGraphStrategy = IntEnum(
            "CudaGraphStrategy", {"DISABLED": 0, "WHOLE_GRAPH_CAPTURE": 1}
        )
    return module


def _open(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    library.standin_enqueue.argtypes = [ctypes.c_void_p, CALLBACK, ctypes.c_void_p]
    library.standin_is_device.argtypes = [ctypes.c_size_t, ctypes.c_size_t]
    library.standin_is_capturing.argtypes = [ctypes.c_void_p]
    library.standin_fail.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_int, ctypes.c_int]
    library.standin_live.restype = ctypes.c_long
    library.standin_device_bytes.restype = ctypes.c_size_t
    library.cudaMalloc.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    library.cudaFree.argtypes = [ctypes.c_void_p]
    library.cudaStreamSynchronize.argtypes = [ctypes.c_void_p]
    return library


class _DeviceBlock:
    """Device memory that goes with its owner."""

    def __init__(self, library: ctypes.CDLL, size: int) -> None:
        self._library = library
        self.address = ctypes.c_void_p()
        self.status = library.cudaMalloc(ctypes.byref(self.address), size)

    def __del__(self) -> None:
        if self.address:
            self._library.cudaFree(self.address)


class _Runtime:
    """Loads plans."""

    module: Any

    def __init__(self, logger: ILogger) -> None:
        self.logger = logger
        self.engine_host_code_allowed = False
        self.device_capability = "9.0"
        if self.module.faults.runtime:
            logger.log(ILogger.ERROR, self.module.faults.runtime)

    def deserialize_cuda_engine(self, serialized_engine: Any) -> ICudaEngine | None:
        faults, log = self.module.faults, self.logger.log
        if faults.crash == "deserialize":
            os.abort()
        data = bytes(serialized_engine)
        problem = faults.deserialize or _refuse_plan(data, self.module, self.device_capability)
        if problem:
            log(ILogger.ERROR, f"IRuntime::deserializeCudaEngine: Error Code 1: {problem}")
            return None
        block = _DeviceBlock(self.module.library, len(data))
        if block.status:
            log(
                ILogger.ERROR,
                f"Error Code 2: OutOfMemory (requested {len(data)} bytes)",
            )
            return None
        return ICudaEngine(self.module, self.logger, json.loads(data[len(MAGIC) :]), block)


def _refuse_plan(data: bytes, module: Any, capability: str) -> str:
    """Return why a plan does not load here, in the real library's words; empty where it does."""
    if not data.startswith(MAGIC):
        return "Serialization (Magic tag does not match)"
    try:
        fields = json.loads(data[len(MAGIC) :])
    except ValueError:
        return "Serialization (Serialization assertion failed. Stream is truncated)"
    if fields["version"] != module.__version__:
        return (
            f"Version tag does not match. Note: Current Version: {module.__version__},"
            f" Serialized Engine Version: {fields['version']}"
        )
    found = fields["compute_capability"]
    if found != capability:
        return (
            "The engine plan file is generated on an incompatible device, expecting compute"
            f" {capability} got compute {found}, please rebuild."
        )
    return ""


class ICudaEngine:
    """A loaded plan."""

    def __init__(self, module: Any, logger: ILogger, fields: Any, block: _DeviceBlock) -> None:
        self.module = module
        self.logger = logger
        self.fields = fields
        self._block = block
        self._names = [*fields["inputs"], *fields["outputs"]]
        self.lock = threading.Lock()
        self.contexts = 0
        self.in_use: dict[int, int] = {}

    @property
    def num_io_tensors(self) -> int:
        return len(self._names)

    @property
    def num_optimization_profiles(self) -> int:
        return max(1, len(self.fields["profiles"]))

    def get_tensor_name(self, index: int) -> str:
        return self._names[index]

    def get_tensor_mode(self, name: str) -> Any:
        modes = self.module.TensorIOMode
        if name in self.fields["inputs"]:
            return modes.INPUT
        return modes.OUTPUT if name in self.fields["outputs"] else modes.NONE

    def get_tensor_dtype(self, name: str) -> Any:
        known = self.fields["inputs"].get(name)
        ours = known[0] if known else self.fields["outputs"][name]["dtype"]
        return self.module.DataType[TYPES[ours]]

    def get_tensor_location(self, name: str) -> Any:
        locations = self.module.TensorLocation
        return locations.HOST if name in self.fields["host_inputs"] else locations.DEVICE

    def is_shape_inference_io(self, name: str) -> bool:
        return name in self.fields["host_inputs"]

    def get_tensor_shape(self, name: str) -> Dims:
        if name in self.fields["inputs"]:
            return Dims(self.fields["inputs"][name][1])
        rule = self.fields["outputs"][name]
        if "of" in rule:
            return Dims(self.fields["inputs"][rule["of"]][1])
        if "sum" in rule:
            return Dims(self.fields["inputs"][rule["sum"]][1][:1])
        return Dims([-1])

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Dims]:
        return [Dims(sizes) for sizes in self.fields["profiles"][profile_index][name]]

    def create_execution_context(self, *arguments: Any) -> IExecutionContext | None:
        faults, log = self.module.faults, self.logger.log
        with self.lock:
            if faults.contexts is not None and self.contexts >= faults.contexts:
                log(ILogger.ERROR, "IExecutionContext: Error Code 2: Out of memory (no context)")
                return None
            block = _DeviceBlock(self.module.library, CONTEXT_BYTES)
            if block.status:
                log(ILogger.ERROR, f"Error Code 2: Out of memory ({CONTEXT_BYTES} bytes)")
                return None
            self.contexts += 1
        config = arguments[0] if arguments and isinstance(arguments[0], IRuntimeConfig) else None
        return IExecutionContext(self, block, config)

    def create_runtime_config(self) -> IRuntimeConfig:
        return IRuntimeConfig()


class IExecutionContext:
    """Shapes and addresses of one execution at a time."""

    def __init__(
        self, engine: ICudaEngine, block: _DeviceBlock, config: IRuntimeConfig | None
    ) -> None:
        self.engine = engine
        self._block = block
        self._config = config
        self._fields = engine.fields
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._allocators: dict[str, Any] = {}
        self._calls: list[Any] = []
        self._generation = [0]
        # the first context gets profile 0 by itself, as the real one does
        self.active_optimization_profile = -1
        if engine.contexts == 1 or engine.module.faults.profile_sharing:
            self._take_profile(0)

    def __del__(self) -> None:
        with self.engine.lock:
            self.engine.contexts -= 1
            self._leave_profile()

    def _leave_profile(self) -> None:
        if self.active_optimization_profile >= 0:
            self.engine.in_use[self.active_optimization_profile] -= 1

    def _take_profile(self, index: int) -> None:
        self._leave_profile()
        self.engine.in_use[index] = self.engine.in_use.get(index, 0) + 1
        self.active_optimization_profile = index

    def _log(self, message: str) -> bool:
        self.engine.logger.log(ILogger.ERROR, message)
        return False

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        with self.engine.lock:
            shared = self.engine.module.faults.profile_sharing
            taken = self.engine.in_use.get(profile_index, 0)
            taken -= profile_index == self.active_optimization_profile
            if profile_index >= self.engine.num_optimization_profiles or (taken and not shared):
                self._log(f"Error Code 3: API Usage Error (profile {profile_index} is in use)")
                raise RuntimeError("Error in set optimization profile async.")
            self._take_profile(profile_index)
        self._shapes.clear()
        self._generation[0] += 1
        return True

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        if self.engine.module.faults.shape:
            return self._log(self.engine.module.faults.shape)
        declared = self._fields["inputs"][name][1]
        fits = len(shape) == len(declared) and all(
            known in (-1, size)
            for size, known in zip(shape, declared)  # noqa: B905 - not in 3.8
        )
        if fits and -1 in declared and self._fields["profiles"]:
            low, _, high = self._fields["profiles"][self.active_optimization_profile][name]
            fits = all(a <= b <= c for a, b, c in zip(low, shape, high))  # noqa: B905
        if not fits:
            return self._log(
                f"setInputShape: Error Code 3: dimensions {list(shape)} of {name} satisfy no"
                " optimization profile"
            )
        self._shapes[name] = tuple(shape)
        self._generation[0] += 1
        return True

    def _input_shape(self, name: str) -> tuple[int, ...]:
        return self._shapes.get(name, tuple(self._fields["inputs"][name][1]))

    def get_tensor_shape(self, name: str) -> Dims:
        if name in self._fields["inputs"]:
            return Dims(self._input_shape(name))
        rule = self._fields["outputs"][name]
        if "of" in rule:
            return Dims(self._input_shape(rule["of"]))
        return Dims(self._input_shape(rule["sum"])[:1]) if "sum" in rule else Dims([-1])

    def infer_shapes(self) -> list[str]:
        return [name for name in self._fields["inputs"] if -1 in self._input_shape(name)]

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if memory % ALIGNMENT:
            return self._log(f"setTensorAddress: Error Code 3: address of {name} is misaligned")
        self._addresses[name] = memory
        return True

    def get_tensor_address(self, name: str) -> int:
        return self._addresses.get(name, 0)

    def set_output_allocator(self, name: str, output_allocator: Any) -> bool:
        self._allocators[name] = output_allocator
        return True

    def is_stream_capturable(self, stream: int) -> bool:
        return self.engine.module.faults.capturable

    def execute_async_v3(self, stream_handle: int) -> bool:
        module = self.engine.module
        faults, library = module.faults, module.library
        if faults.execute or faults.crash == "execute":
            if faults.execute_after <= 0:
                if faults.crash == "execute":
                    os.abort()
                self._log("enqueueV3: Error Code 1: Cask (Cask convolution execution)")
                if faults.execute == "raise":
                    raise RuntimeError("enqueueV3 failed")
                return False
            faults.execute_after -= 1
        missing = self.infer_shapes()
        if missing:
            return self._log(f"enqueueV3: Error Code 3: no shape for {missing}")
        capturing = library.standin_is_capturing(stream_handle)
        dynamic = any("nonzero" in rule for rule in self._fields["outputs"].values())
        if capturing and (dynamic or not faults.capturable):
            library.cudaStreamSynchronize(stream_handle)  # which spoils the capture
            return self._log("enqueueV3: Error Code 1: not permitted when stream is capturing")
        sizes = {}
        for name in self.engine._names:
            dtype = self._dtype(name)
            shape = self.get_tensor_shape(name)
            if -1 not in tuple(shape):
                sizes[name] = math.prod(shape) * BY_NAME[dtype].itemsize
                address = self._addresses.get(name, 0)
                if not address or not library.standin_is_device(address, max(1, sizes[name])):
                    return self._log(f"enqueueV3: Error Code 3: the address of {name} is not set")
            elif self._allocators.get(name) is None:
                return self._log(f"enqueueV3: Error Code 3: no output allocator for {name}")
        work = _Work(self, capturing=bool(capturing))
        if self._config is not None and self._config.cache is not None:
            self._config.cache.content = b"kernels"
        if dynamic:
            library.cudaStreamSynchronize(stream_handle)
            failed = work.allocate(self._allocators, stream_handle)
            if failed:
                return self._log(f"enqueueV3: Error Code 2: no memory for output {failed}")
        call = CALLBACK(work)
        # the real library keeps what a graph needs as long as the context lives
        self._calls = [*self._calls, call] if capturing else [*self._calls[-64:], call]
        library.standin_enqueue(stream_handle, call, None)
        return True

    def _dtype(self, name: str) -> str:
        if name in self._fields["inputs"]:
            return str(self._fields["inputs"][name][0])
        return str(self._fields["outputs"][name]["dtype"])


class _Work:
    """One execution: what it reads and writes, as it was when it was enqueued."""

    def __init__(self, context: IExecutionContext, *, capturing: bool) -> None:
        # no reference to the context, which must go with its last user
        self.module = context.engine.module
        self.fields = context._fields
        self.addresses = dict(context._addresses)
        self.shapes = dict(context._shapes)
        self.generation = context._generation
        self.began = context._generation[0]
        self.captured = capturing

    def _read(self, name: str) -> tuple[tuple[int, ...], list[Any]]:
        dtype, declared = self.fields["inputs"][name]
        shape = self.shapes.get(name, tuple(declared))
        count = math.prod(shape) * BY_NAME[dtype].itemsize
        return shape, unpack(dtype, ctypes.string_at(self.addresses[name], count))

    def _compute(self, rule: Mapping[str, Any]) -> tuple[tuple[int, ...], list[Any]]:
        if "nonzero" in rule:
            found = [value for value in self._read(rule["nonzero"])[1] if value]
            return (len(found),), found
        if "sum" in rule:
            shape, values = self._read(rule["sum"])
            step = math.prod(shape[1:])
            rows = range(0, len(values), step or 1)
            return shape[:1], [sum(values[row : row + step]) for row in rows]
        shape, values = self._read(rule["of"])
        scale, offset = rule.get("scale", 1), rule.get("offset", 0)
        return shape, [value * scale + offset for value in values]

    def allocate(self, allocators: Mapping[str, Any], stream: int) -> str:
        """Ask the allocators of outputs of unknown size; return the one that has no memory."""
        for name, rule in self.fields["outputs"].items():
            if "nonzero" not in rule:
                continue
            shape, values = self._compute(rule)
            allocator = allocators[name]
            size = len(pack(rule["dtype"], values))
            ask = getattr(allocator, "reallocate_output_async", None)
            held = self.addresses.get(name, 0)
            address = (
                ask(name, held, size, ALIGNMENT, stream)
                if ask
                else allocator.reallocate_output(name, held, size, ALIGNMENT)
            )
            if not address:
                return name
            allocator.notify_shape(name, Dims(shape))
            self.addresses[name] = address
        return ""

    def __call__(self, _: Any) -> None:
        faults = self.module.faults
        if faults.execute_s:
            time.sleep(faults.execute_s)
        # A graph replayed after its context was given other shapes reads what is no longer there.
        stale = self.captured and self.generation[0] != self.began
        for name, rule in self.fields["outputs"].items():
            _, values = self._compute(rule)
            dtype = rule["dtype"]
            added = faults.wrong_answer + (1e6 if stale else 0)
            if dtype == "bool":
                values = [bool(value) != bool(added) for value in values]
            elif dtype in ("float32", "float16", "bfloat16"):
                values = [value + added for value in values]
            else:
                allowed = integer_range(dtype)
                values = [
                    min(max(int(value + added), allowed.start), allowed.stop - 1)
                    for value in values
                ]
            data = pack(dtype, values)
            ctypes.memmove(self.addresses[name], data, len(data))


TYPES = {
    "float32": "FLOAT",
    "float16": "HALF",
    "bfloat16": "BF16",
    "int8": "INT8",
    "uint8": "UINT8",
    "int32": "INT32",
    "int64": "INT64",
    "bool": "BOOL",
}
