"""A model's inputs and outputs as promised, and the check of a request against them."""

from __future__ import annotations

import math
from typing import Any, Dict, Iterable, List, Mapping, NamedTuple, Optional, Sequence, Tuple, Union

from .dtypes import BY_NAME, closest
from .errors import BadRequest, ModelFault
from .tensor import Tensor


class Dimension(NamedTuple):
    """A size that a request chooses.

    Attributes:
        name: Equal names mean equal sizes; None where the size depends on the data.
        min: The smallest size.
        max: The largest size, None where there is no limit.
        opt: The size that the artifact was tuned for.
    """

    name: Optional[str]
    min: int
    max: Optional[int]
    opt: Optional[int]


class TensorSpec(NamedTuple):
    """One input or output: `dims` holds integers and `Dimension`s."""

    name: str
    dtype: str
    dims: Tuple[Union[int, Dimension], ...]


class Signature:
    """The inputs and outputs by name, in the model's order.

    Args:
        wire: `manifest["model"]["signature"]`.

    Raises:
        ModelFault: the manifest's signature is not of the documented form.
    """

    def __init__(self, wire: Mapping[str, Any]) -> None:
        try:
            self.inputs = {spec.name: spec for spec in map(_read_spec, wire["inputs"])}
            self.outputs = {spec.name: spec for spec in map(_read_spec, wire["outputs"])}
        except (KeyError, TypeError) as error:
            raise ModelFault("the manifest's signature cannot be read: %s" % error) from error
        self._input_names = frozenset(self.inputs)
        names = [dim.name for spec in self.inputs.values() for dim in _open(spec) if dim.name]
        self._shared_names = frozenset(name for name in names if names.count(name) > 1)

    def check(self, feeds: Mapping[str, Tensor]) -> None:
        """Check a whole request: names, types, ranks, sizes, equal named dimensions.

        Raises:
            BadRequest: says which input is wrong and what would be right.
        """
        if feeds.keys() != self._input_names:
            raise BadRequest(*self._wrong_names(feeds))
        for name, spec in self.inputs.items():
            tensor = feeds[name]
            if tensor.dtype != spec.dtype:
                raise BadRequest(
                    "input `%s` is %s where the model takes %s" % (name, tensor.dtype, spec.dtype)
                )
            self.check_shape(name, tensor.shape)
        if self._shared_names:
            self._check_shared({name: tensor.shape for name, tensor in feeds.items()})

    def check_dtype(self, name: str, dtype: str) -> None:
        """Check the type that a request declares for one input.

        Raises:
            BadRequest: no such input, or another type.
        """
        spec = self._input(name)
        if dtype != spec.dtype:
            said, taken = BY_NAME[dtype].protocol, BY_NAME[spec.dtype].protocol
            raise BadRequest("input `%s` is %s where the model takes %s" % (name, said, taken))

    def wrong_datatype(self, name: str, datatype: object) -> BadRequest:
        """Return what is wrong with a `datatype` that the protocol does not have."""
        spec = self._input(name)
        known = BY_NAME[spec.dtype].protocol
        if type(datatype) is str and datatype:
            message = "`%s` of input `%s` is no `datatype`" % (datatype[:40], name)
            return BadRequest(message, hint="it is `%s`" % known)
        return BadRequest("input `%s` needs a `datatype`, here `%s`" % (name, known))

    def check_shape(self, name: str, shape: Sequence[object]) -> None:
        """Check one input's shape, before its data is decoded or takes memory.

        Args:
            name: The input.
            shape: As it came over the wire: nothing about its elements is taken for granted.

        Raises:
            BadRequest: no such input, another rank, or a size that the model does not take.
        """
        dims = self._input(name).dims
        if len(shape) != len(dims):
            raise BadRequest(
                "input `%s` has %d dimensions where the model takes %d, %s"
                % (name, len(shape), len(dims), describe_dims(dims))
            )
        for axis, dim in enumerate(dims):
            size = shape[axis]
            if type(size) is not int:
                raise BadRequest("input `%s` has a shape that is not of integers" % name)
            if isinstance(dim, int):
                if size != dim:
                    raise BadRequest(_wrong_size(name, axis, size, str(dim), dims))
            elif size < dim.min or (dim.max is not None and size > dim.max):
                raise BadRequest(_wrong_size(name, axis, size, _range_text(dim), dims))

    def check_outputs(self, names: Iterable[str]) -> None:
        """Check the names of the outputs that a request asks for.

        Raises:
            BadRequest: the model has no such output.
        """
        for name in names:
            if name not in self.outputs:
                raise BadRequest(
                    "the model has no output `%s`" % name, hint=_hint(name, self.outputs)
                )

    def max_bytes(self) -> Optional[int]:
        """Return the most bytes a request's tensors can have, None where nothing bounds them."""
        total = 0
        for spec in self.inputs.values():
            itemsize = BY_NAME[spec.dtype].itemsize
            sizes = [dim if isinstance(dim, int) else dim.max for dim in spec.dims]
            known = [size for size in sizes if size is not None]
            if not itemsize or len(known) != len(sizes):
                return None
            total += itemsize * math.prod(known)
        return total

    def _input(self, name: str) -> TensorSpec:
        spec = self.inputs.get(name)
        if spec is None:
            raise BadRequest("the model has no input `%s`" % name, hint=_hint(name, self.inputs))
        return spec

    def _wrong_names(self, feeds: Mapping[str, Tensor]) -> Tuple[str, int, Optional[str]]:
        for name in feeds:
            if name not in self.inputs:
                return "the model has no input `%s`" % name, 400, _hint(name, self.inputs)
        missing = ["`%s`" % name for name in self.inputs if name not in feeds]
        return "missing input %s" % ", ".join(missing), 400, None

    def _check_shared(self, shapes: Dict[str, Tuple[int, ...]]) -> None:
        seen: Dict[str, Tuple[int, str]] = {}
        for name, spec in self.inputs.items():
            for size, dim in zip(shapes[name], spec.dims):  # noqa: B905 - not in CPython 3.8
                if isinstance(dim, int) or dim.name not in self._shared_names:
                    continue
                first = seen.setdefault(str(dim.name), (size, name))
                if first[0] != size:
                    raise BadRequest(
                        "dimension `%s` is %d in input `%s` and %d in input `%s`"
                        % (dim.name, first[0], first[1], size, name)
                    )


