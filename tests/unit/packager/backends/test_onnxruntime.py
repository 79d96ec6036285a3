"""The artifact for ONNX Runtime: what the target reads, reproducible bytes, photos."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

from packager.artifact import Candidate
from packager.backends.onnxruntime import build
from packager.checks.latency import open_session
from packager.errors import BudgetMissed, ModelUnsupported, UsageError
from packager.recipe import ImageInput, Recipe
from packager.target import find_target

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from packager.model import Model

TARGET = find_target("cpu-x86_64")
PLAIN = Recipe(model="model.onnx", name="model")


def chosen(model: Model) -> tuple[Candidate, ...]:
    return (
        Candidate(
            name="fp32", path=model.path, size_bytes=1, verdict="chosen", reason="", scheme=""
        ),
    )


def taking(image: ImageInput) -> Recipe:
    return dataclasses.replace(PLAIN, images={"image": image})


def reading(opset: int, ir_version: int) -> Any:
    engine = dataclasses.replace(TARGET.engine, max_opset=opset, max_ir_version=ir_version)
    return dataclasses.replace(TARGET, engine=engine)


def test_the_artifact_is_read_back_and_runs(make_mlp: Callable, tmp_path: Path) -> None:
    model = make_mlp()
    artifact = build(model, chosen(model), TARGET, PLAIN, tmp_path)
    assert (artifact.opset, artifact.ir_version) == (17, 8)
    assert artifact.precision == "fp32"
    assert artifact.signature == model.signature
    assert artifact.facts["size_bytes"] == artifact.path.stat().st_size
    x = np.ones((2, 32), np.float32)
    (y,) = open_session(artifact.path, 1).run(None, {"x": x})
    (wanted,) = open_session(model.path, 1).run(None, {"x": x})
    assert np.array_equal(y, wanted)


def test_the_bytes_do_not_depend_on_the_folder_or_the_exporters_words(
    make_mlp: Callable, tmp_path: Path
) -> None:
    model = make_mlp()
    told = tmp_path / "told.onnx"
    proto = onnx.load(model.path)
    proto.producer_name, proto.producer_version = "exporter", "1.2.3"
    proto.graph.name = "main in /home/somebody"
    onnx.save(proto, told)
    contents = []
    for folder, path in (("a", model.path), ("b", told)):
        (tmp_path / folder).mkdir()
        other = dataclasses.replace(model, path=path)
        artifact = build(other, chosen(other), TARGET, PLAIN, tmp_path / folder)
        contents.append(artifact.path.read_bytes())
    assert contents[0] == contents[1]


def test_a_photo_input_is_attached(make_cnn: Callable, tmp_path: Path) -> None:
    model = make_cnn()
    recipe = taking(ImageInput(size=(16, 16), resize=20))
    artifact = build(model, chosen(model), TARGET, recipe, tmp_path)
    assert artifact.signature.inputs[0].dtype == "uint8"
    assert artifact.opset == 18
    photos = np.zeros((2, 30, 40, 3), np.uint8)
    (scores,) = open_session(artifact.path, 1).run(None, {"image": photos})
    assert scores.shape == (2, 10)


def test_a_later_opset_is_lowered_to_what_the_engine_reads(
    make_mlp: Callable, tmp_path: Path
) -> None:
    model = make_mlp(opset=17)
    artifact = build(model, chosen(model), reading(13, 7), PLAIN, tmp_path)
    assert (artifact.opset, artifact.ir_version) == (13, 7)


def test_an_operator_that_the_engine_does_not_read_is_named(
    drawing: Any, make_spec: Callable, batch: Any, tmp_path: Path
) -> None:
    d = drawing(opset=20)
    d.add("Gelu", "x", out="y")
    shape = (batch, 4)
    model = d.save(
        tmp_path / "gelu.onnx",
        (make_spec("x", "float32", *shape),),
        make_spec("y", "float32", *shape),
    )
    with pytest.raises(ModelUnsupported, match="has no `Gelu`") as caught:
        build(model, chosen(model), reading(17, 8), PLAIN, tmp_path)
    assert caught.value.hint == "export the model with opset 17"


def test_an_ir_version_that_the_operators_need_is_not_lowered(
    make_mlp: Callable, tmp_path: Path
) -> None:
    model = make_mlp(opset=17)
    with pytest.raises(ModelUnsupported, match="reads IR version 5 at most"):
        build(model, chosen(model), reading(17, 5), PLAIN, tmp_path)


def test_nothing_chosen_is_a_missed_budget(make_mlp: Callable, tmp_path: Path) -> None:
    model = make_mlp()
    with pytest.raises(BudgetMissed):
        build(model, (), TARGET, PLAIN, tmp_path)


def test_photos_for_an_old_quantized_model_are_refused(make_cnn: Callable, tmp_path: Path) -> None:
    model = dataclasses.replace(make_cnn(), quantized=True)
    with pytest.raises(UsageError, match="inputs and outputs need opset 18"):
        build(model, chosen(model), TARGET, taking(ImageInput(size=(16, 16))), tmp_path)


def test_an_artifact_that_does_not_run_is_refused(make_mlp: Callable, tmp_path: Path) -> None:
    model = make_mlp()
    proto = onnx.load(model.path)
    proto.graph.initializer[1].dims[:] = [32, 128]
    onnx.save(proto, model.path)
    with pytest.raises(ModelUnsupported, match="does not run"):
        build(model, chosen(model), TARGET, PLAIN, tmp_path)
