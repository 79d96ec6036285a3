"""A session of ONNX Runtime over its C API: tensors in, tensors out, no numpy."""

from __future__ import annotations

import ctypes
import math
import os
import threading
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from .dtypes import BY_NAME
from .errors import BadRequest, InputOutputFault, ModelFault
from .ortlibrary import LOG_FATAL, Library, load_library, refuse_run
from .ortvalues import TensorInfo, describe, read_value, string_value, wrap
from .tensor import Tensor

OPTIMIZE_ALL = 99
MAX_BINDINGS = 64
MAX_BINDING_BYTES = 64 << 20

_Key = Tuple[object, ...]


class _Binding:
    """Buffers for one set of shapes, wrapped once, so that a call only copies and runs."""

    __slots__ = (
        "inputs",
        "kept",
        "key",
        "name_array",
        "names",
        "nbytes",
        "outputs",
        "results",
        "reusable",
        "views",
    )

    def __init__(self, key: _Key, names: Tuple[str, ...], name_array: Any) -> None:
        self.key = key
        self.names = names
        self.name_array = name_array
        self.nbytes = 0
        # whether the shapes can be served again from here, and whether the session counts it
        self.reusable = True
        self.kept = False
        # arrays of pointers to ONNX Runtime's values, owned by this binding
        self.inputs: Any = None
        self.outputs: Any = None
        # per input: the writable bytes and the type that has to arrive
        self.views: List[Tuple[memoryview, str]] = []
        # per output: name, type, shape and bytes; no bytes where ONNX Runtime allocates
        self.results: List[Tuple[str, str, Tuple[int, ...], Optional[memoryview]]] = []


