"""One execution context with its stream and buffers: copies in, runs, copies out."""

from __future__ import annotations

import math
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

from ..errors import BadRequest
from ..tensor import Tensor
from .casts import find_cast
from .cudaerrors import CudaFault
from .cudart import TO_DEVICE, TO_HOST, Cudart
from .growing import GrowingOutput, make_growing_output
from .loading import EngineFault, Loaded, Port, engine_fault
from .memory import Arena, lay_out

Key = Tuple[Tuple[int, ...], ...]
# How often shapes are run before their CUDA graph is captured: the first run allocates.
_WARM_RUNS = 2


class Layout(NamedTuple):
    """What one set of input shapes means.

    Attributes:
        profile: The index of the optimization profile.
        shapes: By input.
        sizes: Bytes of each input.
        offsets: Where each input starts in its arena.
        total: Bytes of the inputs' arena.
    """

    profile: int
    shapes: Dict[str, Tuple[int, ...]]
    sizes: List[int]
    offsets: List[int]
    total: int


class Limits(NamedTuple):
    """Bytes of the largest request that the profiles cover."""

    inputs: int
    outputs: int


def make_layout(ports: Sequence[Port], profile: int, key: Key) -> Layout:
    """Return the layout of input shapes that a profile covers."""
    sizes = [port.itemsize * math.prod(shape) for port, shape in zip(ports, key)]  # noqa: B905
    offsets, total = lay_out(sizes)
    shapes = {port.name: shape for port, shape in zip(ports, key)}  # noqa: B905 - not in 3.8
    return Layout(profile, shapes, sizes, offsets, total)


