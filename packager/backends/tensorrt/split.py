"""Cuts a model into a head and a tail for the CPU and a core for TensorRT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from packager.artifact import Parts
from packager.backends.tensorrt.boundary import Boundary
from packager.backends.tensorrt.regions import (
    CORE,
    HEAD,
    TAIL,
    assign,
    bytes_of,
    outer_reads,
    wire,
)
from packager.errors import ModelUnsupported
from packager.passes.contract import first_line, tool_faults
from packager.passes.graph import strip_texts

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from packager.backends.tensorrt.regions import Wiring
    from packager.target import TensorRT

WORDS: Final = {HEAD: "head", CORE: "core", TAIL: "tail"}
# A constant of more elements that two parts read is worth a word.
_SMALL_CONSTANT: Final = 4096


@dataclass(frozen=True, kw_only=True)
class Moved:
    """A node that the CPU runs: in the head or the tail, and why.

    `reason` is empty for what only comes along with another.
    """

    name: str
    operator: str
    part: str
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Split:
    """A model in parts, still in memory.

    Attributes:
        head: `onnx.ModelProto`, None where the core takes the inputs as they come.
        tail: None where the core gives the outputs.
        moved: What is in head and tail, in graph order.
    """

    head: Any
    core: Any
    tail: Any
    moved: tuple[Moved, ...] = ()
    notes: tuple[str, ...] = ()

    def write(self, workdir: Path) -> Parts:
        """Write `head.onnx`, `core.onnx` and `tail.onnx`, as many as there are."""
        paths: dict[str, Path | None] = {}
        for name in ("head", "core", "tail"):
            model = getattr(self, name)
            paths[name] = None if model is None else workdir / f"{name}.onnx"
            if model is not None:
                payload = model.SerializeToString(deterministic=True)
                (workdir / f"{name}.onnx").write_bytes(payload)
        core = paths["core"]
        if core is None:
            raise ValueError("a model without a core")
        return Parts(head=paths["head"], core=core, tail=paths["tail"])


def split(
    model: Any,
    lacking: Mapping[int, str],
    tensorrt: TensorRT,
    *,
    better_on_cpu: Iterable[int] = (),
) -> Split:
    """Cut a model so that the core holds no node that the target's TensorRT lacks.

    Values pass from part to part by name, and past a part that does not read them. Where TensorRT
    does not take the dtype of a value at its border, the parts around it convert it.

    Args:
        model: An `onnx.ModelProto` whose nodes have names; it is not changed.
        lacking: Place in `graph.node` → reason.
        tensorrt: The target's.
        better_on_cpu: Places of nodes that go to the tail where that is cheap.

    Raises:
        ModelUnsupported: a node is in the middle, the core would be empty, or a value's type at
            a border cannot be inferred.
    """
    wiring = wire(model)
    types = infer_types(model)
    for name, kind in types.items():
        if kind.HasField("tensor_type") and kind.tensor_type.HasField("shape"):
            wiring.bytes_of[name] = bytes_of(dtype_of(kind), shape_of(kind))
    parts = assign(wiring, lacking, better_on_cpu)
    cut = _Cut(model, wiring, types, parts)
    models = (cut.part(HEAD), cut.part(CORE), cut.part(TAIL))
    border = Boundary(tensorrt, wiring.outputs, models)
    border.convert()
    made = [border.head, border.core, border.tail]
    for part in made:
        if part is not None:
            strip_texts(part)
    moved = tuple(
        Moved(
            name=node.name,
            operator=node.op_type,
            part=WORDS[parts[place]],
            reason=lacking.get(place, ""),
        )
        for place, node in enumerate(model.graph.node)
        if place not in wiring.static and parts[place] != CORE
    )
    notes = (*cut.notes, *border.notes)
    return Split(head=made[0], core=made[1], tail=made[2], moved=moved, notes=notes)


def infer_types(model: Any) -> dict[str, Any]:
    """Return the type of every value that can be inferred, as `onnx.TypeProto`.

    Raises:
        ModelUnsupported: inference finds a contradiction.
    """
    import onnx

    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    except tool_faults() as fault:
        raise ModelUnsupported(f"the model's shapes do not fit: {first_line(fault)}") from fault
    types = {}
    for tensor in inferred.initializer:
        types[tensor.name] = onnx.helper.make_tensor_type_proto(tensor.data_type, tensor.dims)
    for value in (*inferred.value_info, *inferred.output, *inferred.input):
        types[value.name] = value.type
    return types


def dtype_of(kind: Any) -> str:
    """Return a tensor type's dtype as numpy names it; `object` for text."""
    import onnx

    return str(onnx.helper.tensor_dtype_to_np_dtype(kind.tensor_type.elem_type))


