"""An engine of TensorRT or TensorRT-RTX behind the same calls as every other engine."""

from __future__ import annotations

import statistics
import threading
import time
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from ..errors import BadRequest, DeviceError, ModelFault
from ..signature import Signature
from ..tensor import Tensor
from .casts import promised_types
from .cudaerrors import CudaFault
from .cudart import Cudart
from .keeping import Keeper
from .lane import Key, Lane, Layout, Limits, make_layout
from .loading import Contexts, EngineFault, Port, load
from .memory import OWN, SHARED, lay_out
from .profiles import check_profiles, choose_profile, largest, profiles_of, read_profiles
from .vendor import Vendor

# Sets of shapes that are remembered; a client could otherwise fill the memory with them.
MAX_LAYOUTS = 512
# Contexts beyond the workers' own that each keep the CUDA graph of one set of shapes.
KEPT_GRAPHS = 4
# Timing of the two kinds of memory: blocks of each in turn, so that both see the same clocks.
_BLOCKS, _BLOCK_RUNS, _BLOCK_S = 3, 5, 0.1


class TensorRTEngine:
    """A loaded engine; `run` may be called from several threads at once.

    Args:
        vendor: The installed TensorRT.
        cudart: CUDA's runtime library.
        plan: The bytes of the engine's file.
        signature: What the model promises; its types win over the engine's, which is int32 where
            TensorRT 8 has no int64. None, and names that it lacks: as the engine has them.
        profiles: `manifest["tensorrt"]["profiles"]`; empty for whatever the engine has.
        precision: The artifact's, such as `int8-static`.
        workers: Execution contexts, and so requests that run at the same time.
        memory: `shared`, `own`, or `auto`: both are timed and the faster one is taken.
        cuda_graphs: Whether runs of the same shapes are captured and replayed.
        runtime_cache: Where TensorRT-RTX keeps the kernels that it compiled; None for nowhere.
        host_code_allowed: For version-compatible engines of a verified bundle.

    Attributes:
        device: The GPU's name.
        memory: `{"memory": "shared"}`; with `auto` also `shared_us`, `own_us`, the medians.
        interface: The names of the inputs and of the outputs.
        notes: What the user should know, one sentence each.

    Raises:
        CudaFault: no driver, no GPU, or not enough memory.
        EngineFault: TensorRT refuses the engine.
        ModelFault: the engine is not the one that the bundle describes.
    """

    def __init__(
        self,
        vendor: Vendor,
        cudart: Cudart,
        plan: Any,
        signature: Optional[Signature],
        profiles: Sequence[Mapping[str, Mapping[str, Sequence[int]]]],
        *,
        precision: str,
        workers: int = 1,
        memory: str = "auto",
        cuda_graphs: bool = False,
        runtime_cache: Optional[str] = None,
        host_code_allowed: bool = False,
    ) -> None:
        self.name = vendor.module
        self.version = vendor.version
        self.provider = vendor.name
        self.precision = precision
        cudart.device_count()  # says what is missing in plainer words than TensorRT
        self.device = cudart.device_name()
        self._cudart = cudart
        loaded = load(vendor, plan, host_code_allowed=host_code_allowed)
        if signature is not None:
            # answers come in the model's order
            places = {name: place for place, name in enumerate(signature.outputs)}
            ordered = sorted(loaded.outputs, key=lambda port: places.get(port.name, len(places)))
            loaded = loaded._replace(outputs=tuple(ordered))
        self._loaded = loaded
        names = tuple(port.name for port in loaded.inputs)
        self.interface = (names, tuple(port.name for port in loaded.outputs))
        self._promised = promised_types(signature, loaded.inputs, loaded.outputs)
        self._ports = loaded.inputs
        self._wanted = [(name, self._promised[name]) for name in names]
        self._profiles = profiles_of(loaded.engine, names)
        check_profiles(read_profiles(profiles), self._profiles)
        self._contexts = Contexts(loaded, runtime_cache, cuda_graphs=cuda_graphs)
        self._graphs = cuda_graphs and not self._contexts.captures_graphs
        self._layouts: Dict[Key, Layout] = {}
        self._limits = Limits(0, 0)
        self._lost: Optional[CudaFault] = None
        # Guards everything below; held for a few list operations, never across a request.
        self._free = threading.Condition()
        self._idle: List[Lane] = []
        self._lanes: List[Lane] = []
        self._active = 0
        self._closed = False
        self._paused = False
        self._keeper: Optional[Keeper] = None
        try:
            self.memory = self._choose_memory(memory)
            self._make_workers(workers)
            if "own_us" in self.memory:
                self._contexts.save()  # the timing compiled what most requests need
        except BaseException:
            self._release()
            raise
        self.threads = len(self._lanes)
        if self._contexts.keeps_kernels:
            self._keeper = Keeper(self.save_runtime_cache)
            self._layouts.clear()  # it is told when shapes are admitted: with their first run
        self._most_lanes = self.threads + (KEPT_GRAPHS if self._graphs else 0)

    @property
    def notes(self) -> List[str]:
        """Return what the user should know."""
        notes = list(self._contexts.notes)
        if any(lane.graphs_refused for lane in self._lanes):
            notes.append("this engine cannot be captured as a CUDA graph: it runs without")
        return notes

    def run(
        self, feeds: Mapping[str, Tensor], outputs: Optional[Sequence[str]] = None
    ) -> Dict[str, Tensor]:
        """Return the outputs by name; each is a copy that stays valid.

        Args:
            feeds: A tensor for every input.
            outputs: The names wanted, None for all in the signature's order, or the engine's.

        Raises:
            BadRequest: an input is missing, unknown, of another type, or of a shape that no
                profile covers; or an output is unknown.
            CudaFault: the GPU failed.
            EngineFault: TensorRT failed.
        """
        tensors = []
        shapes = []
        for name, dtype in self._wanted:
            tensor = feeds.get(name)
            if tensor is None:
                raise BadRequest("missing input `%s`" % name)
            if tensor.dtype != dtype:
                raise BadRequest(
                    "input `%s` is %s where the model takes %s" % (name, tensor.dtype, dtype)
                )
            tensors.append(tensor)
            shapes.append(tuple(tensor.shape))
        if len(feeds) != len(tensors):
            extra = next(name for name in feeds if name not in self.interface[0])
            raise BadRequest("the model has no input `%s`" % extra)
        if outputs is not None:
            for name in outputs:
                if name not in self.interface[1]:
                    raise BadRequest("the model has no output `%s`" % name)
        key = tuple(shapes)
        layout = self._layouts.get(key)
        if layout is None:
            layout = self._admit(key)
        lane = self._take(key)
        try:
            result = lane.run(key, layout, self._limits, tensors)
        except CudaFault as error:
            if error.is_lost:
                self._lost = error
            raise
        finally:
            with self._free:
                self._idle.append(lane)
                self._active -= 1
                if self._closed or self._paused or self._lost is not None:
                    self._free.notify_all()
                else:
                    self._free.notify()
        if outputs is None:
            return result
        return {name: result[name] for name in outputs}

    def close(self) -> None:
        """Wait for the calls under way and free everything; a later `run` is refused."""
        if self._keeper is not None:
            self._keeper.close()
        with self._free:
            self._closed = True
            self._free.notify_all()
            while self._active:
                self._free.wait()
        self._release()

    def save_runtime_cache(self) -> None:
        """Write the kernels that TensorRT-RTX compiled, where they are kept.

        Calls wait for the moment in which they are read: nobody says that both may be at once.
        """
        with self._free:
            if self._paused or self._closed or self._lost is not None:
                return
            self._paused = True
            try:
                while self._active:
                    self._free.wait()
                kernels = self._contexts.kernels()
            finally:
                self._paused = False
                self._free.notify_all()
        self._contexts.keep(kernels)

    # -- shapes ----------------------------------------------------------------------------

    def _admit(self, key: Key) -> Layout:
        """Return the layout of shapes not seen before, after the check against the profiles."""
        shapes = {port.name: shape for port, shape in zip(self._ports, key)}  # noqa: B905
        profile = choose_profile(self._profiles, shapes)
        layout = make_layout(self._ports, profile, key)
        if len(self._layouts) >= MAX_LAYOUTS:
            self._layouts.clear()
        self._layouts[key] = layout
        if self._keeper is not None:
            self._keeper.note()  # kernels are compiled for new shapes, some in the background
        return layout

    def _key(self, shapes: Mapping[str, Tuple[int, ...]]) -> Key:
        return tuple(shapes[port.name] for port in self._ports)

    def _find_limits(self, lane: Lane) -> Limits:
        """Return the sizes of the largest request, so that buffers need not grow past it."""
        inputs = outputs = 0
        for profile in self._profiles:
            key = self._key(largest(profile))
            layout = self._admit(key)
            shapes = lane.output_shapes(key, layout)
            sizes = [
                port.itemsize * _volume(shapes[port.name])
                for port in self._loaded.outputs
                if -1 not in shapes[port.name]
            ]
            inputs = max(inputs, layout.total)
            outputs = max(outputs, lay_out(sizes)[1])
        return Limits(inputs, outputs)

    # -- lanes -----------------------------------------------------------------------------

    def _take(self, key: Key) -> Lane:
        """Return an idle lane, one of the same shapes where there is one."""
        with self._free:
            while True:
                if self._closed:
                    raise ModelFault("the engine is closed")
                if self._lost is not None:
                    raise ModelFault(
                        "the GPU takes no more work from this process since %s" % self._lost.name,
                        hint="restart the server",
                    )
                room = self._active < self.threads and not self._paused
                if room and (self._idle or self._can_grow()):
                    break
                self._free.wait()
            self._active += 1
            for index in range(len(self._idle) - 1, -1, -1):
                if self._idle[index].key == key:
                    return self._idle.pop(index)
            try:
                if self._can_grow():
                    return self._grow()
            except DeviceError:
                # what there is must do
                self._most_lanes = len(self._lanes)
                if not self._idle:
                    self._active -= 1
                    raise
            return self._idle.pop(0)

    def _can_grow(self) -> bool:
        return len(self._lanes) < self._most_lanes

    def _grow(self) -> Lane:
        lane = self._make_lane(self._contexts.create(), shared=self._shared)
        self._lanes.append(lane)
        return lane

    def _make_lane(self, context: Any, *, shared: bool, graphs: bool = True) -> Lane:
        return Lane(
            self._loaded,
            self._cudart,
            context,
            self._promised,
            shared=shared,
            cuda_graphs=graphs and self._graphs,
        )

    def _make_workers(self, workers: int) -> None:
        """Make the lanes; fewer than asked for where TensorRT or the memory allows no more."""
        opt = self._key({name: extent.opt for name, extent in self._profiles[0].items()})
        for number in range(max(1, workers)):
            lane: Optional[Lane] = None
            try:
                lane = self._make_lane(self._contexts.create(), shared=self._shared)
                if number == 0:
                    self._limits = self._find_limits(lane)
                # the first lane holds this profile, which TensorRT 8 may then give to no other
                lane.output_shapes(opt, self._admit(opt))
            except (CudaFault, EngineFault) as error:
                if lane is not None:
                    lane.close()
                if number == 0:
                    raise
                self._contexts.notes.append(
                    "only %d of %d workers fit: %s" % (number, workers, error.message)
                )
                return
            self._lanes.append(lane)
            self._idle.append(lane)

    def _release(self) -> None:
        """Free everything, as far as the GPU still lets it."""
        lanes, self._lanes, self._idle = self._lanes, [], []
        try:
            for lane in lanes:
                lane.close()
        finally:
            self._contexts.close()
            self._loaded = None  # type: ignore[assignment]

    # -- memory ----------------------------------------------------------------------------

    def _choose_memory(self, memory: str) -> Dict[str, Any]:
        """Return which kind of memory tensors go through, timed on this device where asked."""
        if memory not in (SHARED, OWN, "auto"):
            raise ModelFault("there is no kind of memory `%s`" % memory)
        chosen: Dict[str, Any] = {"memory": memory}
        if not self._cudart.can_map():
            chosen = {"memory": OWN}
        elif memory == "auto":
            try:
                chosen = self._time_memory()
            except CudaFault as error:
                if error.is_lost:
                    raise
                # drivers claim what they cannot do, and memory may not suffice for both kinds
                self._contexts.notes.append("memory could not be timed: %s" % error.message)
                chosen = {"memory": OWN}
        self._shared = chosen["memory"] == SHARED
        return chosen

    def _time_memory(self) -> Dict[str, Any]:
        """Time requests of the tuned shapes through both kinds of memory."""
        key = self._key({name: extent.opt for name, extent in self._profiles[0].items()})
        layout = self._admit(key)
        tensors = [
            Tensor(dtype, shape, bytes(_bytes_of(port, dtype, shape)))
            for port, (_, dtype), shape in zip(self._ports, self._wanted, key)  # noqa: B905
        ]
        context = self._contexts.create()
        lanes: Dict[str, Lane] = {}
        taken: Dict[str, List[float]] = {SHARED: [], OWN: []}
        try:
            for kind in (OWN, SHARED):
                lanes[kind] = self._make_lane(context, shared=kind == SHARED, graphs=False)
            for _ in range(_BLOCKS):
                for kind, lane in lanes.items():
                    lane.key = None  # the other one set its own addresses on the same context
                    lane.run(key, layout, self._limits, tensors)
                    until = time.perf_counter() + _BLOCK_S
                    for _ in range(_BLOCK_RUNS):
                        began = time.perf_counter()
                        lane.run(key, layout, self._limits, tensors)
                        ended = time.perf_counter()
                        taken[kind].append(ended - began)
                        if ended > until:
                            break
        finally:
            for lane in lanes.values():
                lane.close()
        medians = {kind: round(statistics.median(times) * 1e6, 1) for kind, times in taken.items()}
        best = min(medians, key=lambda kind: medians[kind])
        return {"memory": best, "shared_us": medians[SHARED], "own_us": medians[OWN]}


def _volume(shape: Sequence[int]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def _bytes_of(port: Port, dtype: str, shape: Sequence[int]) -> int:
    """Return the bytes that a request carries for this shape."""
    return _volume(shape) * port.itemsize * (1 if dtype == port.dtype else 2)