class Lane:
    """An execution context, used by one thread at a time.

    Args:
        loaded: The engine.
        cudart: CUDA.
        context: Of its own.
        promised: The types that requests carry, by name, where they are not the engine's.
        shared: Whether the GPU works on the host's memory.
        cuda_graphs: Whether runs of the same shapes are captured and replayed.

    Raises:
        CudaFault: there is no stream.
    """

    def __init__(
        self,
        loaded: Loaded,
        cudart: Cudart,
        context: Any,
        promised: Dict[str, str],
        *,
        shared: bool,
        cuda_graphs: bool = False,
    ) -> None:
        self._loaded = loaded
        self._cudart = cudart
        self._context = context
        self._shared = shared
        self._graphs = cuda_graphs
        self.graphs_refused = False
        self._casts = [find_cast(promised.get(p.name, p.dtype), p.dtype) for p in loaded.inputs]
        self._promised = promised
        self._dynamic = [port.name for port in loaded.inputs if -1 in port.shape]
        self.key: Optional[Key] = None
        self._profile = -1
        self._runs = 0
        self._graph = 0
        # per input: where it goes, its bytes as promised and as the engine takes them
        self._inputs: List[Tuple[memoryview, int, Any, str]] = []
        # per output: name, promised type, shape, bytes, cast; no bytes where the size is not known
        self._outputs: List[Tuple[str, str, Tuple[int, ...], memoryview, Any]] = []
        self._in_bytes = self._out_bytes = 0
        self._growing: Dict[str, GrowingOutput] = {}
        self._in = Arena(cudart, "the inputs", shared=shared)
        self._out = Arena(cudart, "the outputs", shared=shared)
        self.stream = cudart.stream_create()
        self._execute: Callable[[int], bool] = context.execute_async_v3

    def run(
        self, key: Key, layout: Layout, limits: Limits, tensors: Sequence[Tensor]
    ) -> Dict[str, Tensor]:
        """Return all outputs, as copies.

        Raises:
            BadRequest: the bytes of a tensor are not those of its shape, or out of range.
            CudaFault: the GPU failed.
            EngineFault: TensorRT failed.
        """
        try:
            if key != self.key:
                self._reshape(key, layout, limits)
            for (view, size, cast, name), tensor in zip(self._inputs, tensors):  # noqa: B905
                if cast is None:
                    try:
                        view[:] = tensor.data
                    except (ValueError, TypeError):
                        # a view of another item format, or a size that the shape does not give
                        view[:] = _checked_bytes(name, tensor, size)
                else:
                    view[:] = cast(name, _checked_bytes(name, tensor, size))
            if self._graph:
                self._check(self._cudart.graph_launch(self._graph, self.stream), "cudaGraphLaunch")
            elif self._graphs and self._runs >= _WARM_RUNS:
                self._capture()
            else:
                self._enqueue()
            self._check(self._cudart.synchronize(self.stream), "cudaStreamSynchronize")
        except BadRequest:
            raise
        except BaseException:
            self._reset()
            raise
        self._runs += 1
        if self._growing:
            return self._collect_growing()
        result = {}
        for name, dtype, shape, view, cast in self._outputs:
            data = view.tobytes() if cast is None else cast(view)
            result[name] = Tensor(dtype, shape, data)
        return result

    def output_shapes(self, key: Key, layout: Layout) -> Dict[str, Tuple[int, ...]]:
        """Return the outputs' shapes for input shapes, without running."""
        self.key = None
        return self._set_shapes(key, layout)

    def close(self) -> None:
        """Free everything, also after a failure."""
        first: Optional[CudaFault] = None
        growing = list(self._growing.values())
        self._growing = {}
        self._inputs, self._outputs = [], []
        self._execute = self._context = self._loaded = None  # type: ignore[assignment]
        for free in (
            self._drop_graph,
            lambda: self._cudart.stream_destroy(self.stream),
            self._in.close,
            self._out.close,
            *[output.close for output in growing],
        ):
            try:
                free()
            except CudaFault as error:
                first = first or error
        if first is not None and not first.is_lost:
            raise first

    # -- shapes ----------------------------------------------------------------------------

    def _reshape(self, key: Key, layout: Layout, limits: Limits) -> None:
        self.key = None
        self._drop_graph()
        shapes = self._set_shapes(key, layout)
        context, logger = self._context, self._loaded.logger
        ports = self._loaded.outputs
        fixed = [port for port in ports if -1 not in shapes[port.name]]
        sizes = [port.itemsize * math.prod(shapes[port.name]) for port in fixed]
        offsets, total = lay_out(sizes)
        self._in.reserve(layout.total, limits.inputs)
        self._out.reserve(total, limits.outputs)
        self._inputs = []
        rows = zip(self._loaded.inputs, layout.sizes, layout.offsets, self._casts)  # noqa: B905
        for port, size, offset, cast in rows:
            if not context.set_tensor_address(port.name, self._in.device + offset):
                raise engine_fault("TensorRT refuses the address of `%s`" % port.name, logger)
            view = self._in.view[offset : offset + size]
            self._inputs.append((view, size * (2 if cast else 1), cast and cast[0], port.name))
        self._outputs = []
        for port, size, offset in zip(fixed, sizes, offsets):  # noqa: B905 - not in 3.8
            if not context.set_tensor_address(port.name, self._out.device + offset):
                raise engine_fault("TensorRT refuses the address of `%s`" % port.name, logger)
            promised, cast = self._output_cast(port)
            view = self._out.view[offset : offset + size]
            self._outputs.append((port.name, promised, shapes[port.name], view, cast))
        for port in ports:
            if -1 in shapes[port.name]:
                growing = self._growing.get(port.name)
                if growing is None:
                    growing = make_growing_output(
                        self._loaded.trt, self._cudart, port, self._shared
                    )
                    self._growing[port.name] = growing
                if not context.set_output_allocator(port.name, growing.allocator):
                    raise engine_fault("TensorRT takes no allocator for `%s`" % port.name, logger)
        # one copy for all: what lies between the tensors goes with them
        self._in_bytes = layout.offsets[-1] + layout.sizes[-1] if layout.sizes else 0
        self._out_bytes = offsets[-1] + sizes[-1] if sizes else 0
        self._runs = 0
        # a graph holds no sizes that are known only while it runs
        self._graphs = self._graphs and not self._growing
        self.key = key

    def _set_shapes(self, key: Key, layout: Layout) -> Dict[str, Tuple[int, ...]]:
        context, logger = self._context, self._loaded.logger
        try:
            # an engine without dynamic shapes has no profile to choose
            if layout.profile != self._profile and self._dynamic:
                if not context.set_optimization_profile_async(layout.profile, self.stream):
                    raise engine_fault("TensorRT refuses profile %d" % layout.profile, logger)
                self._cudart.stream_synchronize(self.stream)
                self._profile = layout.profile
            for name in self._dynamic:
                shape = layout.shapes[name]
                if not context.set_input_shape(name, shape):
                    raise engine_fault(
                        "TensorRT refuses the shape %s of `%s`" % (list(shape), name), logger
                    )
            missing = context.infer_shapes()
        except RuntimeError as error:
            raise engine_fault("TensorRT refuses the shapes: %s" % error, logger) from error
        if missing:
            raise engine_fault("TensorRT wants more of %s" % ", ".join(missing), logger)
        return {
            port.name: tuple(context.get_tensor_shape(port.name)) for port in self._loaded.outputs
        }

    def _output_cast(self, port: Port) -> Tuple[str, Any]:
        promised = self._promised.get(port.name, port.dtype)
        cast = find_cast(promised, port.dtype)
        return promised, cast and cast[1]

    # -- running ---------------------------------------------------------------------------

    def _enqueue(self) -> None:
        """Queue the copies and the model's work."""
        stream = self.stream
        if not self._shared and self._in_bytes:
            self._check(
                self._cudart.memcpy_async(
                    self._in.device, self._in.host, self._in_bytes, TO_DEVICE, stream
                ),
                "cudaMemcpyAsync",
            )
        try:
            done = self._execute(stream)
        except RuntimeError as error:
            raise engine_fault("the engine failed: %s" % error, self._loaded.logger) from error
        if not done:
            for growing in self._growing.values():
                problem, growing.problem = growing.problem, None
                if problem is not None:
                    raise problem
            raise engine_fault("the engine failed", self._loaded.logger)
        if not self._shared and self._out_bytes:
            self._check(
                self._cudart.memcpy_async(
                    self._out.host, self._out.device, self._out_bytes, TO_HOST, stream
                ),
                "cudaMemcpyAsync",
            )

    def _capture(self) -> None:
        """Record a run and replay it; where that fails, run without from now on."""
        cudart = self._cudart
        cudart.begin_capture(self.stream)
        recorded = True
        try:
            self._enqueue()
        except (CudaFault, EngineFault) as error:
            if isinstance(error, CudaFault) and error.is_lost:
                raise
            recorded = False
        try:
            # ends the recording even where it was spoilt
            self._graph = cudart.end_capture(self.stream)
        except CudaFault as error:
            if error.is_lost:
                raise
        if self._graph and not recorded:
            self._drop_graph()
        if not self._graph:
            self._graphs, self.graphs_refused = False, True
            self._enqueue()
            return
        self._check(cudart.graph_launch(self._graph, self.stream), "cudaGraphLaunch")

    def _check(self, status: int, function: str) -> None:
        if status:
            self._cudart.fail(status, function, "running the engine")

    def _collect_growing(self) -> Dict[str, Tensor]:
        """Return all outputs where the sizes of some are known only now."""
        known = {
            name: Tensor(dtype, shape, view.tobytes() if cast is None else cast(view))
            for name, dtype, shape, view, cast in self._outputs
        }
        result = {}
        for port in self._loaded.outputs:
            growing = self._growing.get(port.name)
            if growing is None or port.name in known:
                result[port.name] = known[port.name]
                continue
            promised, cast = self._output_cast(port)
            data = growing.read(self.stream)
            if cast is not None:
                data = cast(data)
            result[port.name] = Tensor(promised, growing.shape, data)
        return result

    # -- after failures --------------------------------------------------------------------

    def _drop_graph(self) -> None:
        graph, self._graph = self._graph, 0
        if graph:
            self._cudart.graph_destroy(graph)

    def _reset(self) -> None:
        """Leave nothing in flight that writes to buffers of a later request."""
        self.key = None
        try:
            self._cudart.stream_synchronize(self.stream)
            self._drop_graph()
        except CudaFault:
            pass  # the first failure is the one that is told


def _checked_bytes(name: str, tensor: Tensor, size: int) -> memoryview:
    """Return a tensor's bytes where they are as many as its shape says."""
    view = memoryview(tensor.data).cast("B")
    if len(view) != size:
        raise BadRequest(
            "input `%s` has %d bytes where its shape %s needs %d"
            % (name, len(view), list(tensor.shape), size)
        )
    return view
