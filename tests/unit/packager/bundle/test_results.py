"""Bundles whose answers are words: texts in, labels out, on every interpreter."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from packager.artifact import Candidate
from packager.backends.onnxruntime import build
from packager.bundle.assemble import assemble
from packager.bundle.golden import make_golden
from packager.bundle.local import predict
from packager.bundle.results import make_readable
from packager.data import Samples
from packager.errors import UsageError
from packager.model import Dim, Model, Provenance, Signature, TensorSpec
from packager.passes.inputs import as_served, prepare
from packager.recipe import BoxOutputs, OutputSteps, Recipe, TextInput
from runtime.app import App
from runtime.engine import open_engine
from runtime.errors import BadRequest
from runtime.release import open_release
from runtime.results import say
from runtime.tensor import Tensor
from tests.unit.conftest import this_target

if TYPE_CHECKING:
    from collections.abc import Iterator

    from packager.bundle.assemble import Bundle
    from packager.bundle.library import FetchedLibrary

BATCH = Dim(name="batch", min=1, max=4, opt=1)
TOKENS = Dim(name="tokens", min=1, max=16, opt=4)
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "red", "green", "##ish", "blue", "!"]


def spec(name: str, dtype: str, *dims: Dim | int) -> TensorSpec:
    shape = tuple(dim if isinstance(dim, Dim) else Dim(size=dim) for dim in dims)
    return TensorSpec(name=name, dtype=dtype, shape=shape)


def text_model(folder: Path) -> Model:
    """Return ids, mask [batch, tokens] → colours [batch, 3]: how often each word occurs."""
    table = np.zeros((len(WORDS), 3), np.float32)
    table[4, 0] = table[5, 1] = table[7, 2] = 1
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("Cast", ["mask"], ["shown"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["shown", "last"], ["column"]),
        helper.make_node("Mul", ["rows", "column"], ["counted"]),
        helper.make_node("ReduceSum", ["counted", "one"], ["colours"], keepdims=0),
    ]
    weights = [
        numpy_helper.from_array(table, "table"),
        numpy_helper.from_array(np.int64([2]), "last"),
        numpy_helper.from_array(np.int64([1]), "one"),
    ]
    shape = ["batch", "tokens"]
    inputs = [helper.make_tensor_value_info(n, TensorProto.INT64, shape) for n in ("ids", "mask")]
    outputs = [helper.make_tensor_value_info("colours", TensorProto.FLOAT, ["batch", 3])]
    return saved(
        folder,
        helper.make_graph(nodes, "g", inputs, outputs, weights),
        (spec("ids", "int64", BATCH, TOKENS), spec("mask", "int64", BATCH, TOKENS)),
        spec("colours", "float32", BATCH, 3),
    )


def saved(folder: Path, graph: Any, inputs: tuple[TensorSpec, ...], *outputs: TensorSpec) -> Model:
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    path = folder / "model.onnx"
    onnx.save(proto, path)
    return Model(
        path=path, name="m", signature=Signature(inputs=inputs, outputs=outputs), opset=13,
        ir_version=8, provenance=Provenance(kind="onnx", source="m.onnx", source_sha256="0" * 64),
    )  # fmt: skip


def identity(folder: Path, *shape: int) -> Model:
    """Return x → y, the same numbers."""
    nodes = [helper.make_node("Neg", ["x"], ["n"]), helper.make_node("Neg", ["n"], ["y"])]
    values = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape])] for name in "xy"
    ]
    x, y = (spec(name, "float32", BATCH, *shape) for name in "xy")
    return saved(folder, helper.make_graph(nodes, "g", *values), (x,), y)


def bundle_of(model: Model, recipe: Recipe, library: FetchedLibrary, folder: Path) -> Bundle:
    chosen = Candidate(
        name="fp32", path=model.path, size_bytes=1, verdict="chosen", reason="", scheme=""
    )
    (folder / "work").mkdir()
    artifact = build(model, (chosen,), this_target(), recipe, folder / "work")
    golden = make_golden(
        artifact, samples=None, seed=0, min_cosine=0.99, workdir=folder / "work", recipe=recipe
    )
    return assemble(
        artifact, target=this_target(), recipe=recipe, golden=golden, library=library,
        out_dir=folder,
    )  # fmt: skip


@pytest.fixture(scope="module")
def text_recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    folder = tmp_path_factory.mktemp("recipe")
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in WORDS))
    (folder / "colours.txt").write_text("red\ngreen\nblue\n")
    return Recipe(
        model="m.onnx", name="colours",
        text=TextInput(tokenizer=folder / "vocab.txt", ids="ids", mask="mask", max_length=8),
        outputs={"colours": OutputSteps(top_k=2, labels=folder / "colours.txt")},
    )  # fmt: skip


@pytest.fixture(scope="module")
def text_bundle(
    text_recipe: Recipe, plain_library: FetchedLibrary, tmp_path_factory: pytest.TempPathFactory
) -> Bundle:
    folder = tmp_path_factory.mktemp("text")
    return bundle_of(text_model(folder), text_recipe, plain_library, folder)


@pytest.fixture
def ask(text_bundle: Bundle) -> Iterator[Any]:
    """Return a function from the data of `/predict` to its result."""
    with open_release(str(text_bundle.path), True) as release:
        engine = open_engine(release, 1)
        app = App(release, engine)
        predict = app._endpoints()["predict"].act
        yield lambda data: json.loads(predict(json.dumps({"data": data}).encode()).body)["result"]
        engine.close()


def test_a_text_or_several_are_answered_with_labels(ask: Any) -> None:
    assert ask("Blue, GREEN blue!") == {
        "colours": [[2.0, 1.0]], "colours_classes": [[2, 1]],
        "colours_labels": [["blue", "green"]],
    }  # fmt: skip
    several = ask(["red red red red red red red red red", "greenish red red"])
    assert several["colours"] == [[6.0, 0.0], [2.0, 1.0]]
    assert several["colours_labels"] == [["red", "green"], ["red", "green"]]


def test_tokens_are_taken_as_before(ask: Any) -> None:
    assert ask({"ids": [[7, 7]], "mask": [[1, 0]]})["colours"] == [[1.0, 0.0]]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (["a"] * 5, "there are 5 texts where `ids` takes 4 at most"),
        ("\ud800", "lone surrogate"),
        ([], "has to be an object with the inputs"),
        (["a", 1], "has to be an object with the inputs"),
    ],
)
def test_texts_that_cannot_be_answered_are_refused(data: Any, message: str, ask: Any) -> None:
    with pytest.raises(BadRequest, match=message):
        ask(data)


def test_samples_of_text_are_the_devices_tokens(text_recipe: Recipe, tmp_path: Path) -> None:
    signature = text_model(tmp_path).signature
    texts = np.array(["Greenish!", "red blue green red blue green red"])
    samples = Samples([lambda: {"text": texts}], digest="", origin="", kind="csv")
    for changed in (prepare, as_served):
        (sample,) = changed(samples, text_recipe, signature)
        assert sample["ids"].tolist() == [[2, 5, 6, 8, 3, 0, 0, 0], [2, 4, 7, 5, 4, 7, 5, 3]]
        assert sample["mask"].tolist() == [[1, 1, 1, 1, 1, 0, 0, 0], [1] * 8]


def test_the_interface_says_that_texts_are_taken(text_bundle: Bundle) -> None:
    with open_release(str(text_bundle.path), True) as release:
        document = Path(release.path("server/openapi.json")).read_text()
        schemas = json.loads(document)["components"]["schemas"]
        assert release.manifest["model"]["text"]["max_length"] == 8
    assert schemas["PredictRequest"]["properties"]["data"]["anyOf"][0] == {"type": "string"}
    result = schemas["PredictAnswer"]["properties"]["result"]
    assert set(result["required"]) == {"colours", "colours_classes", "colours_labels"}


def test_predict_takes_a_file_of_texts_on_every_python(
    text_bundle: Bundle, old_python: Path, tmp_path: Path
) -> None:
    (tmp_path / "in.txt").write_text("blue green blue\n\nRed\n")
    done = subprocess.run(
        [old_python, "-S", text_bundle.path, "predict", "-i", "in.txt"],
        capture_output=True, text=True, check=False, cwd=tmp_path,
        env={"HOME": str(tmp_path / "home")},
    )  # fmt: skip
    assert done.stderr == ""
    assert done.stdout.split("\n") == [
        "in.txt:",
        "  colours float32[2, 2]",
        "    blue   2",
        "    green  1",
        "  colours float32[2, 2]",
        "    red    1",
        "    green  0",
        "",
    ]


def test_greedily_decoded_rows_are_shown_as_text(
    plain_library: FetchedLibrary, tmp_path: Path
) -> None:
    (tmp_path / "letters.txt").write_text("a\n \nb\n")  # the blank's own line is left out
    steps = OutputSteps(ctc=True, blank=3, labels=tmp_path / "letters.txt")
    recipe = Recipe(model="m.onnx", name="ocr", outputs={"y": steps})
    bundle = bundle_of(identity(tmp_path, 6, 4), recipe, plain_library, tmp_path)
    frames = np.eye(4, dtype=np.float32)[[[0, 0, 3, 0, 1, 2], [2, 2, 2, 2, 3, 3]]]
    np.savez(tmp_path / "in.npz", x=frames)
    shown = predict(
        bundle.path, [tmp_path / "in.npz"], output=None, top=5, cache_dir=tmp_path / "cache",
        as_json=False,
    )  # fmt: skip
    assert shown == "in.npz:\n  y int64[2, 6]: aa b\n  y int64[2, 6]: b\n"
    with open_release(str(bundle.path), True) as release:
        engine = open_engine(release, 1)
        body = json.dumps({"data": frames.tolist()}).encode()
        result = json.loads(App(release, engine)._endpoints()["predict"].act(body).body)["result"]
        engine.close()
    assert result == {
        "y": [[0, 0, 1, 2, -1, -1], [2, -1, -1, -1, -1, -1]], "y_text": ["aa b", "b"],
    }  # fmt: skip


def test_boxes_are_shown_with_their_labels(plain_library: FetchedLibrary, tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    boxes = BoxOutputs(boxes="y", labels=tmp_path / "classes.txt", classes_first=False)
    recipe = Recipe(model="m.onnx", name="boxes", boxes=boxes)
    bundle = bundle_of(identity(tmp_path, 3, 6), recipe, plain_library, tmp_path)
    places = [[50, 50, 20, 10, 0.1, 0.9], [51, 50, 20, 10, 0.2, 0.8], [9, 9, 4, 4, 0.5, 0]]
    np.savez(tmp_path / "in.npz", x=np.float32([places]))
    options = {"output": None, "top": 5, "cache_dir": tmp_path / "cache"}
    shown = predict(bundle.path, [tmp_path / "in.npz"], **options, as_json=False)
    assert shown == (
        "in.npz:\n  boxes float32[2, 4]\n    dog  0.9  [40, 45, 60, 55]\n"
        "    cat  0.5  [7, 7, 11, 11]\n"
    )
    document = json.loads(predict(bundle.path, [tmp_path / "in.npz"], **options, as_json=True))
    (found,) = document["results"]
    assert [box["label"] for box in found["outputs"]["boxes"]["found"]] == ["dog", "cat"]
    with open_release(str(bundle.path), True) as release:
        engine = open_engine(release, 1)
        body = json.dumps({"data": [places]}).encode()
        result = json.loads(App(release, engine)._endpoints()["predict"].act(body).body)["result"]
        assert release.manifest["golden"]["decided"] == ["boxes", "scores", "classes", "batch"]
        engine.close()
    assert result["labels"] == ["dog", "cat"]
    assert result["classes"] == [1, 0]


@pytest.mark.parametrize(
    ("steps", "lines", "message"),
    [
        ({"top_k": 2}, 3, "has 3 lines for 4 classes of `y`"),
        ({}, 5, "has 5 lines for 4 classes of `y`"),
        ({"ctc": True}, 2, "has 2 lines for 4 classes of `y`"),
    ],
)
def test_labels_must_be_as_many_as_the_classes(
    steps: dict[str, Any], lines: int, message: str, tmp_path: Path
) -> None:
    (tmp_path / "labels.txt").write_text("word\n" * lines)
    settings = OutputSteps(**steps, labels=tmp_path / "labels.txt")
    recipe = Recipe(model="m.onnx", name="m", outputs={"y": settings})
    with pytest.raises(UsageError) as caught:
        make_readable(recipe, identity(tmp_path, 6, 4).signature)
    assert message in caught.value.message


def test_labels_of_boxes_are_counted_without_the_corners(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("word\n" * 3)
    boxes = BoxOutputs(boxes="y", labels=tmp_path / "labels.txt", classes_first=False)
    recipe = Recipe(model="m.onnx", name="m", boxes=boxes)
    signature = identity(tmp_path, 9, 6).signature
    with pytest.raises(UsageError, match="has 3 lines for 2 classes"):
        make_readable(recipe, signature)
    objects = dataclasses.replace(recipe, boxes=dataclasses.replace(boxes, objectness=True))
    with pytest.raises(UsageError, match="has 3 lines for 1 classes"):
        make_readable(objects, signature)


def test_outputs_with_strange_names_have_files_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("word\n" * 4)
    steps = OutputSteps(labels=tmp_path / "labels.txt")
    outputs = tuple(spec(name, "float32", BATCH, 4) for name in ("a/b", "a:b"))
    recipe = Recipe(model="m.onnx", name="m", outputs=dict.fromkeys(("a/b", "a:b"), steps))
    readable = make_readable(recipe, Signature(inputs=(), outputs=outputs))
    assert readable.fields["labels"] == {"a/b": "labels/output.txt", "a:b": "labels/output-1.txt"}
    assert len(readable.entries) == 2


def test_scores_of_classes_are_answered_with_the_best_ones_label(
    plain_library: FetchedLibrary, tmp_path: Path
) -> None:
    (tmp_path / "classes.txt").write_text("red\ngreen\nblue\n")
    settings = OutputSteps(labels=tmp_path / "classes.txt")
    recipe = Recipe(model="m.onnx", name="scores", outputs={"y": settings})
    bundle = bundle_of(identity(tmp_path, 3), recipe, plain_library, tmp_path)
    body = b'{"data": [[1, 3, 2], [5, 5, 4]]}'
    with open_release(str(bundle.path), True) as release:
        engine = open_engine(release, 1)
        answer = json.loads(App(release, engine)._endpoints()["predict"].act(body).body)
        engine.close()
        document = json.loads(Path(release.path("server/openapi.json")).read_text())
    assert answer["result"] == {
        "y": [[1.0, 3.0, 2.0], [5.0, 5.0, 4.0]], "y_labels": ["green", "red"],
    }  # fmt: skip
    schema = {"$ref": "#/components/schemas/PredictAnswer", "components": document["components"]}
    jsonschema.Draft202012Validator(schema).validate(answer)


def test_a_row_without_any_number_has_no_label_and_a_class_without_a_label_its_number() -> None:
    values = [math.nan, math.nan, 1.0, math.nan, 0.0, math.inf]
    scores = Tensor.from_flat(values, (3, 2), "float32", allow_non_finite=True)
    assert say((), {"y": scores}, scored={"y": ["red"]}) == {"y_labels": [None, "red", "1"]}


def test_of_booleans_all_that_hold_are_said() -> None:
    held = Tensor.from_flat([False, True, True, False, False, False], (2, 3), "bool")
    said = say((), {"y": held}, scored={"y": ["red", "green", "blue"]})
    assert said == {"y_labels": [["green", "blue"], []]}
