"""Small real models as ONNX, built by hand in milliseconds, and data for them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from packager import process
from packager.data import Samples
from packager.model import Dim, Model, Provenance, Signature, TensorSpec
from packager.passes.contract import PassContext
from packager.target import find_target
from tests import warm_torch as warm

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator
    from pathlib import Path

BATCH = Dim(name="batch", min=1, max=8, opt=1)
KINDS = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64, "uint8": TensorProto.UINT8}


class Notes:
    """A reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def stage(self, text: str) -> None:
        self.said.append(text)

    def note(self, text: str) -> None:
        self.said.append(text)

    def progress(self, done: int, total: int, text: str) -> None:
        pass


@dataclass
class Drawing:
    """A graph under construction; weights come from one seeded generator."""

    opset: int = 17
    nodes: list[Any] = field(default_factory=list)
    weights: list[Any] = field(default_factory=list)
    random: Any = field(default_factory=lambda: np.random.default_rng(7))

    def add(self, operator: str, *inputs: str, out: str = "", **attributes: Any) -> str:
        out = out or f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [out], name=f"n_{out}", **attributes))
        return out

    def weight(self, *shape: int, scale: float = 1.0) -> str:
        values = self.random.standard_normal(shape) * scale / np.sqrt(max(np.prod(shape[1:]), 1))
        return self.constant(values.astype(np.float32))

    def constant(self, values: Any) -> str:
        name = f"w_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def save(self, path: Path, inputs: tuple[TensorSpec, ...], *outputs: TensorSpec) -> Model:
        def declared(spec: TensorSpec) -> Any:
            shape = [d.size if d.size is not None else d.name for d in spec.shape]
            return helper.make_tensor_value_info(spec.name, KINDS[spec.dtype], shape)

        graph = helper.make_graph(
            self.nodes, "g", list(map(declared, inputs)), list(map(declared, outputs)), self.weights
        )
        proto = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8
        )
        onnx.checker.check_model(proto)
        onnx.save(proto, path)
        return Model(
            path=path,
            name=path.stem,
            signature=Signature(inputs=inputs, outputs=outputs),
            opset=self.opset,
            ir_version=8,
            provenance=Provenance(kind="onnx", source=path.name, source_sha256="0" * 64),
        )


def spec(name: str, dtype: str, *shape: int | Dim) -> TensorSpec:
    dims = tuple(axis if isinstance(axis, Dim) else Dim(size=axis) for axis in shape)
    return TensorSpec(name=name, dtype=dtype, shape=dims)


@pytest.fixture
def drawing() -> type[Drawing]:
    return Drawing


@pytest.fixture
def make_spec() -> Callable[..., TensorSpec]:
    return spec


@pytest.fixture
def batch() -> Dim:
    return BATCH


@pytest.fixture
def notes() -> Notes:
    return Notes()


@pytest.fixture
def make_cnn(tmp_path: Path) -> Callable[..., Model]:
    """Make `image` float32 [batch, 3, 16, 16] → `scores` [batch, 10], with BatchNorm."""

    def make(*, layers: int = 3, channels: int = 16, opset: int = 17, side: int = 16) -> Model:
        d = Drawing(opset=opset)
        value, width = "image", 3
        for _ in range(layers):
            value = d.add("Conv", value, d.weight(channels, width, 3, 3), pads=[1, 1, 1, 1])
            ones = d.constant(np.full(channels, 1.1, np.float32))
            shift = d.constant(np.full(channels, 0.1, np.float32))
            value = d.add("BatchNormalization", value, ones, shift, shift, ones)
            value, width = d.add("Relu", value), channels
        value = d.add("Flatten", d.add("GlobalAveragePool", value))
        bias = d.constant(np.linspace(-1, 1, 10).astype(np.float32))
        d.add("Gemm", value, d.weight(channels, 10, scale=3.0), bias, out="scores")
        return d.save(
            tmp_path / f"cnn-{layers}-{opset}.onnx",
            (spec("image", "float32", BATCH, 3, side, side),),
            spec("scores", "float32", BATCH, 10),
        )

    return make


@pytest.fixture
def make_mlp(tmp_path: Path) -> Callable[..., Model]:
    """Make `x` float32 [batch, 32] → `y` [batch, 8]."""

    def make(*, width: int = 64, opset: int = 17) -> Model:
        d = Drawing(opset=opset)
        hidden = d.add("Relu", d.add("MatMul", "x", d.weight(32, width)))
        hidden = d.add("Relu", d.add("MatMul", hidden, d.weight(width, width)))
        d.add("MatMul", hidden, d.weight(width, 8), out="y")
        return d.save(
            tmp_path / f"mlp-{opset}.onnx",
            (spec("x", "float32", BATCH, 32),),
            spec("y", "float32", BATCH, 8),
        )

    return make


@pytest.fixture
def make_samples() -> Callable[..., Samples]:
    """Make `count` random float samples for a model with one input, the batch at 1."""

    def make(model: Model, count: int = 12, *, seed: int = 0) -> Samples:
        (wanted,) = model.signature.inputs
        shape = [dim.size or 1 for dim in wanted.shape]

        def load(index: int) -> dict[str, Any]:
            values = np.random.default_rng([seed, index]).standard_normal(shape)
            return {wanted.name: values.astype(np.float32)}

        return Samples(
            [lambda index=index: load(index) for index in range(count)],
            digest=f"{seed}-{count}",
            origin=f"{count} random samples",
            kind="npz",
        )

    return make


@pytest.fixture
def make_context(tmp_path: Path, notes: Notes) -> Callable[..., PassContext]:
    """Make a pass context whose probes are the first samples."""

    def make(
        samples: Samples, *, target: str = "cpu-x86_64-vnni", data: bool = True
    ) -> PassContext:
        work = tmp_path / "work"
        work.mkdir(exist_ok=True)
        return PassContext(
            target=find_target(target),
            samples=samples if data else None,
            probes=[samples[0], samples[1]],
            workdir=work,
            reporter=notes,
        )

    return make


@pytest.fixture(scope="session")
def _torch_server() -> Iterator[subprocess.Popen[str]]:
    with warm.serving() as server:
        yield server


@pytest.fixture
def warm_torch(_torch_server: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Fork the children that import torch from a process which has imported it."""
    monkeypatch.setattr(process, "subprocess", warm.warmed(process.subprocess, _torch_server))
