"""What is told of each layer of the chosen form, and why some stay float."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import onnx

from packager.recipe import Compression
from packager.search.forms import locked_form, table
from packager.search.mixed import layer_choices
from packager.search.sensitivity import LayerSensitivity

if TYPE_CHECKING:
    from collections.abc import Callable

STATIC = next(form for form in table(Compression()) if form.name == "int8-static")


def test_a_layer_in_float_has_its_place_in_the_ranking_as_reason() -> None:
    ranking = [
        LayerSensitivity(name=name, op_type="Conv", weights=9, sqnr_db=db)
        for name, db in (("b", 12.5), ("a", 30.0))
    ]
    b, a = layer_choices(ranking, STATIC.with_float(("b",)), None)
    assert (b.precision, a.precision) == ("fp32", "int8")
    assert b.reason == "number 1 of 2 in sensitivity, 12.5 dB with it alone in int8"
    assert not a.reason
    first, _ = layer_choices(ranking, STATIC.with_float(("b",), "first"), None)
    assert first.reason.startswith("one of the first layers")
    assert first.reason.endswith(b.reason)


def test_a_layer_in_float_that_nobody_ranked_has_a_reason_too(make_cnn: Callable[..., Any]) -> None:
    model = make_cnn(layers=2)
    nodes = [node for node in onnx.load(model.path).graph.node if node.op_type == "Conv"]
    form = STATIC.with_float((nodes[0].name,), "first")
    (choice,) = layer_choices((), form, model.path)
    assert (choice.name, choice.op_type, choice.precision) == (nodes[0].name, "Conv", "fp32")
    assert choice.weights == 16 * 3 * 3 * 3
    assert choice.reason.startswith("one of the first layers")
    assert layer_choices((), STATIC, model.path) == ()


def test_a_lock_gives_the_form_back_and_nothing_that_is_none() -> None:
    forms = table(Compression())
    mixed = STATIC.with_float(("a", "b"), "refined-1")
    lock = mixed.to_lock()
    assert locked_form(forms, lock) == dataclasses.replace(mixed, shapes=(mixed.shape,))
    for changes in (
        {"form": "int3"}, {"shape": "none"}, {"float_layers": "ab"}, {"float_layers": [1]},
        {"precision": "int8-static-../x"}, {"precision": "fp32"},
    ):  # fmt: skip
        assert locked_form(forms, {**lock, **changes}) is None, changes
