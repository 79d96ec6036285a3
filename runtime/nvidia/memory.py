"""Memory that host and GPU exchange tensors through: copied over, or shared where it lies."""

from __future__ import annotations

import ctypes
from typing import List, Sequence, Tuple

from .cudart import Cudart

# What TensorRT asks of a tensor's address.
ALIGNMENT = 256

SHARED, OWN = "shared", "own"


def lay_out(sizes: Sequence[int]) -> Tuple[List[int], int]:
    """Return where each tensor starts in one block, and the block's size, in bytes."""
    offsets, end = [], 0
    for size in sizes:
        offsets.append(end)
        # an address of its own even for a tensor without elements
        end += (max(1, size) + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT
    return offsets, end


class Arena:
    """One block of page-locked host memory and the GPU's view of it, or its copy on the GPU.

    A request's inputs lie in one arena, its outputs in another: one copy moves them all.

    Args:
        cudart: CUDA.
        what: What lies in it, for a message.
        shared: Whether the GPU works on the host's memory; else on a copy in its own.

    Attributes:
        host: The host's address, 0 before the first `reserve`.
        device: The GPU's.
        size: Bytes.
        view: The host's memory.
    """

    __slots__ = ("_cudart", "_what", "device", "host", "shared", "size", "view")

    def __init__(self, cudart: Cudart, what: str, *, shared: bool) -> None:
        self._cudart = cudart
        self._what = what
        self.shared = shared
        self.host = 0
        self.device = 0
        self.size = 0
        self.view = memoryview(b"")

    def reserve(self, size: int, limit: int) -> bool:
        """Make room; return whether the addresses changed.

        Nothing may be using the arena.

        Args:
            size: Bytes needed.
            limit: Bytes that the largest request needs; more is taken only where `size` says so.

        Raises:
            CudaFault: there is not enough memory; the arena is then empty.
        """
        if size <= self.size:
            return False
        room = max(size, min(2 * self.size, limit))
        self.close()
        try:
            self.host = self._cudart.host_alloc(room, self._what, mapped=self.shared)
            if self.shared:
                self.device = self._cudart.device_pointer(self.host)
            else:
                self.device = self._cudart.malloc(room, self._what)
        except BaseException:
            self.close()
            raise
        self.size = room
        self.view = memoryview((ctypes.c_ubyte * room).from_address(self.host)).cast("B")
        return True

    def close(self) -> None:
        """Give the memory back."""
        host, device = self.host, 0 if self.shared else self.device
        self.host = self.device = self.size = 0
        self.view = memoryview(b"")
        try:
            if device:
                self._cudart.free(device)
        finally:
            if host:
                self._cudart.host_free(host)