def describe_dims(dims: Sequence[Union[int, Dimension]]) -> str:
    """Return `[batch, 3, 224, 224]`."""
    return "[%s]" % ", ".join(
        str(dim) if isinstance(dim, int) else (dim.name or "?") for dim in dims
    )


def _read_spec(wire: Mapping[str, Any]) -> TensorSpec:
    if wire["dtype"] not in BY_NAME:
        raise TypeError("unknown element type `%s`" % wire["dtype"])
    return TensorSpec(wire["name"], wire["dtype"], tuple(map(_read_dim, wire["shape"])))


def _read_dim(wire: Any) -> Union[int, Dimension]:
    if isinstance(wire, int):
        return wire
    return Dimension(wire["name"], wire.get("min") or 0, wire.get("max"), wire.get("opt"))


def _open(spec: TensorSpec) -> List[Dimension]:
    return [dim for dim in spec.dims if not isinstance(dim, int)]


def _range_text(dim: Dimension) -> str:
    if dim.max is None:
        return "at least %d" % dim.min
    return str(dim.min) if dim.min == dim.max else "%d to %d" % (dim.min, dim.max)


def _wrong_size(
    name: str, axis: int, size: int, accepted: str, dims: Sequence[Union[int, Dimension]]
) -> str:
    return "input `%s` has size %d in dimension %d where the model %s takes %s" % (
        name,
        size,
        axis,
        describe_dims(dims),
        accepted,
    )


def _hint(name: str, accepted: Iterable[str]) -> str:
    near = closest(name, accepted)
    if near is not None:
        return "did you mean `%s`?" % near
    return "it has %s" % ", ".join("`%s`" % item for item in accepted)
