"""JSON as the server reads and writes it: strict in, tensors out without a detour over objects."""

from __future__ import annotations

import json
import re
from typing import Any, Callable, Dict, List, NoReturn, Sequence, Tuple, Union

from .dtypes import unpack
from .errors import BadRequest
from .tensor import Tensor

# The shortest %-format that brings back every value of a type exactly.
_FORMATS = {
    "float32": "%.9g",
    "float16": "%.5g",
    "bfloat16": "%.4g",
    "float64": "%r",
    "bool": "%s",
    "string": "%s",
}
_MAX_LAYOUT = 4096  # elements formatted by one operation
_MAX_LAYOUTS = 64
_NEGATIVE_ZERO = re.compile(r"(?<![0-9e])-0(?=[,\]]|$)")
_NON_FINITE = re.compile("-?(?:nan|inf)")
_BLANKS = " \t\n\r"

_encode_string = json.encoder.encode_basestring_ascii


def _refuse_constant(name: str) -> NoReturn:
    raise BadRequest("`%s` is not JSON; numbers have to be finite" % name)


def _unique(pairs: List[Tuple[str, Any]]) -> Dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise BadRequest("the key `%s` came twice in one object" % clip(twice))
    return found


# Without the decoder's own look for blanks at both ends, which costs as much as the parsing.
_decoder: Any = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse_constant)
_scan: Callable[[str, int], Tuple[Any, int]] = _decoder.scan_once


def clip(text: str) -> str:
    """Return text from a request, short enough for a message."""
    return text if len(text) <= 80 else text[:77] + "..."


def loads(body: Union[bytes, bytearray, memoryview]) -> Any:
    """Return what a JSON text says.

    Raises:
        BadRequest: not JSON in UTF-8, a key twice in one object, `NaN` or `Infinity`, numbers too
            long or lists too deep to read.
    """
    try:
        text = str(body, "utf-8")
        start = 0 if text[:1] == "{" else len(text) - len(text.lstrip(_BLANKS))
        value, end = _scan(text, start)
    except UnicodeDecodeError:
        raise BadRequest("the body is not UTF-8") from None
    except StopIteration as error:
        if not len(body):
            raise BadRequest("the body is empty; it has to be JSON") from None
        raise BadRequest("the body is not JSON at character %s" % error.value) from None
    except json.JSONDecodeError as error:
        raise BadRequest("the body is not JSON at character %d" % error.pos) from None
    except RecursionError:
        raise BadRequest("the body is nested too deep") from None
    except ValueError:
        # CPython reads integers up to 4300 digits: longer ones would take quadratic time
        raise BadRequest("the body holds a number that is too long") from None
    if end != len(text) and text[end:].strip(_BLANKS):
        raise BadRequest("the body has something after its JSON, at character %d" % end)
    return value


def dumps(value: object) -> str:
    """Return compact ASCII JSON."""
    return json.dumps(value, separators=(",", ":"))


class Writer:
    """Writes tensors as JSON lists, remembering the layout of shapes that come again."""

    def __init__(self) -> None:
        self._layouts: Dict[Tuple[object, ...], str] = {}

    def flat(self, tensor: Tensor) -> Tuple[str, bool]:
        """Return `[1,2,3]`, whatever the shape, and whether all numbers in it are exact."""
        items = _items(tensor)
        return self._finish(tensor, self._text(items, (len(items),), tensor.dtype))

    def nested(self, tensor: Tensor) -> Tuple[str, bool]:
        """Return lists nested by the shape, and whether all numbers in them are exact."""
        return self._finish(tensor, self._text(_items(tensor), tensor.shape, tensor.dtype))

    def _text(self, items: Sequence[Any], shape: Sequence[int], dtype: str) -> str:
        count = len(items)
        if count <= _MAX_LAYOUT:
            return self._layout(shape, dtype) % tuple(items)
        if len(shape) == 1:
            step = _MAX_LAYOUT
            pieces = [
                self._text(items[at : at + step], (min(step, count - at),), dtype)[1:-1]
                for at in range(0, count, step)
            ]
        else:
            step = count // shape[0]
            pieces = [
                self._text(items[at : at + step], shape[1:], dtype) for at in range(0, count, step)
            ]
        return "[" + ",".join(pieces) + "]"

    def _layout(self, shape: Sequence[int], dtype: str) -> str:
        key = (dtype, *shape)
        layout = self._layouts.get(key)
        if layout is None:
            layout = _FORMATS.get(dtype, "%d")
            for size in reversed(shape):
                layout = "[" + ",".join([layout] * size) + "]"
            if len(self._layouts) >= _MAX_LAYOUTS:
                self._layouts.clear()
            self._layouts[key] = layout
        return layout

    def _finish(self, tensor: Tensor, text: str) -> Tuple[str, bool]:
        if tensor.dtype in _FLOATS:
            # most JSON parsers read -0 as an integer, which has no negative zero
            if "-0," in text or "-0]" in text or text == "-0":
                text = _NEGATIVE_ZERO.sub("-0.0", text)
            # "n" is in nan and inf, and in no number
            if "n" in text:
                return _NON_FINITE.sub("null", text), False
        return text, True


_FLOATS = frozenset(("float16", "bfloat16", "float32", "float64"))


def _items(tensor: Tensor) -> Sequence[Any]:
    """Return the elements as the formats take them."""
    if tensor.dtype == "float32":
        return memoryview(tensor.data).cast("B").cast("f").tolist()
    if tensor.dtype == "bool":
        return ["true" if item else "false" for item in bytes(tensor.data)]
    if tensor.dtype == "string":
        return [_encode_string(item.decode("utf-8", "replace")) for item in tensor.data]
    return unpack(tensor.dtype, tensor.data)
