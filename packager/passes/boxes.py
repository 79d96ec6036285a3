"""Boxes as ONNX nodes: their corners, and the suppression of those that overlap a better one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from packager.errors import UsageError
from packager.model import Dim, TensorSpec
from packager.passes.steps import Steps

if TYPE_CHECKING:
    from collections.abc import Mapping

    from packager.recipe import BoxOutputs


def boxes_consumed(boxes: BoxOutputs, specs: Mapping[str, TensorSpec]) -> tuple[str, ...]:
    """Return the outputs that are decoded, checked.

    Raises:
        UsageError: one is not there or has another shape, or a limit that cannot be.
    """
    names = (boxes.boxes, boxes.scores) if boxes.scores else (boxes.boxes,)
    for key, name in zip(("boxes", "scores"), names, strict=False):
        if name not in specs:
            raise UsageError(
                f"`boxes.{key}` names `{name}`, and the model has no such output",
                accepted=", ".join(f"`{known}`" for known in specs),
            )
        spec = specs[name]
        if len(spec.shape) != 3 or "float" not in spec.dtype:
            raise UsageError(
                f"`boxes.{key}` takes float [batch, places, numbers], or the last two turned round",
                accepted=f"the model's output is `{spec}`",
            )
    for key in ("min_score", "max_overlap"):
        if not 0 <= getattr(boxes, key) <= 1:
            raise UsageError(f"`boxes.{key}` is {getattr(boxes, key):g}", accepted="0 to 1")
    if boxes.most < 1:
        raise UsageError(f"`boxes.most` is {boxes.most}", accepted="1 and more")
    _check_numbers(boxes, specs)
    return names


def class_count(boxes: BoxOutputs, specs: Mapping[str, TensorSpec]) -> int | None:
    """Return how many classes there are, None where the model does not say."""
    spec = specs[boxes.scores or boxes.boxes]
    size = spec.shape[1 if boxes.classes_first else 2].size
    if size is None:
        return None
    return size - _lead(boxes) if not boxes.scores else size - int(boxes.objectness)


def box_specs(boxes: BoxOutputs, specs: Mapping[str, TensorSpec]) -> tuple[TensorSpec, ...]:
    """Return the outputs afterwards: `boxes`, `scores`, `classes` and `batch` of [n, …]."""
    del boxes, specs
    found = Dim(name=None, min=0)
    return (
        TensorSpec(name="boxes", dtype="float32", shape=(found, Dim(size=4))),
        TensorSpec(name="scores", dtype="float32", shape=(found,)),
        TensorSpec(name="classes", dtype="int64", shape=(found,)),
        TensorSpec(name="batch", dtype="int64", shape=(found,)),
    )


def box_steps(
    steps: Steps, boxes: BoxOutputs, raw: Mapping[str, str], specs: Mapping[str, TensorSpec]
) -> None:
    """Append the steps from the raw values, by output name, to those of `box_specs`."""
    inner = Steps(prefix=f"{steps.prefix}.boxes", opset=steps.opset)
    corners, scores = _decoded(inner, boxes, raw, specs)
    places = inner.add("Transpose", [scores], perm=[0, 2, 1])
    if boxes.best_class:
        best = inner.reduce("ReduceMax", scores, [2], keepdims=True)
        # Only one of several equal classes: the first, as argmax has it.
        first = inner.add("ArgMax", [scores], axis=2, keepdims=1)
        count = inner.add("Gather", [inner.add("Shape", [scores]), inner.number("two", 2, "int64")])
        numbers = inner.add(
            "Range", [inner.number("zero", 0, "int64"), count, inner.number("one", 1, "int64")]
        )
        mine = inner.add("Equal", [first, numbers])
        masked = inner.add("Where", [mine, best, inner.number("nothing", -1.0)])
        places = inner.add("Transpose", [masked], perm=[0, 2, 1])
    kept = inner.add(
        "NonMaxSuppression",
        [
            corners,
            places,
            inner.ints("most", [boxes.most]),
            inner.constant("max_overlap", _vector(boxes.max_overlap)),
            inner.constant("min_score", _vector(boxes.min_score)),
        ],
    )
    _gather(inner, kept, corners, places)
    steps.nodes.extend(inner.nodes)
    steps.constants.extend(inner.constants)


def _check_numbers(boxes: BoxOutputs, specs: Mapping[str, TensorSpec]) -> None:
    axis = 1 if boxes.classes_first else 2
    if not boxes.scores:
        size = specs[boxes.boxes].shape[axis].size
        least = _lead(boxes) + 1
        if size is not None and size < least:
            other = "false" if boxes.classes_first else "true"
            raise UsageError(
                f"`boxes.boxes` has {size} numbers per place, and needs at least {least}",
                accepted=f"the model's output is `{specs[boxes.boxes]}`",
                hint=f"set `classes_first = {other}`",
            )
        return
    spec = specs[boxes.boxes]
    if 4 not in {spec.shape[1].size, spec.shape[2].size} and all(d.size for d in spec.shape[1:]):
        raise UsageError(
            "`boxes.boxes` takes four numbers per place",
            accepted=f"the model's output is `{spec}`",
        )


def _lead(boxes: BoxOutputs) -> int:
    """Return how many numbers stand before the classes' where one output holds all."""
    return 5 if boxes.objectness else 4


