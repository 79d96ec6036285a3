"""What becomes of a model's outputs, in the graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class OutputSteps:
    """Steps after one output: `[output.NAME]` in a recipe, compiled into the graph.

    Attributes:
        activation: `softmax` over the last axis, `sigmoid`, or `none`.
        top_k: Replace [batch, classes] by two outputs, `NAME` with the k largest scores and
            `NAME_classes` with their numbers (int64), largest first.
        threshold: Replace scores by a bool output that tells which are at least this.
        ctc: Greedy CTC decoding of [batch, frames, classes]: int64 [batch, frames], the classes
            with repetitions and blanks removed, filled up with -1.
        blank: The class number of the blank, for `ctc`.
        labels: A text file with one name per class (per character for `ctc`).
    """

    activation: str = "none"
    top_k: int | None = None
    threshold: float | None = None
    ctc: bool = False
    blank: int = 0
    labels: Path | None = None


@dataclass(frozen=True, kw_only=True)
class BoxOutputs:
    """Decoding and suppression of boxes: `[boxes]` in a recipe, compiled into the graph.

    The model's outputs `boxes` and `scores` are replaced by `boxes` [n, 4] (x1, y1, x2, y2),
    `scores` [n], `classes` [n] and `batch` [n].

    Attributes:
        boxes: Name of the output with boxes; with `scores` empty, the one that holds both, as YOLO:
            [batch, 4 + classes, places] or [batch, places, 4 + classes].
        scores: Name of the output [batch, places, classes] or [batch, classes, places].
        form: `xyxy`, `cxcywh`, or `xywh` (top left corner).
        classes_first: The classes' axis comes before the places'.
        objectness: Before the classes' scores stands one for any object, which theirs are
            multiplied with, as in YOLOv5 and YOLOX.
        activation: `sigmoid` or `softmax` over classes, or `none`.
        best_class: A place keeps its best class only, as Ultralytics has it.
        min_score: Only scores above are kept.
        max_overlap: Boxes of one class that overlap more (intersection over union) with a better
            one are dropped.
        most: Boxes kept per class and photo.
        labels: A text file with one class name per line.
    """

    boxes: str
    scores: str = ""
    form: str = "cxcywh"
    classes_first: bool = True
    objectness: bool = False
    activation: str = "none"
    best_class: bool = False
    min_score: float = 0.25
    max_overlap: float = 0.45
    most: int = 100
    labels: Path | None = None
