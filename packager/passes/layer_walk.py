"""Runs a graph over samples from layer to layer, each layer mended before the next one runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from packager.checks.latency import open_session

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    Values = dict[str, NDArray[Any]]


class LayerWalk:
    """A walk through a graph that computes everything once, however many layers it stops at.

    Between two stops only the tensors that later nodes read are held, for every sample.

    Args:
        model: `onnx.ModelProto` without branches and loops. What is changed in its initializers
            holds for the stops that follow.
        samples: Inputs by name.
        workdir: For the pieces of the graph.

    Attributes:
        values: For each sample the tensors that are held, by name.
    """

    def __init__(self, model: Any, samples: Sequence[Mapping[str, Any]], workdir: Path) -> None:
        self._model = model
        self._workdir = workdir
        self._pending = list(model.graph.node)
        self._made = {name: node for node in self._pending for name in node.output if name}
        self._constants = {tensor.name for tensor in model.graph.initializer}
        self.values: list[Values] = [dict(sample) for sample in samples]

    def run_to(self, tensor: str) -> None:
        """Compute a tensor for every sample; what `values` then holds may be replaced."""
        if tensor in self.values[0]:
            return
        nodes = self._needed(tensor)
        chosen = {id(node) for node in nodes}
        self._pending = [node for node in self._pending if id(node) not in chosen]
        made = {name for node in nodes for name in node.output if name}
        read = {name for node in nodes for name in node.input if name}
        later = {name for node in self._pending for name in node.input if name}
        outputs = sorted(made & (later | {tensor}))
        inputs = sorted(read - made - self._constants)
        session = self._session(nodes, inputs, outputs)
        for held in self.values:
            found = session.run(outputs, {name: held[name] for name in inputs})
            held.update(zip(outputs, found, strict=True))
            for name in held.keys() - later - {tensor}:
                del held[name]

    def _needed(self, tensor: str) -> list[Any]:
        """Return what has not run yet of the nodes that lead to a tensor, in the graph's order."""
        wanted: dict[int, Any] = {}
        names = [tensor]
        while names:
            name = names.pop()
            node = self._made.get(name)
            if node is None or name in self.values[0] or id(node) in wanted:
                continue
            wanted[id(node)] = node
            names.extend(node.input)
        return [node for node in self._pending if id(node) in wanted]

    def _session(self, nodes: Sequence[Any], inputs: Sequence[str], outputs: Sequence[str]) -> Any:
        import onnx

        values = self.values[0]
        piece = onnx.ModelProto(ir_version=self._model.ir_version)
        piece.opset_import.extend(self._model.opset_import)
        piece.functions.extend(self._model.functions)
        piece.graph.name = "piece"
        piece.graph.node.extend(nodes)
        read = {name for node in nodes for name in node.input}
        piece.graph.initializer.extend(t for t in self._model.graph.initializer if t.name in read)
        for name in inputs:
            kind = onnx.helper.np_dtype_to_tensor_dtype(values[name].dtype)
            shape = [None] * values[name].ndim
            piece.graph.input.append(onnx.helper.make_tensor_value_info(name, kind, shape))
        piece.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
        path = self._workdir / "piece.onnx"
        try:
            onnx.save(piece, path)
            # One thread: how a sum is split among threads could change its last bits.
            return open_session(path, 1)
        finally:
            path.unlink(missing_ok=True)
