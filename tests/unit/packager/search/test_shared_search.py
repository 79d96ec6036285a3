"""Targets whose settings give the same outcome have one search in common, others have not."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest

from packager.pipeline.cache import StageCache
from packager.pipeline.compressing import compress_stage, search_key
from packager.pipeline.stages import Data
from packager.pipeline.training import Trained
from packager.recipe import Compression, Recipe
from packager.target import find_target

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from packager.model import Model
    from packager.target import Target


def key(model: Model, target: Target, **changed: Any) -> str:
    recipe = Recipe(model="net.onnx", name="net", **changed)
    data = Data(calibration=None, evaluation=None)
    return search_key(recipe, target, model, data, Trained(), locked=None)


def test_engines_of_several_devices_come_from_one_search(make_cnn: Callable[..., Model]) -> None:
    model = make_cnn()
    names = (
        "jetson-orin-nano-8gb@6.2", "jetson-agx-thor", "server-l4", "server-h100", "rtx-ada",
        "dgx-spark",
    )  # fmt: skip
    assert len({key(model, find_target(name)) for name in names}) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"precisions": ("fp16", "int8", "fp32")},
        {"tensorrt": {"version": "8.6.2.3"}},
        {"tensorrt": {"max_opset": 17}},
        {"quantization": {"per_channel": False}},
        {"quantization": {"reduce_range": True}},
        {"engine": {"max_opset": 16}},
        {"tensorrt": None},
    ],
    ids=str,
)
def test_a_setting_that_matters_makes_a_search_of_its_own(
    change: dict[str, Any], make_cnn: Callable[..., Model]
) -> None:
    model, target = make_cnn(), find_target("server-l4")
    ((name, value),) = change.items()
    if isinstance(value, dict):
        value = dataclasses.replace(getattr(target, name), **value)
    assert key(model, dataclasses.replace(target, **{name: value})) != key(model, target)


def test_what_only_times_depend_on_counts_where_something_is_timed(
    make_cnn: Callable[..., Model],
) -> None:
    model = make_cnn()
    for name, same in (("server-l4", True), ("cpu-x86_64", False)):
        target = find_target(name)
        for changed in (
            dataclasses.replace(target, threads=3),
            dataclasses.replace(
                target, engine=dataclasses.replace(target.engine, version="1.23.2")
            ),
            dataclasses.replace(
                target, quantization=dataclasses.replace(target.quantization, why="other words")
            ),
        ):
            assert (key(model, changed) == key(model, target)) is same, name


def test_an_opset_that_the_model_does_not_reach_does_not_count(
    make_cnn: Callable[..., Model],
) -> None:
    target = find_target("server-l4")
    older = dataclasses.replace(target, engine=dataclasses.replace(target.engine, max_opset=21))
    model = make_cnn()
    assert key(model, older) == key(model, target)
    later = dataclasses.replace(model, opset=22)
    assert key(later, older) != key(later, target)
    other = Compression(objective="size")
    assert key(model, target, compress=other) != key(model, target)


def test_the_second_target_takes_the_outcome_of_the_first(
    make_cnn: Callable[..., Model], tmp_path: Path, notes: Any
) -> None:
    model = make_cnn(layers=2, channels=8)
    recipe = Recipe(model="net.onnx", name="net")
    outcomes = []
    for name in ("server-l4", "jetson-agx-thor"):
        work = tmp_path / name
        work.mkdir()
        artifact, outcome = compress_stage(
            recipe, find_target(name), model, Data(calibration=None, evaluation=None),
            locked=None, cache=StageCache(tmp_path / "cache"), work=work, reporter=notes,
        )  # fmt: skip
        outcomes.append((artifact.precision, outcome.lock, artifact.path.read_bytes()))
    assert outcomes[0] == outcomes[1]
    said = [text for text in notes.said if text.startswith("compress for")]
    assert said == ["compress for jetson-agx-thor@7.2: already done"]
