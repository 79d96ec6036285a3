"""Keeps samples that are costly to make again on disk, in a file that nobody else sees."""

from __future__ import annotations

import io
import os
import tempfile
import weakref
from functools import partial
from typing import TYPE_CHECKING, Any

from packager.errors import InputOutputError
from packager.model import as_saved

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Sample = dict[str, NDArray[Any]]


class Spool:
    """An unnamed temporary file of samples; it is gone with the last loader that reads it."""

    def __init__(self) -> None:
        self._descriptor, path = tempfile.mkstemp(prefix="edgepack-samples-")
        os.unlink(path)  # noqa: PTH108 - a descriptor's file
        weakref.finalize(self, os.close, self._descriptor)
        self._end = 0

    def add(self, sample: Sample) -> Callable[[], Sample]:
        """Write a sample and return what reads it back.

        Raises:
            InputOutputError: the disk is full.
        """
        import numpy as np

        packed = io.BytesIO()
        for array in sample.values():
            np.lib.format.write_array(packed, np.ascontiguousarray(array), allow_pickle=False)
        content = packed.getbuffer()
        start, length = self._end, len(content)
        try:
            while content:
                written = os.pwrite(self._descriptor, content, self._end)
                self._end += written
                content = content[written:]
        except OSError as fault:
            raise InputOutputError(
                f"the samples cannot be kept in `{tempfile.gettempdir()}`: {fault.strerror}",
                hint="point `TMPDIR` to a larger disk",
            ) from fault
        return partial(self._read, tuple(sample), start, length)

    def _read(self, names: tuple[str, ...], start: int, length: int) -> Sample:
        import numpy as np

        content = bytearray()
        while len(content) < length:
            part = os.pread(self._descriptor, length - len(content), start + len(content))
            if not part:
                raise InputOutputError("the spooled samples were cut short")
            content += part
        packed = io.BytesIO(content)
        read = np.lib.format.read_array
        return {name: as_saved(read(packed, allow_pickle=False)) for name in names}
