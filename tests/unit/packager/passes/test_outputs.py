"""Post-processing in the graph: what plain loops over numpy arrays compute."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packager.errors import ModelUnsupported, UsageError
from packager.model import Dim, Signature, TensorSpec
from packager.passes.attached import _check_finished
from packager.passes.inputs import attach, served_signature
from packager.passes.outputs import finisher
from packager.recipe import BoxOutputs, OutputSteps, Recipe

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from packager.model import Model

BATCH = Dim(name="batch", min=1, max=8, opt=1)
PLAIN = Recipe(model="m.onnx", name="m")


def signature_of(*shape: int | Dim | None, name: str = "y", dtype: str = "float32") -> Signature:
    dims = tuple(a if isinstance(a, Dim) else Dim(size=a) if a else Dim() for a in shape)
    return Signature(inputs=(), outputs=(TensorSpec(name=name, dtype=dtype, shape=dims),))


def finished(steps: OutputSteps, values: np.ndarray, *, dtype: str = "float32") -> dict[str, Any]:
    recipe = dataclasses.replace(PLAIN, outputs={"y": steps})
    finish = finisher(recipe, signature_of(*[None] * values.ndim, dtype=dtype))
    assert finish is not None
    return finish({"y": values})


def softmax(values: np.ndarray) -> np.ndarray:
    e = np.exp(values - values.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def test_a_recipe_without_steps_has_no_finisher() -> None:
    assert finisher(PLAIN, signature_of(2, 3)) is None
    labels_alone = dataclasses.replace(PLAIN, outputs={"y": OutputSteps()})
    assert finisher(labels_alone, signature_of(2, 3)) is None


def test_softmax_and_sigmoid_are_over_the_last_axis() -> None:
    values = np.random.default_rng(0).normal(size=(2, 5, 7)).astype(np.float32) * 5
    got = finished(OutputSteps(activation="softmax"), values)["y"]
    assert np.allclose(got, softmax(values), atol=1e-6)
    got = finished(OutputSteps(activation="sigmoid"), values)["y"]
    assert np.allclose(got, 1 / (1 + np.exp(-values)), atol=1e-6)


def test_the_best_classes_come_with_their_numbers() -> None:
    values = np.random.default_rng(1).normal(size=(4, 9)).astype(np.float32)
    got = finished(OutputSteps(activation="softmax", top_k=3), values)
    order = np.argsort(-values, axis=1, kind="stable")[:, :3]
    assert got["y_classes"].dtype == np.int64
    assert np.array_equal(got["y_classes"], order)
    assert np.allclose(got["y"], np.take_along_axis(softmax(values), order, 1), atol=1e-6)


def test_equal_scores_go_to_the_lower_class() -> None:
    values = np.float32([[1, 3, 3, 3, 0], [2, 2, 2, 2, 2]])
    got = finished(OutputSteps(top_k=4), values)
    assert got["y_classes"].tolist() == [[1, 2, 3, 0], [0, 1, 2, 3]]


def test_a_threshold_counts_what_reaches_it() -> None:
    values = np.float32([[0.0, 2.0, -2.0]])
    got = finished(OutputSteps(activation="sigmoid", threshold=0.5), values)["y"]
    assert got.dtype == np.bool_
    assert got.tolist() == [[True, True, False]]


def test_half_precision_is_widened_before_it_is_looked_at() -> None:
    values = np.float16([[1.0, 3.0, 2.0]])
    got = finished(OutputSteps(top_k=2), values, dtype="float16")
    assert got["y"].dtype == np.float32
    assert got["y_classes"].tolist() == [[1, 2]]


def collapse(best: Sequence[int], blank: int) -> list[int]:
    kept, before = [], -1
    for number in best:
        if number not in {before, blank}:
            kept.append(number)
        before = number
    return kept + [-1] * (len(best) - len(kept))


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_greedy_decoding_is_the_loop_over_frames(data: st.DataObject) -> None:
    classes = data.draw(st.integers(2, 5))
    frames = data.draw(st.integers(1, 12))
    blank = data.draw(st.integers(0, classes - 1))
    rows = data.draw(
        st.lists(
            st.lists(st.integers(0, classes - 1), min_size=frames, max_size=frames),
            min_size=1, max_size=3,
        )
    )  # fmt: skip
    values = np.eye(classes, dtype=np.float32)[np.asarray(rows)]
    got = finished(OutputSteps(ctc=True, blank=blank), values)["y"]
    assert got.dtype == np.int64
    assert got.tolist() == [collapse(row, blank) for row in rows]


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
    inter = np.prod(np.maximum(high - low, 0))
    return float(inter / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - inter))


def suppress(
    corners: np.ndarray, scores: np.ndarray, boxes: BoxOutputs
) -> list[tuple[int, int, float, tuple[float, ...]]]:
    """Return (photo, class, score, corners), best first within a photo."""
    kept: list[tuple[int, float, int, int]] = []
    for photo in range(len(corners)):
        for number in range(scores.shape[2]):
            alive: list[int] = []
            for place in np.argsort(-scores[photo, :, number], kind="stable"):
                if scores[photo, place, number] <= boxes.min_score or len(alive) == boxes.most:
                    break
                mine = corners[photo, place]
                if all(overlap(mine, corners[photo, p]) <= boxes.max_overlap for p in alive):
                    alive.append(int(place))
            kept += [(photo, -float(scores[photo, p, number]), number, p) for p in alive]
    kept.sort()
    return [(b, c, -s, tuple(corners[b, p].tolist())) for b, s, c, p in kept]


def as_rows(got: dict[str, np.ndarray]) -> list[tuple[int, int, float, tuple[float, ...]]]:
    return [
        (int(b), int(c), float(s), tuple(box.tolist()))
        for b, c, s, box in zip(
            got["batch"], got["classes"], got["scores"], got["boxes"], strict=True
        )
    ]


def some_boxes(seed: int, places: int = 60, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    centers = random.uniform(20, 80, (2, places, 2))
    sizes = random.uniform(5, 40, (2, places, 2))
    scores = random.uniform(0, 1, (2, places, classes))
    return np.concatenate([centers, sizes], 2).astype(np.float32), scores.astype(np.float32)


def corners_of(values: np.ndarray) -> np.ndarray:
    half = values[..., 2:] * np.float32(0.5)
    return np.concatenate([values[..., :2] - half, values[..., :2] + half], -1)


@pytest.mark.parametrize("classes_first", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_boxes_in_one_output_are_decoded_and_suppressed(seed: int, *, classes_first: bool) -> None:
    values, scores = some_boxes(seed)
    raw = np.concatenate([values, scores], axis=2)
    raw = raw.transpose(0, 2, 1) if classes_first else raw
    boxes = BoxOutputs(boxes="y", classes_first=classes_first, most=7)
    finish = finisher(dataclasses.replace(PLAIN, boxes=boxes), signature_of(BATCH, *raw.shape[1:]))
    got = as_rows(finish({"y": raw}))
    assert got == suppress(corners_of(values), scores, boxes)
    assert len(got) > 20


@pytest.mark.parametrize("form", ["xyxy", "cxcywh", "xywh"])
@pytest.mark.parametrize("activation", ["none", "sigmoid", "softmax"])
def test_boxes_and_scores_in_two_outputs(form: str, activation: str) -> None:
    values, scores = some_boxes(5)
    logits = scores * 8 - 4
    corners = corners_of(values)
    sides = np.concatenate([corners[..., :2], values[..., 2:]], -1)
    raw = {"xyxy": corners, "cxcywh": values, "xywh": sides}[form]
    boxes = BoxOutputs(
        boxes="b", scores="s", form=form, activation=activation, classes_first=True
    )  # fmt: skip
    outputs = (
        *signature_of(BATCH, 60, 4, name="b").outputs,
        *signature_of(BATCH, 4, 60, name="s").outputs,
    )
    finish = finisher(
        dataclasses.replace(PLAIN, boxes=boxes), Signature(inputs=(), outputs=outputs)
    )
    got = finish({"b": raw, "s": np.ascontiguousarray(logits.transpose(0, 2, 1))})
    active = {"none": lambda v: v, "sigmoid": lambda v: 1 / (1 + np.exp(-v)), "softmax": softmax}
    wanted = suppress(corners, active[activation](logits), boxes)
    assert [row[:2] for row in as_rows(got)] == [row[:2] for row in wanted]
    assert np.allclose(got["scores"], [row[2] for row in wanted], atol=1e-5)
    assert np.allclose(got["boxes"], [row[3] for row in wanted], atol=1e-4)


def test_objectness_is_multiplied_and_a_place_may_keep_one_class() -> None:
    values, scores = some_boxes(6)
    some = np.random.default_rng(0).uniform(0.3, 1, (2, 60, 1)).astype(np.float32)
    raw = np.concatenate([values, some, scores], axis=2)
    boxes = BoxOutputs(boxes="y", classes_first=False, objectness=True, best_class=True)
    finish = finisher(dataclasses.replace(PLAIN, boxes=boxes), signature_of(BATCH, 60, 9))
    joint = scores * some
    best = joint.argmax(axis=2, keepdims=True) == np.arange(4)
    wanted = suppress(corners_of(values), np.where(best, joint, -1), boxes)
    assert as_rows(finish({"y": raw})) == wanted


def test_no_box_at_all_is_an_empty_answer() -> None:
    boxes = BoxOutputs(boxes="y", min_score=0.99)
    finish = finisher(dataclasses.replace(PLAIN, boxes=boxes), signature_of(BATCH, 6, 5))
    got = finish({"y": np.zeros((2, 6, 5), np.float32)})
    assert {name: array.shape for name, array in got.items()} == {
        "boxes": (0, 4), "scores": (0,), "classes": (0,), "batch": (0,),
    }  # fmt: skip


@pytest.fixture
def model(drawing: Any, make_spec: Callable, tmp_path: Path) -> Model:
    """Make `x` [batch, 6, 12] → `y` the same, `boxes` its class scores: a name the recipe wants."""
    d = drawing(opset=11)
    d.add("Mul", "x", d.constant(np.float32(1.0)), out="scores")
    d.add("Neg", d.add("Neg", "scores"), out="y")
    shape = (BATCH, 6, 12)
    return d.save(
        tmp_path / "m.onnx",
        (make_spec("x", "float32", *shape),),
        make_spec("y", "float32", *shape),
    )


def run(path: Path, **feeds: np.ndarray) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


@pytest.mark.parametrize(
    "wanted",
    [
        {"outputs": {"y": OutputSteps(ctc=True, blank=3)}},
        {"outputs": {"y": OutputSteps(activation="softmax", threshold=0.1)}},
        {"boxes": BoxOutputs(boxes="y", min_score=0.1)},
    ],
)
def test_the_attached_graph_does_what_the_parts_do(
    wanted: dict[str, Any], model: Model, tmp_path: Path
) -> None:
    recipe = dataclasses.replace(PLAIN, **wanted)
    out = tmp_path / "out.onnx"
    signature = attach(model.path, model.signature, recipe, out)
    assert onnx.load(out).opset_import[0].version == 13
    x = np.abs(np.random.default_rng(3).normal(size=(3, 6, 12))).astype(np.float32)
    got = run(out, x=x)
    assert list(got) == [spec.name for spec in signature.outputs]
    alone = finisher(recipe, model.signature)(run(model.path, x=x))
    for spec in signature.outputs:
        array = got[spec.name]
        assert array.dtype == spec.dtype
        assert np.array_equal(array, alone[spec.name])
        assert all(d.size in {None, s} for d, s in zip(spec.shape, array.shape, strict=True))


def test_the_signature_tells_the_outputs_afterwards() -> None:
    given_signature = Signature(
        inputs=signature_of(BATCH, 4, name="x").outputs,
        outputs=(
            *signature_of(BATCH, 10, name="a").outputs,
            *signature_of(BATCH, 7, Dim(name="t", min=2, max=9), name="b").outputs,
        ),
    )
    recipe = dataclasses.replace(
        PLAIN, outputs={"a": OutputSteps(top_k=3)}, boxes=BoxOutputs(boxes="b")
    )
    got = [str(spec) for spec in served_signature(given_signature, recipe).outputs]
    assert got == [
        "a: float32[batch=1..8, 3]",
        "a_classes: int64[batch=1..8, 3]",
        "boxes: float32[?=0.., 4]",
        "scores: float32[?=0..]",
        "classes: int64[?=0..]",
        "batch: int64[?=0..]",
    ]


@pytest.mark.parametrize(
    ("shape", "steps", "message"),
    [
        ((2, 5), {"top_k": 6}, "`output.y.top_k` is 6"),
        ((2, 5), {"top_k": 0}, "`output.y.top_k` is 0"),
        ((2, 5, 3), {"top_k": 1}, "`output.y.top_k` takes [batch, classes]"),
        ((2, 5), {"ctc": True}, "`output.y.ctc` takes [batch, frames, classes]"),
        ((2, 4, 5), {"ctc": True, "blank": 5}, "`output.y.blank` is 5"),
        ((2, 4, 5), {"ctc": True, "activation": "softmax"}, "asks for `softmax` before `ctc`"),
        ((2, 5), {"top_k": 1, "threshold": 0.5}, "asks for `top_k` and for `threshold`"),
    ],
)
def test_steps_that_do_not_fit_the_output_are_refused(
    shape: tuple[int, ...], steps: dict[str, Any], message: str
) -> None:
    recipe = dataclasses.replace(PLAIN, outputs={"y": OutputSteps(**steps)})
    with pytest.raises(UsageError) as caught:
        finisher(recipe, signature_of(*shape))
    assert message in caught.value.message
    assert caught.value.accepted


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        (BoxOutputs(boxes="z"), "`boxes.boxes` names `z`"),
        (BoxOutputs(boxes="y", scores="z"), "`boxes.scores` names `z`"),
        (BoxOutputs(boxes="y", min_score=2), "`boxes.min_score` is 2"),
        (BoxOutputs(boxes="y", most=0), "`boxes.most` is 0"),
        (BoxOutputs(boxes="y"), "`boxes.boxes` has 3 numbers per place"),
    ],
)
def test_boxes_that_do_not_fit_are_refused(boxes: BoxOutputs, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        finisher(dataclasses.replace(PLAIN, boxes=boxes), signature_of(2, 3, 9))
    assert message in caught.value.message
    if "3 numbers" in message:
        assert caught.value.hint == "set `classes_first = false`"


def test_an_output_that_is_not_there_is_refused() -> None:
    recipe = dataclasses.replace(PLAIN, outputs={"z": OutputSteps(top_k=1)})
    with pytest.raises(UsageError, match="the model has no output `z`"):
        finisher(recipe, signature_of(2, 3))
    recipe = dataclasses.replace(
        PLAIN, outputs={"y": OutputSteps(activation="sigmoid")}, boxes=BoxOutputs(boxes="y")
    )
    with pytest.raises(UsageError, match=r"named by `\[boxes\]` and by"):
        finisher(recipe, signature_of(2, 6, 9))


def test_integers_have_no_scores() -> None:
    recipe = dataclasses.replace(PLAIN, outputs={"y": OutputSteps(top_k=1)})
    with pytest.raises(UsageError, match="the output `y` is int64"):
        finisher(recipe, signature_of(2, 3, dtype="int64"))


def test_a_second_softmax_is_refused(drawing: Any, make_spec: Callable, tmp_path: Path) -> None:
    d = drawing(opset=13)
    d.add("Identity", d.add("Softmax", "x", axis=-1), out="y")
    shape = (BATCH, 5)
    model = d.save(
        tmp_path / "m.onnx",
        (make_spec("x", "float32", *shape),),
        make_spec("y", "float32", *shape),
    )
    recipe = dataclasses.replace(PLAIN, outputs={"y": OutputSteps(activation="softmax", top_k=2)})
    with pytest.raises(UsageError, match="the model ends in a Softmax already") as caught:
        attach(model.path, model.signature, recipe, tmp_path / "out.onnx")
    assert caught.value.accepted == '`activation = "none"`'


def test_a_name_that_the_model_has_already_is_refused() -> None:
    outputs = (
        *signature_of(BATCH, 10, name="a").outputs,
        *signature_of(BATCH, 10, name="a_classes").outputs,
    )
    recipe = dataclasses.replace(PLAIN, outputs={"a": OutputSteps(top_k=3)})
    with pytest.raises(UsageError, match="makes an output `a_classes`"):
        finisher(recipe, Signature(inputs=(), outputs=outputs))


def test_post_processing_that_differs_is_a_fault() -> None:
    with pytest.raises(ModelUnsupported, match="something else in the graph: `y` differs"):
        _check_finished({"y": np.int64([1, 2])}, {"y": np.int64([2, 1])})
    with pytest.raises(ModelUnsupported, match="has the shape"):
        _check_finished({"y": np.float32([1, 2])}, {"y": np.float32([2])})