def _decoded(
    steps: Steps, boxes: BoxOutputs, raw: Mapping[str, str], specs: Mapping[str, TensorSpec]
) -> tuple[str, str]:
    """Return corners [batch, places, 4] and scores [batch, places, classes]."""

    def value(name: str, *, turned: bool) -> str:
        found = raw[name]
        if specs[name].dtype != "float32":
            found = steps.cast(found, "float32")
        return steps.add("Transpose", [found], perm=[0, 2, 1]) if turned else found

    if boxes.scores:
        shape = specs[boxes.boxes].shape
        places_last = shape[2].size != 4 and (shape[1].size == 4 or boxes.classes_first)
        corners = value(boxes.boxes, turned=places_last)
        scores = value(boxes.scores, turned=boxes.classes_first)
        lead = 0
    else:
        both = value(boxes.boxes, turned=boxes.classes_first)
        corners = _columns(steps, both, 0, 4)
        scores, lead = both, 4
    if boxes.objectness:
        object_ = _columns(steps, scores, lead, lead + 1)
        scores = _columns(steps, scores, lead + 1, None)
        object_ = _activated(steps, "sigmoid" if boxes.activation != "none" else "none", object_)
        scores = steps.add("Mul", [_activated(steps, boxes.activation, scores), object_])
    else:
        scores = _columns(steps, scores, lead, None) if lead else scores
        scores = _activated(steps, boxes.activation, scores)
    return _corners(steps, boxes.form, corners), scores


def _activated(steps: Steps, activation: str, values: str) -> str:
    if activation == "softmax":
        return steps.add("Softmax", [values], axis=2)
    return steps.add("Sigmoid", [values]) if activation == "sigmoid" else values


def _corners(steps: Steps, form: str, values: str) -> str:
    if form == "xyxy":
        return values
    place, size = _columns(steps, values, 0, 2), _columns(steps, values, 2, 4)
    if form == "cxcywh":
        half = steps.add("Mul", [size, steps.number("half", 0.5)])
        place = steps.add("Sub", [place, half])
        end = steps.add("Add", [_columns(steps, values, 0, 2), half])
    else:
        end = steps.add("Add", [place, size])
    return steps.add("Concat", [place, end], axis=2)


def _columns(steps: Steps, values: str, start: int, stop: int | None) -> str:
    import numpy as np

    end = int(np.iinfo(np.int64).max) if stop is None else stop
    names = [steps.ints(f"at_{at}", [at]) for at in (start, end, 2)]
    return steps.add("Slice", [values, *names])


def _gather(steps: Steps, kept: str, corners: str, places: str) -> None:
    """Append what belongs to the kept (batch, class, place), best first within each photo."""
    scores = steps.add("GatherND", [places, kept])
    count = steps.add("Shape", [scores])
    by_score = steps.add_many("TopK", [scores, count], 2)[1]
    batches = steps.add("Gather", [kept, steps.number("first", 0, "int64")], axis=1)
    # The second order keeps the first among equals: ties go to the lower place.
    ordered = steps.add("Gather", [batches, by_score])
    by_batch = steps.add_many("TopK", [steps.cast(ordered, "float32"), count], 2, largest=0)[1]
    order = steps.add("Gather", [by_score, by_batch])
    kept = steps.add("Gather", [kept, order], axis=0)
    steps.add("Gather", [scores, order], "scores")
    ends = steps.add("Gather", [kept, steps.ints("ends", [0, 2])], axis=1)
    steps.add("GatherND", [corners, ends], "boxes")
    steps.add("Gather", [kept, steps.number("second", 1, "int64")], "classes", axis=1)
    steps.add("Gather", [kept, steps.number("first", 0, "int64")], "batch", axis=1)


def _vector(value: float) -> Any:
    import numpy as np

    return np.asarray([value], np.float32)
