"""Live servers of small real models, each with everything that its bundle would hold."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from packager.bundle.render import render_server
from packager.passes.text import manifest_text
from packager.recipe import TextInput
from runtime.app import load_app
from runtime.engine import open_engine
from tests.unit.packager.bundle.test_results import WORDS, text_model
from tests.unit.runtime.live_server import BATCH, serving, tensor

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HOSTILE = "</script><img src=x onerror=\"document.title='owned'\">\u202ebad"
SIDE = {"name": "height", "min": 4, "max": 512, "opt": 16}
PHOTO = tensor("photo", "uint8", BATCH, SIDE, {**SIDE, "name": "width"}, 3)


@dataclass(frozen=True, kw_only=True)
class Release:
    """What an app and an engine need, in a folder of its own."""

    folder: str
    manifest: dict[str, Any]

    def path(self, name: str) -> str:
        return f"{self.folder}/{name}"


def value(name: str, kind: int, shape: list[Any]) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def save(
    path: Path, nodes: list[Any], inputs: list[Any], outputs: list[Any], *weights: Any
) -> None:
    graph = helper.make_graph(nodes, "g", inputs, outputs, list(weights))
    opset = helper.make_opsetid("", 18)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), path)


@contextlib.contextmanager
def served(
    folder: Path,
    library: Path,
    *,
    inputs: list[Any],
    outputs: list[Any],
    name: str = "small",
    bodies: dict[str, Any] | None = None,
    **model: Any,
) -> Iterator[str]:
    """Serve `folder/model.onnx` with everything that a bundle of it would hold."""
    manifest = {
        "name": name, "version": "1.2.0", "edgepack": "0.1.0",
        "target": {"name": "cpu-x86_64", "python": "3.8", "memory_mib": 1024},
        "engine": {"name": "onnxruntime", "version": "1.32.0", "library": str(library),
                   "artifact": str(folder / "model.onnx"), "threads": 1, "precision": "fp32"},
        "model": {"signature": {"inputs": inputs, "outputs": outputs}, **model},
        "server": {"max_json_kb": 64, "metrics": True, "openapi": True, "plain": True,
                   "page": True, "grpc": False},
        **({"bodies": bodies} if bodies else {}),
    }  # fmt: skip
    for path, content in render_server(manifest).items():
        (folder / path).parent.mkdir(exist_ok=True, parents=True)
        (folder / path).write_bytes(content)
    release = Release(folder=str(folder), manifest=manifest)
    engine = open_engine(release)
    try:
        with serving(load_app(release, engine)) as live:
            yield live.url
    finally:
        engine.close()


def echo(
    folder: Path, library: Path, dtype: str, kind: int, *dims: Any
) -> contextlib.AbstractContextManager[str]:
    """Serve a model that answers what it was sent."""
    sizes = [d if isinstance(d, int) else d["name"] for d in dims]
    node = helper.make_node("Identity", ["x"], ["y"])
    save(folder / "model.onnx", [node], [value("x", kind, sizes)], [value("y", kind, sizes)])
    return served(
        folder, library, inputs=[tensor("x", dtype, *dims)], outputs=[tensor("y", dtype, *dims)]
    )


def several_types(folder: Path, library: Path) -> contextlib.AbstractContextManager[str]:
    """Serve a model of three inputs and three outputs of different types."""
    save(
        folder / "model.onnx",
        [
            helper.make_node("Add", ["a", "b"], ["total"]),
            helper.make_node("Cast", ["k"], ["k_float"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["total", "k_float"], ["scaled"]),
            helper.make_node("Greater", ["a", "b"], ["larger"]),
            helper.make_node("ArgMax", ["a"], ["best"], axis=1, keepdims=0),
        ],
        [value("a", 1, ["n", 3]), value("b", 1, ["n", 3]), value("k", TensorProto.INT64, [1])],
        [value("scaled", 1, ["n", 3]), value("larger", 9, ["n", 3]), value("best", 7, ["n"])],
    )
    rows = {**BATCH, "name": "rows"}
    inputs = [tensor("a", "float32", rows, 3), tensor("b", "float32", rows, 3)]
    outputs = [tensor("scaled", "float32", rows, 3), tensor("larger", "bool", rows, 3)]
    return served(
        folder, library, inputs=[*inputs, tensor("k", "int64", 1)],
        outputs=[*outputs, tensor("best", "int64", rows)], name="several",
    )  # fmt: skip


def colour_photos(folder: Path, library: Path) -> contextlib.AbstractContextManager[str]:
    """Serve a classifier of photos by their mean colour, whose first label is hostile."""
    save(
        folder / "model.onnx",
        [
            helper.make_node("Cast", ["photo"], ["float"], to=1),
            helper.make_node("ReduceMean", ["float", "axes"], ["means"], keepdims=0),
            helper.make_node("Softmax", ["means"], ["scores"], axis=1),
        ],
        [value("photo", TensorProto.UINT8, ["n", "h", "w", 3])],
        [value("scores", 1, ["n", 3])],
        numpy_helper.from_array(np.array([1, 2], np.int64), "axes"),
    )
    (folder / "labels.txt").write_text(f"{HOSTILE}\ngreen\nblue\n")
    return served(
        folder, library, inputs=[PHOTO], outputs=[tensor("scores", "float32", BATCH, 3)],
        name="colours", images={"photo": {"size": [16, 16]}}, labels={"scores": "labels.txt"},
    )  # fmt: skip


def table_rows(folder: Path, library: Path) -> contextlib.AbstractContextManager[str]:
    """Serve a classifier of rows of two named columns: which one is the larger."""
    node = helper.make_node("Softmax", ["x"], ["y"], axis=1)
    save(folder / "model.onnx", [node], [value("x", 1, ["n", 2])], [value("y", 1, ["n", 2])])
    (folder / "labels.txt").write_text("wide\nhigh\n")
    return served(
        folder, library, inputs=[tensor("x", "float32", BATCH, 2)],
        outputs=[tensor("y", "float32", BATCH, 2)], name="rows", bodies={"text/csv": {}},
        columns={"x": {"names": ["width", "height"]}}, labels={"y": "labels.txt"},
    )  # fmt: skip


def loudness(folder: Path, library: Path) -> contextlib.AbstractContextManager[str]:
    """Serve the mean magnitude of a sound of 8 kHz."""
    save(
        folder / "model.onnx",
        [
            helper.make_node("Abs", ["x"], ["size"]),
            helper.make_node("ReduceMean", ["size", "axes"], ["y"], keepdims=0),
        ],
        [value("x", 1, ["n", "samples"])],
        [value("y", 1, ["n"])],
        numpy_helper.from_array(np.array([1], np.int64), "axes"),
    )
    samples = {"name": "samples", "min": 1, "max": 80_000, "opt": 8000}
    return served(
        folder, library, inputs=[tensor("x", "float32", BATCH, samples)],
        outputs=[tensor("y", "float32", BATCH)], name="loudness", bodies={"audio/wav": {}},
        audio={"x": {"sample_rate": 8000, "window": None}},
    )  # fmt: skip


def colour_words(folder: Path, library: Path) -> contextlib.AbstractContextManager[str]:
    """Serve a counter of the words red, green and blue in a text."""
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("".join(f"{word}\n" for word in WORDS))
    (folder / "labels.txt").write_text("red\ngreen\nblue\n")
    signature = text_model(folder).signature
    text = TextInput(tokenizer=vocabulary, ids="ids", mask="mask", max_length=8)
    return served(
        folder, library, **signature.to_json(), name="words", bodies={"text/plain": {}},
        text=manifest_text(text, signature, "vocab.txt"), labels={"colours": "labels.txt"},
    )  # fmt: skip
