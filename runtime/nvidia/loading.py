"""Loads an engine into TensorRT: the logger, the plan, its inputs and outputs, its contexts."""

from __future__ import annotations

import ctypes
import functools
import os
import re
import tempfile
from collections import deque
from typing import Any, Deque, List, NamedTuple, Optional, Tuple

from ..dtypes import BY_NAME
from ..errors import ModelFault
from .vendor import Vendor

# TensorRT's names of the types that requests can carry; later releases know more of them.
TYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT8": "int8",
    "UINT8": "uint8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
}
_LOG_LINES = 40
_TOLD_LINES = 3
_LONGEST_LINE = 400
# Error 35 is a driver missing or too old, 100 no GPU.
_NO_CUDA = re.compile(r"CUDA initialization failure|cudaError (?:35|100)\b")
# A plan's header alone is longer.
_SHORTEST_PLAN = 64


class EngineFault(ModelFault):
    """TensorRT refused an engine or failed while it ran.

    Attributes:
        log: What TensorRT's logger said last, oldest first.
    """

    def __init__(self, message: str, log: List[str], hint: Optional[str] = None) -> None:
        super().__init__(message, hint)
        self.log = log


class Port(NamedTuple):
    """One input or output of an engine.

    Attributes:
        name: The tensor's.
        dtype: Our name of the engine's element type.
        itemsize: Bytes an element.
        shape: As built, -1 for what a request chooses.
    """

    name: str
    dtype: str
    itemsize: int
    shape: Tuple[int, ...]


class Loaded(NamedTuple):
    """A deserialized engine and what belongs to it.

    Attributes:
        trt: The vendor's module.
        logger: Kept alive as long as the engine.
        runtime: The same.
        engine: `ICudaEngine`.
        inputs: In the engine's order.
        outputs: In the engine's order.
    """

    trt: Any
    logger: Any
    runtime: Any
    engine: Any
    inputs: Tuple[Port, ...]
    outputs: Tuple[Port, ...]