class Session:
    """A loaded model; `run` may be called from several threads at once.

    Args:
        library: Path of ONNX Runtime's shared library.
        model: Path of the `.onnx` or `.ort` file.
        threads: Intra-op threads, at least 1; the calling thread is one of them.
        optimization: ONNX Runtime's graph optimization level.
        keep_pairs: Run QuantizeLinear/DequantizeLinear pairs as they stand: where scales are fp16,
            1.32 goes wrong in what it makes of them.

    Raises:
        TargetMismatch: the library does not fit this machine.
        InputOutputFault: a file cannot be read.
        ModelFault: the model does not load, or has an input or output that is no tensor.
    """

    def __init__(
        self,
        library: str,
        model: str,
        *,
        threads: int = 1,
        optimization: int = OPTIMIZE_ALL,
        keep_pairs: bool = False,
    ) -> None:
        self._library = ort = load_library(library)
        self.version = ort.version
        if not os.path.isfile(model):
            raise InputOutputFault("there is no model file `%s`" % os.path.basename(model))
        options = ort.create("CreateSessionOptions")
        try:
            ort.call("EnableCpuMemArena", options)
            ort.call("SetSessionLogSeverityLevel", options, LOG_FATAL)
            ort.call("SetSessionGraphOptimizationLevel", options, optimization)
            ort.call("SetIntraOpNumThreads", options, threads)
            ort.call("SetInterOpNumThreads", options, 1)
            # a spinning pool doubles the CPU time of a small model at two threads
            ort.call("AddSessionConfigEntry", options, b"session.intra_op.allow_spinning", b"0")
            # 1.32 crashes where it widens an fp16 constant behind a Transpose
            ort.call(
                "AddSessionConfigEntry",
                options,
                b"optimization.disable_specified_optimizers",
                b"FuseFp16InitializerToFp32NodeTransformer",
            )
            if keep_pairs:
                ort.call("AddSessionConfigEntry", options, b"session.disable_quant_qdq", b"1")
            self._session = _create_session(ort, model, options)
        finally:
            ort.release("ReleaseSessionOptions", options)
        try:
            self.inputs = describe(ort, self._session, "Input")
            self.outputs = describe(ort, self._session, "Output")
        except ModelFault:
            ort.release("ReleaseSession", self._session)
            raise
        self._run = ort.run
        self._names = tuple(info.name for info in self.inputs)
        self._input_names = _name_array(self._names)
        names = tuple(info.name for info in self.outputs)
        self._all_outputs = (names, _name_array(names))
        self._fixed = _fixed_outputs(self.inputs, self.outputs)
        # Guards everything below; held for a few dictionary operations, never across a call.
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._active = 0
        self._closed = False
        self._free: Dict[_Key, List[_Binding]] = {}
        self._kept_count = 0
        self._kept_bytes = 0

    def run(
        self, feeds: Mapping[str, Tensor], outputs: Optional[Sequence[str]] = None
    ) -> Dict[str, Tensor]:
        """Return the outputs by name; each is a copy that stays valid.

        Args:
            feeds: A tensor for every input.
            outputs: The names wanted, None for all in the model's order.

        Raises:
            BadRequest: an input is missing, unknown, of another type or of a size that the model
                refuses, or an output is unknown.
            ModelFault: the model failed.
        """
        tensors = []
        shapes: List[object] = [None if outputs is None else tuple(dict.fromkeys(outputs))]
        for name in self._names:
            tensor = feeds.get(name)
            if tensor is None:
                raise BadRequest("missing input `%s`" % name)
            tensors.append(tensor)
            shapes.append(tuple(tensor.shape))
        if len(feeds) != len(tensors):
            extra = next(name for name in feeds if name not in self._names)
            raise BadRequest("the model has no input `%s`" % extra)
        key = tuple(shapes)
        with self._lock:
            if self._closed:
                raise ModelFault("the session is closed")
            self._active += 1
            free = self._free.get(key)
            binding = free.pop() if free else None
        done = False
        try:
            if binding is None:
                binding = _Binding(key, *self._select(shapes[0]))
                result = self._run_first(binding, tensors)
            else:
                result = self._run_bound(binding, tensors)
            done = True
        finally:
            if binding is not None and not (done and binding.kept and binding.reusable):
                done = self._admit(binding) if done else self._drop(binding)
            with self._lock:
                self._active -= 1
                if done and binding is not None:
                    free = self._free.get(key)
                    if free is None:
                        self._free[key] = free = []
                    free.append(binding)
                if self._closed:
                    self._idle.notify_all()
        return result

    def close(self) -> None:
        """Wait for the calls under way, then free the model; a later `run` is refused."""
        with self._idle:
            self._closed = True
            while self._active:
                self._idle.wait()
            bindings = [binding for free in self._free.values() for binding in free]
            self._free.clear()
            session, self._session = self._session, 0
        for binding in bindings:
            self._release(binding)
        self._library.release("ReleaseSession", session)

    def _execute(self, binding: _Binding) -> int:
        """Run the model on a binding's inputs; return the status."""
        status: Optional[int] = self._run(
            self._session,
            None,
            self._input_names,
            binding.inputs,
            len(binding.views),
            binding.name_array,
            len(binding.names),
            binding.outputs,
        )
        return status or 0

    def _run_bound(self, binding: _Binding, tensors: Sequence[Tensor]) -> Dict[str, Tensor]:
        """Copy in, run, copy out: the way of every call but the first of its shapes."""
        for index, (view, dtype) in enumerate(binding.views):
            tensor = tensors[index]
            if tensor.dtype != dtype:
                raise BadRequest(_wrong_dtype(self.inputs[index], tensor))
            try:
                view[:] = tensor.data
            except (ValueError, TypeError):
                # a view of another item format, or a size that the shape does not give
                view[:] = _checked_bytes(self.inputs[index], tensor)
        status = self._execute(binding)
        if status:
            return self._run_again(binding, tensors, status)
        result = {}
        outputs = binding.outputs
        for index, (name, dtype, shape, out) in enumerate(binding.results):
            if out is None:
                result[name] = self._collect(outputs, index)
            else:
                result[name] = Tensor(dtype, shape, out.tobytes())
        return result

    def _run_again(
        self, binding: _Binding, tensors: Sequence[Tensor], status: int
    ) -> Dict[str, Tensor]:
        """Tell a refused output buffer from a refused input, by running without the buffers."""
        # not to be used again, whatever comes out
        binding.reusable = False
        if all(out is None for _, _, _, out in binding.results):
            refuse_run(self._library, status)
        self._library.release("ReleaseStatus", status)
        fresh = _Binding(binding.key, binding.names, binding.name_array)
        try:
            result = self._run_first(fresh, tensors)
        finally:
            self._release(fresh)
        # It works without: the declared output shapes lie, and are not believed again.
        self._fixed = {}
        return result

    def _run_first(self, binding: _Binding, tensors: Sequence[Tensor]) -> Dict[str, Tensor]:
        """Wrap the inputs, run, and keep buffers for outputs whose shapes are now known."""
        ort = self._library
        binding.inputs = (ctypes.c_void_p * len(tensors))()
        binding.outputs = outputs = (ctypes.c_void_p * len(binding.names))()
        for index, (info, tensor) in enumerate(zip(self.inputs, tensors)):  # noqa: B905
            if tensor.dtype != info.dtype:
                raise BadRequest(_wrong_dtype(info, tensor))
            if info.dtype == "string":
                binding.reusable = False
                binding.inputs[index] = string_value(ort, info.name, tensor)
                view = memoryview(b"")
            else:
                data = _checked_bytes(info, tensor)
                view, binding.inputs[index] = wrap(ort, info.dtype, tensor.shape, len(data))
                view[:] = data
                binding.nbytes += len(data)
            binding.views.append((view, info.dtype))
        status = self._execute(binding)
        if status:
            refuse_run(ort, status)
        result = {}
        for index, name in enumerate(binding.names):
            tensor = result[name] = self._collect(outputs, index)
            out: Optional[memoryview] = None
            if binding.reusable and self._fixed.get(name) == len(tensor.shape) and tensor.data:
                size = len(tensor.data)
                out, outputs[index] = wrap(ort, tensor.dtype, tensor.shape, size)
                binding.nbytes += size
            binding.results.append((name, tensor.dtype, tensor.shape, out))
        return result

    def _collect(self, outputs: Any, index: int) -> Tensor:
        """Copy an output that ONNX Runtime allocated, and release it."""
        pointer: int = outputs[index]
        outputs[index] = None
        try:
            return read_value(self._library, pointer)
        finally:
            self._library.release_value(pointer)

    def _select(self, wanted: Any) -> Tuple[Tuple[str, ...], Any]:
        """Return output names and their C array."""
        if wanted is None:
            return self._all_outputs
        known = {info.name for info in self.outputs}
        for name in wanted:
            if name not in known:
                raise BadRequest("the model has no output `%s`" % name)
        return wanted, _name_array(wanted)

    def _admit(self, binding: _Binding) -> bool:
        """Keep a new binding, in place of the oldest idle ones where there are too many."""
        if not binding.reusable or binding.nbytes > MAX_BINDING_BYTES:
            return self._drop(binding)
        evicted = []
        with self._lock:
            binding.kept = True
            self._kept_count += 1
            self._kept_bytes += binding.nbytes
            for key in list(self._free):
                free = self._free[key]
                while free and self._is_full():
                    old = free.pop()
                    old.kept = False
                    self._kept_count -= 1
                    self._kept_bytes -= old.nbytes
                    evicted.append(old)
                if not free:
                    del self._free[key]
                if not self._is_full():
                    break
        for old in evicted:
            self._release(old)
        # where all others are at work, this one goes
        return self._drop(binding) if self._is_full() else True

    def _is_full(self) -> bool:
        return self._kept_count > MAX_BINDINGS or self._kept_bytes > MAX_BINDING_BYTES

    def _drop(self, binding: _Binding) -> bool:
        """Release a binding; return that it is not kept."""
        if binding.kept:
            binding.kept = False
            with self._lock:
                self._kept_count -= 1
                self._kept_bytes -= binding.nbytes
        self._release(binding)
        return False

    def _release(self, binding: _Binding) -> None:
        """Release what a binding holds, before its buffers go."""
        for array in (binding.inputs, binding.outputs):
            for index, pointer in enumerate(array or ()):
                array[index] = None
                self._library.release("ReleaseValue", pointer)


