"""Integers in the width that an engine takes, without a Python object for each."""

from __future__ import annotations

from array import array
from typing import Any, Callable, Dict, Optional, Sequence, Tuple

from ..errors import BadRequest, ModelFault
from ..signature import Signature
from .loading import Port

# A byte with the sign bit clear; what is left after these are deleted is negative.
_POSITIVE = bytes(range(128))


def narrow_int64(name: str, data: Any) -> bytes:
    """Return int64 elements as int32, as TensorRT 8 takes them.

    Args:
        name: Of the input, for the message.
        data: Bytes-like, little-endian.

    Raises:
        BadRequest: an element does not fit.
    """
    words = memoryview(data).cast("B").cast("i")
    low, high = words[::2].tobytes(), words[1::2].tobytes()
    if not high.strip(b"\0") and not low[3::4].translate(None, _POSITIVE):
        return low  # none is negative or past 31 bits: the usual case, in a few copies
    try:
        return array("i", memoryview(data).cast("B").cast("q")).tobytes()
    except OverflowError:
        raise BadRequest(
            "input `%s` holds a number out of the range of int32, which the engine computes in"
            % name
        ) from None


def widen_int32(data: Any) -> bytes:
    """Return int32 elements as int64."""
    view = memoryview(data).cast("B")
    low = view.tobytes()
    if low[3::4].translate(None, _POSITIVE):
        return array("q", view.cast("i")).tobytes()
    wide = array("i", bytes(2 * len(low)))
    wide[::2] = array("i", low)
    return wide.tobytes()


def double_to_single(name: str, data: Any) -> bytes:
    """Return float64 elements as float32; what is too large becomes an infinity."""
    return array("f", memoryview(data).cast("B").cast("d")).tobytes()


def single_to_double(data: Any) -> bytes:
    """Return float32 elements as float64."""
    return array("d", memoryview(data).cast("B").cast("f")).tobytes()


# (as the model promises, as the engine has it) -> to the engine, from the engine
CASTS: Dict[Tuple[str, str], Tuple[Callable[[str, Any], bytes], Callable[[Any], bytes]]] = {
    ("int64", "int32"): (narrow_int64, widen_int32),
    ("float64", "float32"): (double_to_single, single_to_double),
}


def find_cast(
    promised: str, engine: str
) -> Optional[Tuple[Callable[[str, Any], bytes], Callable[[Any], bytes]]]:
    """Return the functions between two types; None where there are none."""
    return CASTS.get((promised, engine))


def promised_types(
    signature: Optional[Signature], inputs: Sequence[Port], outputs: Sequence[Port]
) -> Dict[str, str]:
    """Return the type of each tensor as requests carry it.

    Raises:
        ModelFault: the engine has another one, and nothing converts it.
    """
    promised = {}
    specs = {**signature.inputs, **signature.outputs} if signature is not None else {}
    for port in (*inputs, *outputs):
        spec = specs.get(port.name)
        ours = spec.dtype if spec is not None else port.dtype
        if ours != port.dtype and find_cast(ours, port.dtype) is None:
            raise ModelFault(
                "`%s` is %s in the model's signature and %s in the engine"
                % (port.name, ours, port.dtype),
                hint="build the engine again",
            )
        promised[port.name] = ours
    return promised
