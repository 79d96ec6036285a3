"""A session of ONNX Runtime over its C API: tensors in, tensors out, no numpy."""

from __future__ import annotations

import ctypes
import math
import os
import threading
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple, Union

from .dtypes import BY_NAME, BY_ONNX
from .errors import BadRequest, InputOutputFault, ModelFault
from .ortlibrary import LOG_FATAL, Library, load_library, refuse_run
from .ortvalues import read_shape, read_value, string_value, wrap
from .tensor import Tensor

OPTIMIZE_ALL = 99
MAX_BINDINGS = 64
MAX_BINDING_BYTES = 64 << 20

_ONNX_TENSOR = 1
_ONNX_TYPES = {2: "a sequence", 3: "a map", 4: "opaque", 5: "a sparse tensor", 6: "optional"}
_Key = Tuple[object, ...]


class TensorInfo(NamedTuple):
    """An input or output as the model declares it, which need not be the truth.

    Attributes:
        name: Any text.
        dtype: Our name of the element type.
        shape: Sizes; a text for a named dimension, None for an unknown one.
    """

    name: str
    dtype: str
    shape: Tuple[Union[int, str, None], ...]


class _Binding:
    """Buffers for one set of shapes, wrapped once, so that a call only copies and runs."""

    __slots__ = (
        "inputs",
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
        self.reusable = True
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

    Raises:
        TargetMismatch: the library does not fit this machine.
        InputOutputFault: a file cannot be read.
        ModelFault: the model does not load, or has an input or output that is no tensor.
    """

    def __init__(
        self, library: str, model: str, *, threads: int = 1, optimization: int = OPTIMIZE_ALL
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
            self._session = _create_session(ort, model, options)
        finally:
            ort.release("ReleaseSessionOptions", options)
        try:
            self.inputs = _describe(ort, self._session, "Input")
            self.outputs = _describe(ort, self._session, "Output")
        except ModelFault:
            ort.release("ReleaseSession", self._session)
            raise
        self._run = ort.run
        self._input_names = _name_array([info.name for info in self.inputs])
        names = tuple(info.name for info in self.outputs)
        self._all_outputs = (names, _name_array(names))
        self._fixed = _fixed_outputs(self.inputs, self.outputs)
        # Guards everything below; held for a few dictionary operations, never across a call.
        self._idle = threading.Condition(threading.Lock())
        self._active = 0
        self._closed = False
        self._free: Dict[_Key, List[_Binding]] = {}
        self._free_count = 0
        self._free_bytes = 0

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
        try:
            tensors = [feeds[info.name] for info in self.inputs]
        except KeyError as error:
            raise BadRequest("missing input `%s`" % error.args[0]) from None
        if len(feeds) != len(tensors):
            known = {info.name for info in self.inputs}
            extra = next(name for name in feeds if name not in known)
            raise BadRequest("the model has no input `%s`" % extra)
        wanted = None if outputs is None else tuple(dict.fromkeys(outputs))
        key: _Key = (wanted, *[tuple(tensor.shape) for tensor in tensors])
        with self._idle:
            if self._closed:
                raise ModelFault("the session is closed")
            self._active += 1
            binding = self._take(key)
        reusable: Optional[_Binding] = None
        surplus: List[_Binding] = []
        try:
            if binding is None:
                binding = _Binding(key, *self._select(wanted))
                result = self._run_first(binding, tensors)
            else:
                result = self._run_bound(binding, tensors)
            reusable = binding if binding.reusable else None
        finally:
            with self._idle:
                self._active -= 1
                if reusable is not None:
                    surplus = self._put(reusable)
                elif binding is not None:
                    surplus = [binding]
                if self._closed:
                    self._idle.notify_all()
            for old in surplus:
                self._release(old)
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

    def _select(self, wanted: Optional[Tuple[str, ...]]) -> Tuple[Tuple[str, ...], Any]:
        """Return output names and their C array."""
        if wanted is None:
            return self._all_outputs
        known = {info.name for info in self.outputs}
        for name in wanted:
            if name not in known:
                raise BadRequest("the model has no output `%s`" % name)
        return wanted, _name_array(wanted)

    def _take(self, key: _Key) -> Optional[_Binding]:
        free = self._free.get(key)
        if free is None:
            return None
        binding = free.pop()
        if not free:
            del self._free[key]
        self._free_count -= 1
        self._free_bytes -= binding.nbytes
        return binding

    def _put(self, binding: _Binding) -> List[_Binding]:
        """Keep a binding as the newest; return the oldest ones that no longer fit."""
        free = self._free.pop(binding.key, [])
        free.append(binding)
        self._free[binding.key] = free
        self._free_count += 1
        self._free_bytes += binding.nbytes
        surplus = []
        while self._free_count > MAX_BINDINGS or self._free_bytes > MAX_BINDING_BYTES:
            old = self._take(next(iter(self._free)))
            if old is not None:
                surplus.append(old)
        return surplus

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


def _describe(ort: Library, session: int, kind: str) -> Tuple[TensorInfo, ...]:
    """Return the declared inputs or outputs; `kind` is `Input` or `Output`."""
    count = ort.count("SessionGet%sCount" % kind, session)
    return tuple(_describe_one(ort, session, kind, index) for index in range(count))


def _describe_one(ort: Library, session: int, kind: str, index: int) -> TensorInfo:
    text = ort.create("SessionGet%sName" % kind, session, index, ort.allocator)
    name = ctypes.string_at(text).decode("utf-8", "replace")
    ort.call("AllocatorFree", ort.allocator, text)
    info = ort.create("SessionGet%sTypeInfo" % kind, session, index)
    try:
        onnx_type = ort.code("GetOnnxTypeFromTypeInfo", info)
        if onnx_type != _ONNX_TENSOR:
            raise ModelFault(
                "%s `%s` is %s, and only tensors are served"
                % (kind.lower(), name, _ONNX_TYPES.get(onnx_type, "of an unknown kind")),
                hint="cut the model before it, or export it without that %s" % kind.lower(),
            )
        tensor_info = ort.create("CastTypeInfoToTensorInfo", info)
        dtype = BY_ONNX.get(ort.code("GetTensorElementType", tensor_info))
        if dtype is None:
            raise ModelFault(
                "%s `%s` has an element type that is not served" % (kind.lower(), name)
            )
        sizes = read_shape(ort, tensor_info)
        symbols = (ctypes.c_char_p * len(sizes))()
        ort.call("GetSymbolicDimensions", tensor_info, symbols, len(sizes))
        shape = tuple(
            size if size >= 0 else (symbol.decode("utf-8", "replace") or None)
            for size, symbol in zip(sizes, symbols)  # noqa: B905
        )
    finally:
        ort.release("ReleaseTypeInfo", info)
    return TensorInfo(name, dtype.name, shape)


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