def _create_session(ort: Library, model: str, options: int) -> int:
    out = ctypes.c_void_p()
    path = os.path.abspath(model)
    status = ort.start("CreateSession", ort.environment, os.fsencode(path), options, out)
    if status:
        ort.fail(status, hide=path)
    return out.value or 0


def _fixed_outputs(inputs: Sequence[TensorInfo], outputs: Sequence[TensorInfo]) -> Dict[str, int]:
    """Return the rank of each output whose shape follows from the shapes of the inputs."""
    named = {dim for info in inputs for dim in info.shape if isinstance(dim, str)}
    return {
        info.name: len(info.shape)
        for info in outputs
        if info.dtype != "string"
        and all(isinstance(dim, int) or dim in named for dim in info.shape)
    }


def _name_array(names: Sequence[str]) -> Any:
    return (ctypes.c_char_p * len(names))(*[name.encode() for name in names])


def _checked_bytes(info: TensorInfo, tensor: Tensor) -> memoryview:
    """Return the bytes of a tensor whose size is its shape's: nothing is read past an end."""
    view = memoryview(tensor.data).cast("B")
    needed = math.prod(tensor.shape) * BY_NAME[info.dtype].itemsize
    if len(view) != needed or any(size < 0 for size in tensor.shape):
        raise BadRequest(_wrong_size(info, tensor, len(view)))
    return view


def _wrong_dtype(info: TensorInfo, tensor: Tensor) -> str:
    return "input `%s` is %s where the model takes %s" % (info.name, tensor.dtype, info.dtype)


def _wrong_size(info: TensorInfo, tensor: Tensor, size: int) -> str:
    return "input `%s` has %d bytes, which is not what shape %s needs" % (
        info.name,
        size,
        list(tensor.shape),
    )
