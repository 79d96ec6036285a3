"""The command line without a process of its own, and small models for it to compress."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.conftest import Finished

SCORES = 10


class Here:
    """Runs `edgepack` in this process: heavy packages are imported once for all tests.

    Every run has the cache of the whole session, unless it names another.
    """

    def __init__(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, cache: Path
    ) -> None:
        self._capsys = capsys
        self._monkeypatch = monkeypatch
        self.cache = cache

    def __call__(self, *arguments: str | Path, cache: Path | None = None) -> Finished:
        """Run a command to its end, as `packager.cli.main` ends it."""
        from packager.cli.main import main
        from tests.conftest import Finished

        argv = ("edgepack", *map(str, arguments), "--cache-dir", str(cache or self.cache))
        self._monkeypatch.setattr(sys, "argv", list(argv))
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        said = self._capsys.readouterr()
        code = left.value.code
        assert isinstance(code, int)
        return Finished(argv=argv, returncode=code, stdout=said.out, stderr=said.err)


@pytest.fixture(scope="session")
def cli_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a cache for models that many tests import."""
    return tmp_path_factory.mktemp("cli-cache")


@pytest.fixture
def here(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    cli_cache: Path,
    tmp_path: Path,
) -> Here:
    """Return the command line in this process, in a folder of the test's own."""
    from tests.conftest import ROOT

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # for the children that run the user's code
    return Here(capsys, monkeypatch, cli_cache)


@dataclass
class Sketch:
    """A graph `x` float32 [batch, width] → `y` [batch, 10] under construction."""

    width: int = 64
    opset: int = 17
    nodes: list[Any] = field(default_factory=list)
    weights: list[Any] = field(default_factory=list)
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(7))

    def add(self, operator: str, *inputs: str, out: str = "", **attributes: Any) -> str:
        """Add a node and return its output."""
        out = out or f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [out], name=f"n_{out}", **attributes))
        return out

    def weight(self, rows: int, columns: int) -> str:
        """Add a matrix that keeps the size of what passes through it."""
        values = self.random.standard_normal((rows, columns)) / np.sqrt(rows)
        return self.constant(values.astype(np.float32))

    def constant(self, values: Any) -> str:
        """Add a constant."""
        name = f"w_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def save(self, path: Path) -> Path:
        """Write the model, checked."""
        graph = helper.make_graph(
            self.nodes, "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", self.width])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", SCORES])],
            self.weights,
        )  # fmt: skip
        opsets = [helper.make_opsetid("", self.opset)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
        onnx.checker.check_model(model)
        onnx.save(model, path)
        return path


@pytest.fixture(scope="session")
def sketch() -> type[Sketch]:
    return Sketch


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of models: `plain.onnx` keeps its answers in int8, `touchy.onnx` does not.

    Both have more than 50,000 weights, so that they are quantized where nothing is timed.
    """
    folder = tmp_path_factory.mktemp("models")
    plain = Sketch()
    hidden = plain.add("Relu", plain.add("MatMul", "x", plain.weight(64, 256)))
    hidden = plain.add("Relu", plain.add("MatMul", hidden, plain.weight(256, 256)))
    plain.add("MatMul", hidden, plain.weight(256, SCORES), out="y")
    plain.save(folder / "plain.onnx")

    # One layer reads a channel that is a thousand times larger than the rest.
    touchy = Sketch()
    spread = np.ones(64, np.float32)
    spread[0] = 1000.0
    hidden = touchy.add("Relu", touchy.add("MatMul", "x", touchy.weight(64, 256)))
    wide = touchy.add("MatMul", hidden, touchy.weight(256, 64))
    wide = touchy.add("Mul", wide, touchy.constant(spread))
    weight = touchy.random.standard_normal((64, 256)).astype(np.float32) / 8
    weight[0] /= 1e6
    hidden = touchy.add("Relu", touchy.add("MatMul", wide, touchy.constant(weight)))
    for _ in range(2):
        hidden = touchy.add("Relu", touchy.add("MatMul", hidden, touchy.weight(256, 256)))
    touchy.add("MatMul", hidden, touchy.weight(256, SCORES), out="y")
    touchy.save(folder / "touchy.onnx")
    return folder


def labelled(model: Path, count: int, *, seed: int) -> dict[str, Any]:
    """Return `x` float32 [count, 64] and under `label` the classes that the model gives."""
    import onnxruntime

    rows = np.random.default_rng(seed).standard_normal((count, 64)).astype(np.float32)
    answers = onnxruntime.InferenceSession(model).run(None, {"x": rows})[0]
    return {"x": rows, "label": answers.argmax(axis=1)}


@pytest.fixture(scope="session")
def data(models: Path) -> Path:
    """Return a folder with `MODEL-calibration.npz`, 40 rows, and `MODEL-eval.npz`, 100 labelled."""
    for name in ("plain", "touchy"):
        calibration = labelled(models / f"{name}.onnx", 40, seed=1)
        np.savez(models / f"{name}-calibration.npz", x=calibration["x"])
        np.savez(models / f"{name}-eval.npz", **labelled(models / f"{name}.onnx", 100, seed=2))
    return models


@pytest.fixture(scope="session")
def search_options(data: Path) -> Callable[..., tuple[str | Path, ...]]:
    """Return a function that names a model with its data, for a target that is not timed here."""

    def options(name: str, *, target: str = "cpu-arm64") -> tuple[str | Path, ...]:
        return (
            data / f"{name}.onnx", "-t", target, "-c", data / f"{name}-calibration.npz",
            "--eval", data / f"{name}-eval.npz",
        )  # fmt: skip

    return options


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Path]:
    """Return an output folder with a file in it, which must be as it was when the test ends."""
    folder = tmp_path / "kept"
    folder.mkdir()
    (folder / "earlier.txt").write_text("of an earlier build")
    yield folder
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        "earlier.txt": b"of an earlier build"
    }
