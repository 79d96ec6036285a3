"""Works out what a model with state takes of its clients, and proves that the state goes round."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from packager.errors import ModelUnsupported, UsageError
from packager.model import Dim, Signature

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from packager.model import TensorSpec
    from packager.recipe import Sequences

# All states together may take this part of a device's memory.
_STATES_IN_MEMORY: Final = 4
_ITEM_BYTES: Final = {
    "float64": 8, "int64": 8, "uint64": 8, "float32": 4, "int32": 4, "uint32": 4,
    "float16": 2, "bfloat16": 2, "int16": 2, "uint16": 2, "int8": 1, "uint8": 1, "bool": 1,
}  # fmt: skip


def client_signature(manifest: Mapping[str, Any]) -> Signature:
    """Return the signature that clients see: without the state, where the model keeps one."""
    return Signature.from_json((manifest.get("sequences") or manifest["model"])["signature"])


def sequence_fields(
    sequences: Sequences, *, path: Path, signature: Signature, memory_mib: int
) -> dict[str, Any]:
    """Return `manifest["sequences"]`, after the model has run twice from its own state.

    Args:
        sequences: What the recipe says.
        path: The ONNX file.
        signature: Of that file; its inputs and outputs of state are left out of what clients see.
        memory_mib: The device's: all states must fit into a part of it.

    Raises:
        UsageError: names, an axis or a number that the model does not have.
        ModelUnsupported: a state that comes out in another form than it went in.
    """
    pinned = check_state(sequences, path, signature)
    pinned |= _bound_to_one(sequences, path, signature, pinned)
    served = _served(sequences, signature, pinned)
    states = [
        {"input": spec.name, "output": sequences.state[spec.name], "dtype": spec.dtype,
         "shape": [_size_of_one(dim) for dim in spec.shape]}
        for spec in signature.inputs if spec.name in sequences.state
    ]  # fmt: skip
    _check_memory(sequences, states, memory_mib)
    return {
        "signature": served.to_json(),
        "state": states,
        "max_sequences": sequences.max_sequences,
        "idle_s": sequences.idle_s,
        "axis": sequences.axis,
        "chunk": sequences.chunk,
        "cut": _cut_inputs(sequences, served),
    }


def check_state(sequences: Sequences, path: Path, signature: Signature) -> set[str]:
    """Refuse a state that does not go round; return the dimensions that are 1 for one sequence.

    Raises:
        UsageError: names that the model does not have.
        ModelUnsupported: a state that comes out in another form than it went in.
    """
    check_names(sequences, signature)
    pinned = _shared_dims(sequences, signature)
    _run_twice(sequences, path, signature, pinned)
    return pinned


def check_names(sequences: Sequences, signature: Signature) -> None:
    """Refuse names that the model does not have, and dtypes that differ.

    Raises:
        UsageError: says which.
        ModelUnsupported: the input and the output of a state are of different types.
    """
    inputs = {spec.name: spec for spec in signature.inputs}
    outputs = {spec.name: spec for spec in signature.outputs}
    for name, known, what in (
        *((name, inputs, "input") for name in sequences.state),
        *((name, outputs, "output") for name in sequences.state.values()),
    ):
        if name not in known:
            raise UsageError(
                f"`sequences.state` names the {what} `{name}`, which the model does not have",
                accepted=", ".join(f"`{each}`" for each in known),
            )
    if len(set(sequences.state.values())) < len(sequences.state):
        raise UsageError("`sequences.state` feeds two inputs from one output")
    for what, left in (
        ("input", inputs.keys() - sequences.state.keys()),
        ("output", outputs.keys() - set(sequences.state.values())),
    ):
        if not left:
            raise UsageError(f"the model has no {what} besides its state")
    for fed, source in sequences.state.items():
        kinds = inputs[fed].dtype, outputs[source].dtype
        if kinds[0] != kinds[1] or kinds[0] not in _ITEM_BYTES:
            raise ModelUnsupported(
                f"the state `{fed}` is {kinds[0]} and `{source}`, which feeds it, is {kinds[1]}",
                accepted="one numeric type for both",
            )


def _size_of_one(dim: Dim) -> int:
    """Return the size that an axis of a state has for one sequence."""
    return 1 if dim.size is None else dim.size


def _shared_dims(sequences: Sequences, signature: Signature) -> set[str]:
    """Return the dynamic dimensions that a state has: they are 1 for one sequence."""
    found = set()
    for spec in (*signature.inputs, *signature.outputs):
        if spec.name not in sequences.state and spec.name not in sequences.state.values():
            continue
        for dim in spec.shape:
            if dim.size is None and dim.min > 1:
                raise ModelUnsupported(
                    f"the state `{spec.name}` has a dimension `{dim}`, and one sequence is 1",
                    hint=f"export the model for one sequence, or give `[dim]` {dim.name} from 1",
                )
            if dim.size is None and dim.name is not None:
                found.add(dim.name)
    return found


def _run_twice(sequences: Sequences, path: Path, signature: Signature, pinned: set[str]) -> None:
    """Feed the state that comes out back in.

    Raises:
        ModelUnsupported: it does not come out as it went in, or the model does not run.
    """
    feeds = _feeds(sequences, signature, pinned, {})
    for number in (1, 2):
        answers = _run(path, signature, feeds)
        for fed, source in sequences.state.items():
            went, came = feeds[fed], answers[source]
            if went.shape != came.shape or went.dtype != came.dtype:
                raise ModelUnsupported(
                    f"in run {number} the state `{fed}` went in as {went.dtype}"
                    f"{list(went.shape)} and `{source}` came out as {came.dtype}"
                    f"{list(came.shape)}",
                    accepted="a state of one shape, however long the sequence",
                    hint="export the model with a state of a fixed size",
                )
            feeds[fed] = came


def _bound_to_one(
    sequences: Sequences, path: Path, signature: Signature, pinned: set[str]
) -> set[str]:
    """Return the first dimensions that have to be 1, as the model says by failing at 2.

    A batch whose name in the inputs is not its name in the state would otherwise be offered to
    clients, and every larger one would fail.
    """
    found = set()
    first = {s.shape[0].name for s in signature.inputs if s.shape and s.shape[0].size is None}
    for name, dim in signature.dims().items():
        if name not in first - pinned or dim.min > 1 or (dim.max is not None and dim.max < 2):
            continue
        feeds = _feeds(sequences, signature, pinned, {name: 2})
        try:
            answers = _run(path, signature, feeds)
        except ModelUnsupported:
            found.add(name)
            continue
        if any(feeds[fed].shape != answers[out].shape for fed, out in sequences.state.items()):
            found.add(name)
    return found


def _feeds(
    sequences: Sequences, signature: Signature, pinned: set[str], sizes: Mapping[str, int]
) -> dict[str, NDArray[Any]]:
    """Return made-up inputs of one sequence and a state of zeros."""
    import numpy as np

    from packager.data import synthetic

    def settled(spec: TensorSpec) -> TensorSpec:
        return replace(spec, shape=tuple(
            dim if dim.size is not None
            else Dim(size=1 if dim.name in pinned or spec.name in sequences.state
                     else sizes.get(dim.name or "", dim.opt or dim.min))
            for dim in spec.shape
        ))  # fmt: skip

    whole = Signature(inputs=tuple(map(settled, signature.inputs)), outputs=signature.outputs)
    feeds = dict(synthetic(whole, 1, 0)[0])
    return {
        name: np.zeros_like(array) if name in sequences.state else array
        for name, array in feeds.items()
    }


def _run(
    path: Path, signature: Signature, feeds: Mapping[str, NDArray[Any]]
) -> dict[str, NDArray[Any]]:
    from packager.bundle.golden import runtime_errors
    from packager.checks.latency import open_session

    names = [spec.name for spec in signature.outputs]
    try:
        answers = open_session(path, 1).run(names, dict(feeds))
    except runtime_errors() as fault:
        raise ModelUnsupported(f"the model does not run from a state of zeros: {fault}") from fault
    return dict(zip(names, answers, strict=True))


def _served(sequences: Sequences, signature: Signature, pinned: set[str]) -> Signature:
    """Return the signature without the state, for one sequence at a time."""

    def settled(spec: TensorSpec) -> TensorSpec:
        shape = tuple(Dim(size=1) if dim.name in pinned else dim for dim in spec.shape)
        return replace(spec, shape=shape)

    hidden = set(sequences.state.values())
    return Signature(
        inputs=tuple(settled(s) for s in signature.inputs if s.name not in sequences.state),
        outputs=tuple(settled(s) for s in signature.outputs if s.name not in hidden),
    )


def _cut_inputs(sequences: Sequences, served: Signature) -> list[str]:
    """Return the inputs that a stream cuts: those whose axis can be a chunk long."""
    axis, chunk = sequences.axis, sequences.chunk
    if axis is None:
        return []
    found = []
    for spec in served.inputs:
        if len(spec.shape) <= axis:
            continue
        dim = spec.shape[axis]
        fits = dim.min <= chunk and (dim.max is None or chunk <= dim.max)
        if dim.size == chunk or (dim.size is None and fits):
            found.append(spec.name)
    if not found:
        raise UsageError(
            f"no input can be cut into chunks of {chunk} along axis {axis}",
            accepted="; ".join(map(str, served.inputs)),
            hint="`sequences.axis` counts from 0, and the batch is an axis too",
        )
    _check_alone(served, found, axis)
    return found


def _check_alone(served: Signature, cut: list[str], axis: int) -> None:
    """Refuse what would no longer fit once some inputs are cut: the same dimension elsewhere."""
    names = {spec.shape[axis].name for spec in served.inputs if spec.name in cut} - {None}
    for spec in served.inputs:
        for at, dim in enumerate(spec.shape):
            if dim.name in names and (spec.name not in cut or at != axis):
                raise UsageError(
                    f"`{spec}` has the dimension that is cut, `{dim.name}`, in axis {at}",
                    hint="an input is only cut along one axis, and every input along the same",
                )


def _check_memory(sequences: Sequences, states: list[dict[str, Any]], memory_mib: int) -> None:
    each = sum(math.prod(state["shape"]) * _ITEM_BYTES[state["dtype"]] for state in states)
    most = (memory_mib << 20) // _STATES_IN_MEMORY
    if each * sequences.max_sequences > most:
        raise UsageError(
            f"{sequences.max_sequences} sequences of {each} bytes of state do not fit",
            accepted=f"at most {most // each} on a device of {memory_mib} MiB",
            hint=f"set `max_sequences = {most // each}` in `[sequences]`",
        )
