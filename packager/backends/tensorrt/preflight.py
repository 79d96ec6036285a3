"""Says on the host what a target's TensorRT will make of a model, and cuts it where it must be."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from packager.backends.lowering import lower
from packager.backends.tensorrt.differences import known_differences, rtx_alone
from packager.backends.tensorrt.fixed_sizes import run, settle
from packager.backends.tensorrt.fold import fold_lacking
from packager.backends.tensorrt.lower import narrow, rewrite
from packager.backends.tensorrt.operators import SIZED_BY_DATA
from packager.backends.tensorrt.regions import sized_by_values, wire
from packager.backends.tensorrt.split import UnknownValue, split
from packager.backends.tensorrt.support import MODULE, support_map
from packager.errors import ModelUnsupported
from packager.model import data_file
from packager.passes.patterns import Graph

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from packager.artifact import Parts
    from packager.backends.tensorrt.split import Moved, Split
    from packager.backends.tensorrt.support import Support, Unsupported
    from packager.model import Signature
    from packager.target import Target, TensorRT

# The parser stops at the first node that it cannot build, so each one costs a round.
_MOST_ROUNDS: Final = 24
_MOST_REASONS: Final = 3
_NO_PARSER: Final = (
    f"{MODULE} is not installed here, so no parser has seen the graph: what is known of the "
    "operators comes from NVIDIA's lists; `pip install edgepack[rtx]` adds the parser"
)
_ANOTHER_PARSER: Final = (
    "the graph was parsed by {parser}, which is close to {module} {version} and not the same; the "
    "device has the last word"
)
_STOPS_THERE: Final = (
    "the parser on the host lacks {names}, which {module} {version} has, and looks no further"
)
_DATA_SIZES: Final = (
    "`{name}` ({operator}) gives as many elements as the data decides, inside the engine"
)


@dataclass(frozen=True, kw_only=True)
class Preflight:
    """A model as it goes to a target with TensorRT.

    Attributes:
        parts: Head and tail are None where TensorRT runs the whole.
        notes: What was changed, one sentence each.
        unverified: What only the device can tell, one sentence each.
        moved: Nodes that the CPU runs.
        support: What the RTX parser said of the core; None where it is not installed.
    """

    parts: Parts
    notes: tuple[str, ...] = ()
    unverified: tuple[str, ...] = ()
    moved: tuple[Moved, ...] = ()
    support: Support | None = None


def preflight(
    model_path: Path,
    target: Target,
    workdir: Path,
    *,
    signature: Signature | None = None,
    samples: Sequence[Mapping[str, NDArray[Any]]] = (),
) -> Preflight:
    """Rewrite what the target's TensorRT lacks, leave the rest to the CPU, and ask a parser.

    Args:
        model_path: ONNX file, as ONNX Runtime runs it.
        target: With a `[tensorrt]` table.
        workdir: Where the parts go: `core.onnx`, `head.onnx`, `tail.onnx`.
        signature: The model's, for sizes that can be; otherwise they are guessed.
        samples: Inputs of the model, to compare on where an opset is lowered.

    Raises:
        ModelUnsupported: a node is neither parsed, nor rewritten, nor at an end of the model; or
            the target has no TensorRT.
        ExternalToolError: the parser on the host crashed.
    """
    import onnx

    tensorrt = target.tensorrt
    if tensorrt is None:
        raise ModelUnsupported(f"`{target.name}` has no TensorRT")
    if data_file(model_path).is_file():
        raise ModelUnsupported(
            f"the model is too large for one file, and {tensorrt.module} is given one",
            accepted="a model of up to 2 GB",
            hint="halve it with `--precision fp16`",
        )
    rewritten = rewrite(onnx.load(model_path), tensorrt)
    model, notes = rewritten.model, list(rewritten.notes)
    found: dict[str, str] = {}
    for _ in range(_MOST_ROUNDS):
        cut = _cut(model, tensorrt, found, signature)
        said = _fit(cut, target, _core_samples(cut, samples))
        parts = cut.write(workdir)
        support = support_map(parts.core)
        news = _news(support, model, found, tensorrt)
        if not news:
            break
        # What the parser refuses against the lists may still be written otherwise.
        rewritten = rewrite(model, tensorrt, also=news)
        notes += rewritten.notes
        model = rewritten.model if rewritten.notes else model
        found.update(news)
    else:
        name = next(reversed(found))
        raise ModelUnsupported(
            f"the parser of {MODULE} refuses one node after another, the last `{name}`: "
            f"{found[name]}",
            hint="build for a `cpu-…` target",
        )
    return Preflight(
        parts=parts,
        notes=(*notes, *cut.notes, *said, *_moves(cut)),
        unverified=tuple(_unverified(cut, tensorrt, support)),
        moved=cut.moved,
        support=support,
    )


def _cut(
    model: Any, tensorrt: TensorRT, found: Mapping[str, str], signature: Signature | None
) -> Split:
    """Cut a model by what is known and what a parser has said so far.

    What inference does not know of the values at the border is computed, and the cut made again.
    """
    lacking = _lacking(model, tensorrt, found)
    if fold_lacking(model, lacking):
        lacking = _lacking(model, tensorrt, found)
    sized = [at for at, node in enumerate(model.graph.node) if node.op_type in SIZED_BY_DATA]
    better = [at for at in sized if at not in lacking]
    settled: set[str] = set()
    while True:
        try:
            cut = split(model, lacking, tensorrt, better_on_cpu=better)
        except UnknownValue as fault:
            if fault.name in settled:
                raise
            names = {fault.name}
        else:
            names = _made_by_head(cut, model) - settled
            if not names:
                return cut
        settle(model, sorted(names), signature)
        settled |= names


def _made_by_head(cut: Split, model: Any) -> set[str]:
    if cut.head is None:
        return set()
    taken = {value.name for value in cut.core.graph.input}
    made = {name for node in model.graph.node for name in node.output}
    return {value.name for value in cut.head.graph.output} & taken & made


def _lacking(model: Any, tensorrt: TensorRT, found: Mapping[str, str]) -> dict[int, str]:
    graph = Graph(model)
    lacking = {}
    for place, node in enumerate(model.graph.node):
        reason = found.get(node.name) or known_differences(graph, node, tensorrt)
        if reason is not None:
            lacking[place] = reason
    for place in sized_by_values(wire(model)):
        lacking.setdefault(place, "its sizes are computed from values, not from shapes")
    return lacking


def _fit(cut: Split, target: Target, samples: list[Mapping[str, NDArray[Any]]]) -> tuple[str, ...]:
    """Bring each part to what its engine reads."""
    if target.tensorrt is None:
        return ()
    for part in (cut.head, cut.tail):
        if part is not None:
            lower(
                part,
                name=target.name,
                max_opset=target.engine.max_opset,
                max_ir_version=target.engine.max_ir_version,
                samples=(),
            )
    return narrow(cut.core, target.tensorrt, samples=samples)


def _core_samples(
    cut: Split, samples: Sequence[Mapping[str, NDArray[Any]]]
) -> list[Mapping[str, NDArray[Any]]]:
    """Return what the core gets for samples of the whole."""
    wanted = [value.name for value in cut.core.graph.input]
    constants = {tensor.name for tensor in cut.core.graph.initializer}
    wanted = [name for name in wanted if name not in constants]
    made = []
    for sample in samples:
        values = dict(sample)
        if cut.head is not None:
            values.update(run(cut.head, values))
        made.append({name: values[name] for name in wanted})
    return list(made)


def _news(
    support: Support | None,
    model: Any,
    found: Mapping[str, str],
    tensorrt: TensorRT,
) -> dict[str, str]:
    """Return the nodes of the whole that the parser refuses and that are not known yet.

    Raises:
        ModelUnsupported: it refuses something that is no node of the whole.
    """
    if support is None or support.parsed:
        return {}
    known = {node.name for node in model.graph.node}
    news: dict[str, str] = {}
    others: list[Unsupported] = []
    for node in support.unsupported:
        if rtx_alone(node.operator, tensorrt):
            others.append(node)
        elif node.name in known and node.name not in found:
            news[node.name] = f"{support.parser}: {node.reason}"
        else:
            raise ModelUnsupported(f"{support.parser} refuses {node}")
    if not news and not others:
        reason = support.general[0] if support.general else "it does not say why"
        raise ModelUnsupported(f"{support.parser} does not parse the model: {reason}")
    return news


def _moves(cut: Split) -> list[str]:
    """Return what the CPU runs, in sentences."""
    said = []
    for part, where in (("head", "before"), ("tail", "behind")):
        moved = [node for node in cut.moved if node.part == part]
        if not moved:
            continue
        counts = Counter(node.operator for node in moved)
        names = ", ".join(f"{count} × {name}" for name, count in counts.most_common(4))
        more = " and others" if len(counts) > 4 else ""
        reasons: dict[str, str] = {}
        for node in moved:
            if node.reason:
                reasons.setdefault(node.reason, f"`{node.name}` ({node.operator}): {node.reason}")
        why = "; ".join(list(reasons.values())[:_MOST_REASONS])
        said.append(
            f"on the CPU {where} the engine: {names}{more}{', as of ' + why if why else ''}"
        )
    return said


def _unverified(cut: Split, tensorrt: TensorRT, support: Support | None) -> list[str]:
    said = []
    if support is None:
        said.append(_NO_PARSER)
    elif tensorrt.module != MODULE:
        said.append(
            _ANOTHER_PARSER.format(
                parser=support.parser, module=tensorrt.module, version=tensorrt.version
            )
        )
        stops = [node for node in support.unsupported if rtx_alone(node.operator, tensorrt)]
        if stops:
            names = ", ".join(f"`{node.name}` ({node.operator})" for node in stops)
            said.append(
                _STOPS_THERE.format(names=names, module=tensorrt.module, version=tensorrt.version)
            )
    said += [
        _DATA_SIZES.format(name=node.name, operator=node.op_type)
        for node in cut.core.graph.node
        if node.op_type in SIZED_BY_DATA
    ]
    return said
