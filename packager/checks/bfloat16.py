"""Lets ONNX Runtime's Python sessions take and give bfloat16, which their `run` does not.

numpy has no such type; ml_dtypes registers one. Given such an array, 1.32's `InferenceSession.run`
says that its type cannot be converted, and of a bfloat16 output that numpy has none: the values
have to pass through `OrtValue`, into it as uint16 and out of it by address.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

_ONNX_TYPE: Final = "tensor(bfloat16)"


def with_bfloat16(session: Any) -> Any:
    """Return a session whose `run` knows bfloat16; the same one where it has no use for it."""
    values = (*session.get_inputs(), *session.get_outputs())
    return BFloat16Session(session) if any(v.type == _ONNX_TYPE for v in values) else session


class BFloat16Session:
    """An `onnxruntime.InferenceSession` with bfloat16 among its inputs or outputs.

    Args:
        session: The session itself.
    """

    def __init__(self, session: Any) -> None:
        self._session = session
        self._types = {output.name: output.type for output in session.get_outputs()}

    def get_inputs(self) -> Any:
        """Return the session's inputs."""
        return self._session.get_inputs()

    def get_outputs(self) -> Any:
        """Return the session's outputs."""
        return self._session.get_outputs()

    def run(
        self,
        names: Sequence[str] | None,
        feeds: Mapping[str, NDArray[Any]],
        options: Any = None,
    ) -> list[Any]:
        """Run as `InferenceSession.run` does; bfloat16 arrays are of ml_dtypes' type.

        Raises:
            RuntimeError: a string input where a bfloat16 output is asked for: of strings no
                `OrtValue` can be made, and what makes them itself gives no bfloat16.
        """
        import onnxruntime

        wanted = list(names) if names else list(self._types)
        given = {name: _to_value(array) for name, array in feeds.items()}
        if all(self._types.get(name) != _ONNX_TYPE for name in wanted):
            return list(self._session.run(wanted, given, options))
        make = onnxruntime.OrtValue.ortvalue_from_numpy
        values = {
            name: value if isinstance(value, onnxruntime.OrtValue) else make(value)
            for name, value in given.items()
        }
        return [_to_array(v) for v in self._session.run_with_ort_values(wanted, values, options)]


def _to_value(array: NDArray[Any]) -> Any:
    """Return an `OrtValue` of a bfloat16 array, which it keeps; other arrays as they are."""
    if array.dtype.name != "bfloat16":
        return array
    import numpy as np
    import onnx
    import onnxruntime

    # A scalar stays one: `ascontiguousarray` would give it an axis.
    bits = np.asarray(array, order="C").view(np.uint16)
    return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, onnx.TensorProto.BFLOAT16)


def _to_array(value: Any) -> Any:
    if value.data_type() != _ONNX_TYPE:
        return value.numpy()
    import ml_dtypes
    import numpy as np

    array = np.empty(value.shape(), ml_dtypes.bfloat16)
    if array.size:
        ctypes.memmove(array.ctypes.data, value.data_ptr(), array.nbytes)
    return array