def shape_of(kind: Any) -> list[int | None]:
    """Return a tensor type's sizes, None for those that are not fixed."""
    dims = kind.tensor_type.shape.dim
    return [dim.dim_value if dim.HasField("dim_value") else None for dim in dims]


class UnknownValue(ModelUnsupported):
    """A model would be cut at a value whose type or number of axes nobody knows.

    Args:
        name: Of the value.
    """

    def __init__(self, name: str) -> None:
        super().__init__(
            f"the model cannot be cut at `{name}`, whose type and number of axes are not known",
            hint="export the model with operators of ONNX alone",
        )
        self.name = name


class _Cut:
    """Makes the models of the parts out of the nodes of the whole."""

    def __init__(
        self, model: Any, wiring: Wiring, types: Mapping[str, Any], parts: list[int]
    ) -> None:
        self.notes: list[str] = []
        self._model = model
        self._wiring = wiring
        self._types = types
        self._parts = parts
        self._initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        self._seen: dict[str, int] = {}
        self._wanted = [value.name for value in model.graph.output]

    def part(self, part: int) -> Any:
        """Return the model of a part; None where it has nothing to do."""
        import onnx

        places = self._places_of(part)
        if not places:
            return None
        nodes = [self._wiring.nodes[place] for place in places]
        made = {name for node in nodes for name in node.output}
        reads = [name for node in nodes for name in outer_reads(node)]
        inputs, constants = [], []
        for name in dict.fromkeys(reads):
            if name in self._initializers:
                constants.append(self._initializers[name])
                self._remark(name, part)
            elif name not in made:
                inputs.append(name)
        outputs = [name for name in self._order(made) if self._is_needed(name, part)]
        graph = onnx.helper.make_graph(
            nodes,
            WORDS[part],
            [self._declared(name) for name in inputs],
            [self._declared(name) for name in outputs],
            constants,
        )
        result = onnx.ModelProto()
        result.CopyFrom(self._model)
        result.graph.CopyFrom(graph)
        return result

    def _places_of(self, part: int) -> list[int]:
        """Return a part's nodes with the constant ones that it needs, in graph order."""
        static = self._wiring.static
        chosen = {p for p, own in enumerate(self._parts) if own == part and p not in static}
        kept = [self._wiring.makers.get(name, -1) for name in self._wanted]
        # An output that is a constant is given by the last part that there is.
        last = TAIL if TAIL in self._live() else CORE
        pending = [*chosen, *(maker for maker in kept if maker in static and part == last)]
        chosen.update(pending)
        while pending:
            place = pending.pop()
            for name in outer_reads(self._wiring.nodes[place]):
                maker = self._wiring.makers.get(name, -1)
                if maker in static and maker not in chosen:
                    chosen.add(maker)
                    pending.append(maker)
        return sorted(chosen)

    def _live(self) -> set[int]:
        return {p for place, p in enumerate(self._parts) if place not in self._wiring.static}

    def _order(self, made: set[str]) -> list[str]:
        """Return the values that a part makes: the model's outputs first, in their order."""
        first = [name for name in self._wanted if name in made]
        rest = [name for name in self._wiring.makers if name in made and name not in first]
        return [*first, *rest]

    def _is_needed(self, name: str, part: int) -> bool:
        maker = self._wiring.makers[name]
        if maker in self._wiring.static:
            return name in self._wanted
        readers = self._wiring.readers.get(name, ())
        return name in self._wanted or any(self._parts[reader] > part for reader in readers)

    def _declared(self, name: str) -> Any:
        import onnx

        kind = self._types.get(name)
        if kind is None or not kind.tensor_type.elem_type:
            raise UnknownValue(name)
        if not kind.tensor_type.HasField("shape"):
            raise UnknownValue(name)
        declared = onnx.ValueInfoProto(name=name)
        declared.type.CopyFrom(kind)
        for axis, dim in enumerate(declared.type.tensor_type.shape.dim):
            inferred = dim.dim_param.startswith("unk__") or not dim.WhichOneof("value")
            if inferred:
                # The inference's own numbering would tie bytes to its version.
                dim.dim_param = f"{name}.{axis}"
        return declared

    def _remark(self, name: str, part: int) -> None:
        import math

        tensor = self._initializers[name]
        if name in self._seen and math.prod(tensor.dims) > _SMALL_CONSTANT:
            self.notes.append(
                f"the weight `{name}` is in the {WORDS[self._seen[name]]} and in the {WORDS[part]}"
            )
        self._seen.setdefault(name, part)
