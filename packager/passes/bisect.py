"""Finds the node at which a changed graph stops loading, running or computing the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from packager.checks.latency import open_session
from packager.checks.parity import contradiction, is_float

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    Sample = dict[str, NDArray[Any]]

# Tensors looked at in one run: all of a large model's at once would not fit into memory.
_AT_ONCE: Final = 64


def first_broken(
    before: Any,
    after: Any,
    probe: Sample,
    workdir: Path,
    *,
    faults: tuple[type[Exception], ...],
    relative: float | None,
) -> str:
    """Return the first node of a changed graph that breaks, in words; empty where none is found.

    A graph that does not load or run is cut after ever fewer nodes, by bisection, until the
    shortest beginning that still fails is known: about log2(nodes) sessions. One that runs and
    computes something else is compared tensor by tensor with the graph of before.

    Args:
        before: `onnx.ModelProto` that holds.
        after: What a pass made of it.
        probe: One input.
        workdir: Where files may be written.
        faults: What the tools raise for a model they refuse.
        relative: Largest difference of a tensor relative to its largest value that is none; None
            looks only for tensors that no longer are numbers, or of another shape or type.
    """
    try:
        failing = _shortest_failing(after, probe, workdir, faults)
        node = (
            failing
            if failing is not None
            else _first_different(before, after, probe, workdir, relative)
        )
    except faults:
        # The search for the cause must not hide the fault that is being told of.
        return ""
    return f"first at `{node.name or node.output[0]}` ({node.op_type})" if node is not None else ""


def _shortest_failing(
    model: Any, probe: Sample, workdir: Path, faults: tuple[type[Exception], ...]
) -> Any:
    def fails(count: int) -> bool:
        try:
            _run(_beginning(model, count), probe, workdir, [])
        except faults:
            return True
        return False

    low, high = 0, len(model.graph.node)
    if high == 0 or not fails(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        if fails(middle):
            high = middle
        else:
            low = middle
    return model.graph.node[high - 1]


def _first_different(
    before: Any, after: Any, probe: Sample, workdir: Path, relative: float | None
) -> Any:
    known = {name for node in before.graph.node for name in node.output if name}
    common = [(node, name) for node in after.graph.node for name in node.output if name in known]
    for begin in range(0, len(common), _AT_ONCE):
        part = common[begin : begin + _AT_ONCE]
        names = [name for _, name in part]
        want, have = (_run(model, probe, workdir, names) for model in (before, after))
        for node, name in part:
            if _differ({name: want[name]}, {name: have[name]}, relative):
                return node
    return None


def _differ(
    want: Mapping[str, NDArray[Any]], have: Mapping[str, NDArray[Any]], relative: float | None
) -> bool:
    import numpy as np

    if contradiction(want, have) is not None:
        return True
    if relative is None:
        return False
    for name, array in want.items():
        if not is_float(array):
            if not np.array_equal(array, have[name]):
                return True
            continue
        finite = np.isfinite(array)
        largest = float(np.abs(array[finite]).max(initial=0.0))
        gap = float(np.abs(array[finite] - have[name][finite]).max(initial=0.0))
        if gap > relative * max(largest, 1.0):
            return True
    return False


def _beginning(model: Any, count: int) -> Any:
    """Return the model with its first nodes alone, whose unread results are its outputs."""
    import onnx

    part = onnx.ModelProto()
    part.CopyFrom(model)
    del part.graph.node[count:]
    del part.graph.output[:]
    read = {name for node in part.graph.node for name in node.input}
    made = [name for node in part.graph.node for name in node.output if name and name not in read]
    part.graph.output.extend(onnx.ValueInfoProto(name=name) for name in made)
    return part


def _run(model: Any, probe: Sample, workdir: Path, names: Sequence[str]) -> Sample:
    import onnx

    tapped = onnx.ModelProto()
    tapped.CopyFrom(model)
    told = {value.name for value in tapped.graph.output}
    tapped.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names if n not in told)
    path = workdir / "bisected.onnx"
    try:
        onnx.save(tapped, path)
        session = open_session(path, 1)
    finally:
        path.unlink(missing_ok=True)
    wanted = list(names) or [value.name for value in session.get_outputs()]
    given = {value.name for value in session.get_inputs()}
    feeds = {name: array for name, array in probe.items() if name in given}
    return dict(zip(wanted, session.run(wanted, feeds), strict=True))
