"""int8 layers beside fp16 ones: when the search tries them, how they are named, locked and told."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import onnx
import pytest
from onnx import TensorProto

from packager.errors import BudgetMissed, UsageError
from packager.recipe import Compression
from packager.search.choose import choose
from packager.search.forms import HALF_REST, has_half_rest, locked_form, table
from packager.search.mixed import layer_choices
from packager.search.sensitivity import LayerSensitivity
from packager.search.setting import SearchData
from packager.target import find_target

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from packager.search.outcome import Outcome

BOTH = f"int8-static{HALF_REST}"
FORMS = table(Compression(), tensorrt=True)
STATIC = next(form for form in FORMS if form.name == "int8-static")


@pytest.fixture
def search(
    make_cnn: Callable, make_samples: Callable, tmp_path: Path, notes: Any
) -> Callable[..., Outcome]:
    """Search the forms of one CNN whose weights are enough to be worth it unmeasured."""
    model = make_cnn(layers=6, channels=48)

    def call(
        target: str = "rtx-ada", *, folder: str = "search", locked: Any = None, **asked: Any
    ) -> Outcome:
        workdir = tmp_path / folder
        workdir.mkdir()
        return choose(
            model, find_target(target), SearchData(calibration=make_samples(model, 30)),
            Compression(**asked), locked=locked, threads=1, workdir=workdir, reporter=notes,
        )  # fmt: skip

    return call


@pytest.mark.parametrize(
    ("name", "has"),
    [
        ("rtx-ada", True), ("dgx-spark", True), ("server-h100", True), ("jetson-agx-thor", True),
        ("jetson-orin-nano-8gb@6.2", True), ("jetson-orin-nano-8gb@5.1", False),
        ("jetson-agx-xavier", False), ("cpu-x86_64", False),
    ],
)  # fmt: skip
def test_engines_that_take_the_graphs_types_have_it(name: str, *, has: bool) -> None:
    assert has_half_rest(find_target(name)) is has


def test_it_is_chosen_where_int8_keeps_the_budget(search: Callable[..., Outcome]) -> None:
    outcome = search()
    (chosen,) = [c for c in outcome.candidates if c.verdict == "chosen"]
    assert chosen.name.startswith("int8-static")
    assert chosen.name.endswith(HALF_REST)
    assert chosen.path is not None
    plain = next(c for c in outcome.candidates if c.name == chosen.name.removesuffix(HALF_REST))
    assert chosen.size_bytes < plain.size_bytes
    kinds = {tensor.data_type for tensor in onnx.load(chosen.path).graph.initializer}
    assert TensorProto.FLOAT not in kinds
    assert {TensorProto.FLOAT16, TensorProto.INT8} <= kinds
    # A lock makes the same file again, and nothing else.
    again = search(folder="again", locked=outcome.lock)
    (repeated,) = again.candidates
    assert repeated.path is not None
    assert repeated.path.read_bytes() == chosen.path.read_bytes()


def test_asked_for_by_name_nothing_else_is_taken(search: Callable[..., Outcome]) -> None:
    outcome = search(precision=BOTH)
    (chosen,) = [c for c in outcome.candidates if c.verdict == "chosen"]
    assert chosen.name.endswith(HALF_REST)
    outcome = search(precision="int8-static", folder="static")
    assert not [c.name for c in outcome.candidates if c.name.endswith(HALF_REST)]


def test_a_target_without_it_refuses_it_by_name(search: Callable[..., Outcome]) -> None:
    for name in ("cpu-x86_64", "jetson-orin-nano-8gb@5.1"):
        with pytest.raises(UsageError) as caught:
            search(name, precision=BOTH, folder=name)
        assert f"`{name}` has no engine that takes int8 layers beside fp16 ones" in str(
            caught.value
        )
        assert caught.value.hint == "ask for `--precision int8-static`"


def test_where_no_int8_form_keeps_the_budget_it_is_not_tried(
    search: Callable[..., Outcome],
) -> None:
    with pytest.raises(BudgetMissed, match=r"`int8-static\+fp16` does not keep the budget"):
        search(precision=BOTH, min_cosine=0.9999999, min_agreement=1.0)


def test_a_lock_gives_the_form_back() -> None:
    mixed = STATIC.with_float(("a", "b"), "first").with_half_rest()
    assert mixed.name == "int8-static-first-2+fp16"
    assert mixed.precision == BOTH
    for form in (STATIC.with_half_rest(), mixed):
        found = locked_form(FORMS, form.to_lock())
        assert found == dataclasses.replace(form, shapes=(form.shape,))
    assert locked_form(FORMS, {**mixed.to_lock(), "precision": "int8-static-x/y+fp16"}) is None


def test_its_float_layers_are_told_as_fp16() -> None:
    ranking = (
        LayerSensitivity(name="a", op_type="Conv", weights=9, sqnr_db=10.0),
        LayerSensitivity(name="b", op_type="Conv", weights=9, sqnr_db=30.0),
    )
    form = STATIC.with_float(("a",)).with_half_rest()
    kinds = [choice.precision for choice in layer_choices(ranking, form, None)]
    assert kinds == ["fp16", "int8"]
