"""Builds a row of ONNX nodes, and runs it alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from packager.checks.bfloat16 import with_bfloat16
from packager.model import numpy_dtype

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from packager.model import TensorSpec

    Arrays = Mapping[str, NDArray[Any]]

LEAST_IR: Final = 8
# From here on the axes of a reduction are an input.
_AXES_AS_INPUT: Final = 18


@dataclass(kw_only=True)
class Steps:
    """Nodes and constants under one prefix, for one version of the default operator domain."""

    prefix: str
    opset: int
    nodes: list[Any] = field(default_factory=list)
    constants: list[Any] = field(default_factory=list)

    def add(self, operator: str, inputs: Sequence[str], result: str = "", **attributes: Any) -> str:
        """Append a node with one output and return that one's name."""
        return self.add_many(operator, inputs, 1, [result], **attributes)[0]

    def add_many(
        self,
        operator: str,
        inputs: Sequence[str],
        count: int,
        results: Sequence[str] = (),
        **attributes: Any,
    ) -> list[str]:
        """Append a node and return its `count` outputs, named by us where `results` does not."""
        import onnx

        name = f"{self.prefix}.{len(self.nodes)}.{operator}"
        given = [*results, *[""] * (count - len(results))]
        made = [name if count == 1 else f"{name}.{at}" for at in range(count)]
        outputs = [word or other for word, other in zip(given, made, strict=True)]
        self.nodes.append(
            onnx.helper.make_node(operator, list(inputs), outputs, name=name, **attributes)
        )
        return outputs

    def cast(self, value: str, dtype: str, result: str = "") -> str:
        """Append a conversion to one of our dtypes."""
        return self.add("Cast", [value], result, to=tensor_type(dtype))

    def reduce(self, operator: str, value: str, axes: Sequence[int], *, keepdims: bool) -> str:
        """Append a reduction; where its axes stand depends on the opset."""
        if self.opset >= _AXES_AS_INPUT or operator == "ReduceSum":
            word = "axes_" + "_".join(map(str, axes))
            return self.add(operator, [value, self.ints(word, axes)], keepdims=int(keepdims))
        return self.add(operator, [value], axes=list(axes), keepdims=int(keepdims))

    def ints(self, name: str, values: Sequence[int]) -> str:
        """Return the name of an int64 vector, made once."""
        import numpy as np

        return self.constant(name, np.asarray(values, np.int64))

    def number(self, name: str, value: float, dtype: str = "float32") -> str:
        """Return the name of a scalar, made once."""
        import numpy as np

        return self.constant(name, np.asarray(value).astype(numpy_dtype(dtype)))

    def constant(self, name: str, array: NDArray[Any]) -> str:
        """Return the name of a constant, made once."""
        import onnx

        full = f"{self.prefix}.{name}"
        if full not in {tensor.name for tensor in self.constants}:
            self.constants.append(onnx.numpy_helper.from_array(array, full))
        return full


def compile_steps(
    steps: Steps, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> Callable[[Arrays], dict[str, NDArray[Any]]]:
    """Return a function that runs the steps alone, on one thread."""
    import onnx
    import onnxruntime

    graph = onnx.helper.make_graph(
        steps.nodes,
        "steps",
        [value_info(spec) for spec in inputs],
        [value_info(spec) for spec in outputs],
        steps.constants,
    )
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", steps.opset)], ir_version=LEAST_IR
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = with_bfloat16(
        onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    )
    names = [spec.name for spec in outputs]
    wanted = [spec.name for spec in inputs]

    def run(feeds: Arrays) -> dict[str, NDArray[Any]]:
        got = session.run(names, {name: feeds[name] for name in wanted})
        return dict(zip(names, got, strict=True))

    return run


def value_info(spec: TensorSpec) -> Any:
    """Return a spec as ONNX declares an input or output."""
    import onnx

    shape = [dim.size if dim.size is not None else dim.name for dim in spec.shape]
    return onnx.helper.make_tensor_value_info(spec.name, tensor_type(spec.dtype), shape)


def tensor_type(dtype: str) -> int:
    """Return ONNX's number of one of our dtypes."""
    import onnx

    if dtype == "string":
        return int(onnx.TensorProto.STRING)
    return int(onnx.helper.np_dtype_to_tensor_dtype(numpy_dtype(dtype)))
