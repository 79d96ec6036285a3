"""Rewrites chosen nodes of a float32 graph to 16-bit floats, with Casts where the two meet."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from packager.passes.graph import all_nodes

if TYPE_CHECKING:
    from collections.abc import Mapping
    from collections.abc import Set as AbstractSet

    from numpy.typing import NDArray

# Their element type is an attribute, or values without a plain tensor type.
_UNTOUCHED: Final = frozenset(
    {"Bernoulli", "CastLike", "Constant", "EyeLike", "Multinomial", "Optional", "RandomNormal",
     "RandomNormalLike", "RandomUniform", "RandomUniformLike", "SequenceConstruct"}
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class HalfType:
    """A 16-bit float type.

    Attributes:
        name: As the plan shows it: `fp16` or `bf16`.
        onnx_name: As `TensorProto` names it.
        numpy_name: As numpy (with ml_dtypes) names it.
        largest: The largest finite value.
    """

    name: str
    onnx_name: str
    numpy_name: str
    largest: float

    @property
    def code(self) -> int:
        """Return the element type's number in `TensorProto`."""
        import onnx

        return int(onnx.TensorProto.DataType.Value(self.onnx_name))

    @property
    def dtype(self) -> Any:
        """Return the numpy dtype."""
        import ml_dtypes
        import numpy as np

        return np.dtype(ml_dtypes.bfloat16 if self.numpy_name == "bfloat16" else np.float16)

    def round(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return values as this type holds them; beyond `largest` they become infinite."""
        import numpy as np

        with np.errstate(over="ignore"):
            return values.astype(self.dtype)


FLOAT16: Final = HalfType(name="fp16", onnx_name="FLOAT16", numpy_name="float16", largest=65504.0)
BFLOAT16: Final = HalfType(
    name="bf16", onnx_name="BFLOAT16", numpy_name="bfloat16", largest=3.3895e38
)


@dataclass(frozen=True, kw_only=True)
class Slots:
    """Which of a node's inputs and outputs are float32 and may be 16 bits wide, by position."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    def __bool__(self) -> bool:
        return bool(self.inputs or self.outputs)


def find_slots(
    node: Any, dtypes: Mapping[str, str], schemas: Schemas, half: HalfType
) -> Slots | None:
    """Return where a node touches float32 tensors, or None where it must stay float32.

    Args:
        node: Of the top-level graph.
        dtypes: Element type of every tensor, as numpy names it.
        schemas: What operators accept.
        half: The type asked for.
    """
    floats_in = [i for i, name in enumerate(node.input) if dtypes.get(name) == "float32"]
    floats_out = [i for i, name in enumerate(node.output) if dtypes.get(name) == "float32"]
    if node.op_type == "Cast" and node.domain in ("", "ai.onnx"):
        # A Cast reads what is there, narrow or not.
        return Slots(inputs=(), outputs=tuple(floats_out))
    if any(a.HasField("g") or a.graphs for a in node.attribute):
        return None
    formal = schemas.find(node)
    if formal is None or node.op_type in _UNTOUCHED:
        return None if floats_in or floats_out else Slots(inputs=(), outputs=())
    wanted = f"tensor({half.numpy_name})"
    if node.op_type == "ConstantOfShape":
        return Slots(inputs=(), outputs=tuple(floats_out))
    inputs = tuple(i for i in floats_in if wanted in formal.accepts(i, of_input=True))
    outputs = tuple(i for i in floats_out if wanted in formal.accepts(i, of_input=False))
    if node.op_type == "Resize":
        inputs = tuple(i for i in inputs if i == 0)  # regions stay exact, as scales have to
    if not (inputs or outputs) and (floats_in or floats_out):
        return None
    return Slots(inputs=inputs, outputs=outputs)


class Schemas:
    """The types that operators accept in a model's opset; contributed ones as the engine says."""

    def __init__(self, opset: int) -> None:
        from onnxruntime.capi import onnxruntime_pybind11_state as engine

        self._opset = opset
        self._contributed = {
            schema.name: schema
            for schema in engine.get_all_operator_schema()
            if schema.domain == "com.microsoft"
        }

    def find(self, node: Any) -> _Formal | None:
        """Return an operator's formal parameters, or None for an unknown one."""
        import onnx

        if node.domain == "com.microsoft":
            schema = self._contributed.get(node.op_type)
            return None if schema is None else _Formal(schema)
        if node.domain not in ("", "ai.onnx"):
            return None
        try:
            return _Formal(onnx.defs.get_schema(node.op_type, self._opset, ""))
        except onnx.defs.SchemaError:
            return None


class _Formal:
    def __init__(self, schema: Any) -> None:
        self._inputs = [_type_of(formal) for formal in schema.inputs]
        self._outputs = [_type_of(formal) for formal in schema.outputs]
        self._allowed = {
            c.type_param_str: frozenset(c.allowed_type_strs) for c in schema.type_constraints
        }

    def accepts(self, position: int, *, of_input: bool) -> frozenset[str]:
        """Return the types of a parameter; the last one repeats where it is variadic."""
        formals = self._inputs if of_input else self._outputs
        if not formals:
            return frozenset()
        return self._allowed.get(formals[min(position, len(formals) - 1)], frozenset())


def _type_of(formal: Any) -> str:
    # onnx and ONNX Runtime name the same attribute differently.
    return str(formal.type_str if hasattr(formal, "type_str") else formal.typeStr)


@dataclass(kw_only=True)
class HalfGraph:
    """Writes a graph anew with some nodes in 16 bits.

    Attributes:
        model: `onnx.ModelProto` in float32, without `Constant` nodes at the top level.
        slots: By position in the graph, of every node that may be 16 bits wide.
        narrow: Positions of the nodes that shall be.
        half: The type.
        emulate: Instead keep everything float32 and round each tensor that would be 16 bits wide
            after the operator that makes it: a twin that any engine runs. ONNX Runtime's CPU
            kernels compute fp16 graphs in float32 without rounding between, so that running the
            graph itself shows no overflow.
        with_data: Else 16-bit constants have a name, a type and dimensions only; `origin` tells
            whose values they are.
    """

    model: Any
    slots: Mapping[int, Slots]
    narrow: AbstractSet[int]
    half: HalfType
    emulate: bool = False
    with_data: bool = True
    _nodes: list[Any] = field(default_factory=list)
    _half_names: dict[str, str] = field(default_factory=dict)
    _made_half: set[str] = field(default_factory=set)
    _widened: set[str] = field(default_factory=set)
    _used_half: set[str] = field(default_factory=set)

    def write(self) -> Any:
        """Return the new model; names of nodes, inputs and outputs stay, dtypes of both too."""
        import onnx

        after = onnx.ModelProto()
        after.CopyFrom(self.model)
        graph = after.graph
        self._taken = _names(after)
        self._constants = {tensor.name: tensor for tensor in self.model.graph.initializer}
        for position, node in enumerate(self.model.graph.node):
            changed = onnx.NodeProto()
            changed.CopyFrom(node)
            if position in self.narrow:
                self._add_half(changed, self.slots[position])
            elif node.op_type == "Cast" and node.input[0] in self._made_half:
                changed.input[0] = self._half_names[node.input[0]]
                self._nodes.append(changed)
            else:
                for name in sorted({*node.input, *captured_by(node)}):
                    self._widen(name)
                self._nodes.append(changed)
        for output in graph.output:
            self._widen(output.name)
        del graph.node[:]
        graph.node.extend(self._nodes)
        self._place_constants(graph)
        del graph.value_info[:]
        return after

    @property
    def origin(self) -> dict[str, str]:
        """Return, after writing, the constant whose values each 16-bit constant holds."""
        return {self._half_names[name]: name for name in sorted(self._used_half)}

    def _add_half(self, node: Any, slots: Slots) -> None:
        import onnx

        for i in slots.inputs:
            node.input[i] = self._narrowed(node.input[i])
        for i, name in enumerate(node.input):
            if i not in slots.inputs:
                self._widen(name)
        for attribute in node.attribute:
            if not self.emulate and slots.outputs:
                if node.op_type == "Cast" and attribute.name == "to":
                    attribute.i = self.half.code
                if node.op_type == "ConstantOfShape" and attribute.name == "value":
                    value = self.half.round(onnx.numpy_helper.to_array(attribute.t))
                    attribute.t.CopyFrom(onnx.numpy_helper.from_array(value))
        self._nodes.append(node)
        for i in slots.outputs:
            name = node.output[i]
            half_name = self._half_name(name)
            self._made_half.add(name)
            if self.emulate:
                node.output[i] = self._fresh(f"{name}_unrounded")
                self._round(node.output[i], half_name)
            else:
                node.output[i] = half_name

    def _narrowed(self, name: str) -> str:
        known = name in self._half_names
        half_name = self._half_name(name)
        if known:
            return half_name
        if name in self._constants:
            self._used_half.add(name)
        elif self.emulate:
            self._round(name, half_name)
        else:
            self._cast(name, half_name, self.half.code)
        return half_name

    def _widen(self, name: str) -> None:
        if name not in self._made_half or name in self._widened:
            return
        import onnx

        self._widened.add(name)
        if self.emulate:
            node = onnx.helper.make_node("Identity", [self._half_names[name]], [name])
            self._nodes.append(node)
        else:
            self._cast(self._half_names[name], name, onnx.TensorProto.FLOAT)

    def _round(self, name: str, rounded: str) -> None:
        import onnx

        between = self._fresh(f"{rounded}_bits")
        self._cast(name, between, self.half.code)
        self._cast(between, rounded, onnx.TensorProto.FLOAT)

    def _cast(self, source: str, result: str, code: int) -> None:
        import onnx

        name = self._fresh(f"{result}_cast")
        self._nodes.append(onnx.helper.make_node("Cast", [source], [result], name=name, to=code))

    def _half_name(self, name: str) -> str:
        if name not in self._half_names:
            self._half_names[name] = self._fresh(f"{name}_{self.half.name}")
        return self._half_names[name]

    def _fresh(self, stem: str) -> str:
        name, number = stem, 1
        while name in self._taken:
            name, number = f"{stem}_{number}", number + 1
        self._taken.add(name)
        return name

    def _place_constants(self, graph: Any) -> None:
        import numpy as np
        import onnx

        wanted = {name for node in graph.node for name in (*node.input, *captured_by(node))}
        wanted |= {output.name for output in graph.output}
        kept = []
        for tensor in self.model.graph.initializer:
            if tensor.name in wanted or tensor.name not in self._used_half:
                kept.append(tensor)
            if tensor.name not in self._used_half:
                continue
            if not self.with_data:
                name = self._half_names[tensor.name]
                kept.append(onnx.TensorProto(name=name, data_type=self.half.code, dims=tensor.dims))
            else:
                values = self.half.round(onnx.numpy_helper.to_array(tensor))
                if self.emulate:
                    values = values.astype(np.float32)
                kept.append(onnx.numpy_helper.from_array(values, self._half_names[tensor.name]))
        del graph.initializer[:]
        graph.initializer.extend(kept)


def captured_by(node: Any) -> set[str]:
    """Return every name that the branches and bodies of a node read."""
    import onnx

    found: set[str] = set()
    for attribute in node.attribute:
        for inner in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
            shell = onnx.ModelProto(graph=inner)
            found |= {name for below in all_nodes(shell) for name in below.input}
            found |= {output.name for output in inner.output}
    return found


def constants_as_initializers(model: Any) -> None:
    """Turn the tensors of top-level `Constant` nodes into initializers, in place."""
    import onnx

    kept = []
    for node in model.graph.node:
        value = next((a for a in node.attribute if a.name.startswith("value")), None)
        if node.op_type != "Constant" or node.domain not in ("", "ai.onnx") or value is None:
            kept.append(node)
            continue
        if value.name == "value":
            tensor = onnx.TensorProto()
            tensor.CopyFrom(value.t)
        elif value.name in ("value_float", "value_floats", "value_int", "value_ints"):
            import numpy as np

            dtype = np.float32 if "float" in value.name else np.int64
            values = np.asarray(onnx.helper.get_attribute_value(value), dtype)
            tensor = onnx.numpy_helper.from_array(values)
        else:
            kept.append(node)
            continue
        tensor.name = node.output[0]
        model.graph.initializer.append(tensor)
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
    del model.graph.node[:]
    model.graph.node.extend(copies)


def _names(model: Any) -> set[str]:
    taken = {tensor.name for tensor in model.graph.initializer}
    taken |= {value.name for value in (*model.graph.input, *model.graph.output)}
    for node in all_nodes(model):
        taken |= {node.name, *node.input, *node.output}
    return taken