@functools.lru_cache(maxsize=None)
def find_logger(trt: Any) -> Any:
    """Return the process's logger: the last warnings and errors in `.lines` and `.errors`.

    TensorRT keeps the first logger that it is given for good, without a reference to it: so there
    is one, which is never freed.
    """

    class KeptLogger(trt.ILogger):  # type: ignore[misc]
        """Called from any of the library's threads; a deque appends atomically."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: Deque[str] = deque(maxlen=_LOG_LINES)
            self.errors: Deque[str] = deque(maxlen=_LOG_LINES)
            self._worst = int(trt.ILogger.Severity.WARNING)

        def log(self, severity: Any, msg: str) -> None:
            """Keep a line; the smaller the number, the more severe."""
            if int(severity) > self._worst:
                return
            line = " ".join(msg.split())[:_LONGEST_LINE]
            self.lines.append(line)
            if int(severity) < self._worst:
                self.errors.append(line)

    return KeptLogger()


def engine_fault(message: str, logger: Any, hint: Optional[str] = None) -> EngineFault:
    """Return a fault that ends with what the logger was told last, and forget that."""
    said = "; ".join(list(logger.errors)[-_TOLD_LINES:])
    log = list(logger.lines)
    logger.errors.clear()
    logger.lines.clear()
    return EngineFault("%s: %s" % (message, said) if said else message, log, hint)


def load(vendor: Vendor, plan: Any, *, host_code_allowed: bool = False) -> Loaded:
    """Return the engine of a plan.

    Args:
        vendor: The installed TensorRT.
        plan: The bytes of the engine's file.
        host_code_allowed: Whether code for the host inside the plan may run, which
            version-compatible engines hold; only for plans of a verified bundle.

    Raises:
        EngineFault: TensorRT refuses the plan, or an input or output cannot be served.
    """
    trt = vendor.trt
    logger = find_logger(trt)
    logger.lines.clear()
    logger.errors.clear()
    if len(memoryview(plan)) < _SHORTEST_PLAN:
        # some releases crash on it
        raise engine_fault("the engine's file is cut off", logger, "build the engine again")
    try:
        runtime = trt.Runtime(logger)
    except (TypeError, RuntimeError) as error:
        # the bindings raise a TypeError of their own for what the logger was told in plain words
        if not logger.errors:
            logger.log(trt.ILogger.Severity.ERROR, str(error))
        runtime = None
    if runtime is None or any(map(_NO_CUDA.search, logger.errors)):
        # Without CUDA there may be a runtime all the same; 11.4 crashes when it is used, or freed.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(runtime))
        raise engine_fault(
            "%s %s does not start" % (vendor.name, vendor.version),
            logger,
            _loading_hint(logger.lines),
        )
    if host_code_allowed and hasattr(runtime, "engine_host_code_allowed"):
        runtime.engine_host_code_allowed = True
    engine = _deserialize(trt, runtime, plan, logger)
    asks = engine is None and any("plugin" in line.lower() for line in logger.lines)
    asks = asks and hasattr(trt, "init_libnvinfer_plugins")
    # The plug-ins' library is large and needs others: it is loaded for an engine that asks.
    if asks and trt.init_libnvinfer_plugins(logger, ""):
        engine = _deserialize(trt, runtime, plan, logger)
    if engine is None:
        raise engine_fault(
            "%s %s does not load the engine" % (vendor.name, vendor.version),
            logger,
            _loading_hint(logger.lines),
        )
    inputs: List[Port] = []
    outputs: List[Port] = []
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
        (inputs if is_input else outputs).append(_port(trt, engine, name, logger))
    return Loaded(trt, logger, runtime, engine, tuple(inputs), tuple(outputs))


def _deserialize(trt: Any, runtime: Any, plan: Any, logger: Any) -> Any:
    try:
        return runtime.deserialize_cuda_engine(plan)
    except (RuntimeError, MemoryError) as error:
        logger.log(trt.ILogger.Severity.ERROR, str(error))
        return None


def _loading_hint(lines: Any) -> Optional[str]:
    said = " ".join(lines)
    if _NO_CUDA.search(said):
        return "give this process a GPU and a driver for its CUDA; `nvidia-smi` shows both"
    if "emory" in said:
        return "free memory of the GPU, or build with a smaller engine"
    return "build the engine again on this device"


def _port(trt: Any, engine: Any, name: str, logger: Any) -> Port:
    known = {getattr(trt.DataType, word): ours for word, ours in TYPES.items()
             if hasattr(trt.DataType, word)}  # fmt: skip
    dtype = engine.get_tensor_dtype(name)
    if dtype not in known:
        raise engine_fault("tensor `%s` is of a type that no request carries, %s" % (name, dtype),
                           logger)  # fmt: skip
    if engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
        raise engine_fault(
            "tensor `%s` is a shape that the engine reads or writes on the host" % name,
            logger,
            "compute the shape inside the model, from the shapes of its inputs",
        )
    ours = known[dtype]
    shape = tuple(engine.get_tensor_shape(name))
    return Port(name, ours, BY_NAME[ours].itemsize, shape)


class Contexts:
    """Makes execution contexts; with TensorRT-RTX they share one cache of compiled kernels.

    Args:
        loaded: The engine.
        cache_path: Where compiled kernels are kept between starts; RTX only, None for nowhere.
        cuda_graphs: Whether TensorRT-RTX may capture graphs by itself.

    Attributes:
        notes: What the user should know, one sentence each.
    """

    def __init__(self, loaded: Loaded, cache_path: Optional[str], *, cuda_graphs: bool) -> None:
        self._loaded = loaded
        self._cache_path = cache_path
        self._config: Any = None
        self._cache: Any = None
        self._kept = b""
        self.notes: List[str] = []
        trt = loaded.trt
        # other releases have runtime configurations too, but nothing that is set here
        if not hasattr(trt, "IRuntimeCache"):
            return
        self._config = loaded.engine.create_runtime_config()
        if cuda_graphs:
            self._config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        if cache_path is not None:
            self._cache = self._config.create_runtime_cache()
            self._read_cache(cache_path)
            self._config.set_runtime_cache(self._cache)

    @property
    def captures_graphs(self) -> bool:
        """Whether contexts capture CUDA graphs themselves."""
        return self._config is not None

    def create(self) -> Any:
        """Return a context.

        Raises:
            EngineFault: TensorRT makes none, mostly for want of memory.
        """
        engine, logger = self._loaded.engine, self._loaded.logger
        try:
            if self._config is not None:
                context = engine.create_execution_context(self._config)
            else:
                context = engine.create_execution_context()
        except (RuntimeError, MemoryError) as error:
            raise engine_fault("no execution context: %s" % error, logger) from error
        if context is None:
            raise engine_fault("TensorRT makes no execution context", logger,
                               "run fewer workers, or free memory of the GPU")  # fmt: skip
        return context

    @property
    def keeps_kernels(self) -> bool:
        """Whether compiled kernels are kept between starts."""
        return self._cache is not None and self._cache_path is not None

    def save(self) -> None:
        """Write the compiled kernels beside the engine, where there are new ones."""
        self.keep(self.kernels())

    def kernels(self) -> bytes:
        """Return the compiled kernels; empty where none are kept. No context may be running."""
        return bytes(self._cache.serialize()) if self.keeps_kernels else b""

    def keep(self, data: bytes) -> None:
        """Write compiled kernels where they differ from what is there; whole, or not at all."""
        if self._cache_path is None or not data or data == self._kept:
            return
        folder = os.path.dirname(os.path.abspath(self._cache_path))
        try:
            handle, partial = tempfile.mkstemp(dir=folder, prefix=".cache-")
            try:
                with os.fdopen(handle, "wb") as stream:
                    stream.write(data)
                    stream.flush()
                    os.fsync(stream.fileno())
                os.replace(partial, self._cache_path)
            except BaseException:
                os.unlink(partial)
                raise
        except OSError as error:
            self.notes.append("the compiled kernels could not be kept: %s" % error)
        else:
            self._kept = data

    def close(self) -> None:
        """Save, and let go of the library's objects."""
        self.save()
        self._config = self._cache = None
        self._loaded = None  # type: ignore[assignment]

    def _read_cache(self, path: str) -> None:
        try:
            with open(path, "rb") as stream:
                data = stream.read()
        except FileNotFoundError:
            return
        except OSError as error:
            self.notes.append("the compiled kernels could not be read: %s" % error)
            return
        if self._cache.deserialize(data):
            self._kept = data
        else:
            self.notes.append(
                "the compiled kernels that were kept do not fit this machine any more"
            )
