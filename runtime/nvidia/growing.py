"""Outputs whose size depends on the data: memory that grows while the engine runs."""

from __future__ import annotations

import math
from typing import Any, Optional, Tuple

from .cudaerrors import CudaFault
from .cudart import TO_HOST, Cudart
from .loading import Port
from .memory import ALIGNMENT, Arena


class GrowingOutput:
    """Memory for an output whose size the engine tells only while it runs."""

    def __init__(self, cudart: Cudart, port: Port, *, shared: bool) -> None:
        self._cudart = cudart
        self._port = port
        self._arena = Arena(cudart, "the output `%s`" % port.name, shared=shared)
        self.allocator: Any = None
        self.shape: Tuple[int, ...] = ()
        self.problem: Optional[CudaFault] = None

    def reallocate(self, size: int) -> int:
        """Return an address with room for `size` bytes; 0 where there is none."""
        try:
            self._arena.reserve(max(size, ALIGNMENT), size)
        except CudaFault as error:
            # an exception cannot pass through TensorRT: 0 makes it fail, and the reason waits here
            self.problem = error
            return 0
        return self._arena.device

    def read(self, stream: int) -> bytes:
        """Return the output's bytes, copied from the GPU where it has memory of its own."""
        size = self._port.itemsize * math.prod(self.shape)
        arena, cudart = self._arena, self._cudart
        if not arena.shared and size:
            status = cudart.memcpy_async(arena.host, arena.device, size, TO_HOST, stream)
            if status:
                cudart.fail(status, "cudaMemcpyAsync", "reading `%s`" % self._port.name)
            cudart.stream_synchronize(stream)
        return arena.view[:size].tobytes()

    def close(self) -> None:
        """Free the memory."""
        self.allocator = None
        self._arena.close()


def make_growing_output(trt: Any, cudart: Cudart, port: Port, shared: bool) -> GrowingOutput:
    """Return memory for an output of unknown size, with the allocator that TensorRT asks."""
    output = GrowingOutput(cudart, port, shared=shared)

    class Allocator(trt.IOutputAllocator):  # type: ignore[misc]
        """TensorRT's view of it; releases before 10 call the first, later ones the second."""

        def __init__(self) -> None:
            trt.IOutputAllocator.__init__(self)

        def reallocate_output(self, tensor: str, memory: int, size: int, alignment: int) -> int:
            """Return where the output goes."""
            return output.reallocate(size)

        def reallocate_output_async(
            self, tensor: str, memory: int, size: int, alignment: int, stream: int
        ) -> int:
            """Return where the output goes."""
            return output.reallocate(size)

        def notify_shape(self, tensor: str, shape: Any) -> None:
            """Take the output's shape."""
            output.shape = tuple(shape)

    output.allocator = Allocator()
    return output
