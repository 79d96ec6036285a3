"""Columns of a table: mean and standard deviation in the graph."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest

from packager.data import Samples
from packager.errors import ModelUnsupported, UsageError
from packager.passes.inputs import as_served, attach, least_opset, prepare
from packager.recipe import ColumnsInput, ImageInput, Recipe

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from packager.model import Model

NAMES = tuple(f"c{at}" for at in range(32))
MEAN, STD = tuple(range(32)), tuple(0.5 + at for at in range(32))
PLAIN = Recipe(model="m.onnx", name="m")


def recipe_of(**settings: Any) -> Recipe:
    columns = ColumnsInput(**{"names": NAMES, "mean": MEAN, "std": STD, **settings})
    return dataclasses.replace(PLAIN, columns={"x": columns})


def rows(path: Path, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def test_columns_are_normalized_in_the_graph(make_mlp: Callable, tmp_path: Path) -> None:
    model: Model = make_mlp()
    out = tmp_path / "out.onnx"
    recipe = recipe_of()
    assert attach(model.path, model.signature, recipe, out) == model.signature
    table = np.random.default_rng(0).normal(size=(4, 32)).astype(np.float32) * 20
    wanted = rows(model.path, ((table - MEAN) / STD).astype(np.float32))
    assert np.allclose(rows(out, table), wanted, atol=1e-4)
    samples = Samples([lambda: {"x": table}], digest="", origin="", kind="csv")
    (prepared,) = prepare(samples, recipe, model.signature)
    assert np.allclose(prepared["x"], (table - MEAN) / STD, atol=1e-5)
    assert as_served(samples, recipe, model.signature) is samples


def test_columns_without_numbers_change_nothing(make_mlp: Callable, tmp_path: Path) -> None:
    model: Model = make_mlp()
    out = tmp_path / "out.onnx"
    recipe = recipe_of(mean=(), std=())
    assert least_opset(recipe) == 0
    attach(model.path, model.signature, recipe, out)
    assert out.read_bytes() == model.path.read_bytes()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"names": NAMES[:3], "mean": (), "std": ()}, "names 3 columns"),
        ({"std": (0.0, *STD[1:])}, "`input.x.columns.std` is 0 for `c0`"),
    ],
)
def test_columns_that_do_not_fit_are_refused(
    settings: dict[str, Any], message: str, make_mlp: Callable, tmp_path: Path
) -> None:
    model: Model = make_mlp()
    with pytest.raises(UsageError) as caught:
        attach(model.path, model.signature, recipe_of(**settings), tmp_path / "out.onnx")
    assert message in caught.value.message


def test_an_input_is_one_thing_and_is_there(make_mlp: Callable, tmp_path: Path) -> None:
    model: Model = make_mlp()
    recipe = dataclasses.replace(recipe_of(), images={"x": ImageInput(size=(4, 4))})
    with pytest.raises(UsageError, match="`x` is `image` and `columns` at once"):
        attach(model.path, model.signature, recipe, tmp_path / "out.onnx")
    recipe = dataclasses.replace(PLAIN, columns={"z": ColumnsInput(names=NAMES)})
    with pytest.raises(UsageError, match=r"declares `\[input\.z\.columns\]`"):
        attach(model.path, model.signature, recipe, tmp_path / "out.onnx")


def test_a_model_that_computes_something_else_at_a_later_opset_is_refused(
    make_mlp: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Model = make_mlp()
    other = onnx.load(model.path)
    for tensor in other.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        tensor.CopyFrom(onnx.numpy_helper.from_array(array[..., ::-1].copy(), tensor.name))
    monkeypatch.setattr("packager.passes.inputs.raised", lambda *_: other)
    with pytest.raises(ModelUnsupported, match="computes something else behind its pre-processing"):
        attach(model.path, model.signature, recipe_of(), tmp_path / "out.onnx")
