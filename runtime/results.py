"""Class numbers as words: what an answer says beside its tensors, where the bundle has labels."""

from __future__ import annotations

import math
from functools import partial
from types import MappingProxyType
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from .errors import InputOutputFault, ModelFault
from .tensor import Tensor

KINDS = ("top_k", "text", "boxes")


class Result(NamedTuple):
    """One entry of `manifest["model"]["results"]`.

    Attributes:
        kind: `top_k`, `text` or `boxes`.
        names: The outputs by their part: `classes`, `scores`, `boxes`, `batch`.
        said_as: What the labels are called in an answer.
        labels: By class number; None where the bundle has none.
    """

    kind: str
    names: Mapping[str, str]
    said_as: str
    labels: Optional[Sequence[str]]

    def label(self, number: int) -> str:
        """Return a class's label, its number where there is none."""
        return _label(self.labels or (), number)


def _label(labels: Sequence[str], number: int) -> str:
    return labels[number] if 0 <= number < len(labels) else str(number)


def read_results(manifest: Mapping[str, Any], release: Any) -> Tuple[Result, ...]:
    """Return what the manifest says of class numbers, with the labels read.

    Args:
        manifest: The release's.
        release: Has `.path`.

    Raises:
        ModelFault: an entry is not of the documented form.
        InputOutputFault: a label file cannot be read.
    """
    found = []
    for entry in manifest["model"].get("results", ()):
        if not isinstance(entry, dict) or entry.get("kind") not in KINDS:
            raise ModelFault("the manifest's results cannot be read")
        names = {part: str(entry[part]) for part in ("classes", "scores", "boxes", "batch")
                 if part in entry}  # fmt: skip
        labels = read_lines(release.path(entry["labels"])) if "labels" in entry else None
        found.append(Result(entry["kind"], names, str(entry.get("as", "")), labels))
    return tuple(found)


def read_words(
    manifest: Mapping[str, Any], release: Any
) -> Callable[[Mapping[str, Tensor]], Dict[str, Any]]:
    """Return what says the labels of an answer: of class numbers, and of scores by class.

    An output of scores is said where it is `[batch, classes]`, as `NAME_labels`, unless another
    output is called so.

    Raises:
        ModelFault: an entry is not of the documented form.
        InputOutputFault: a label file cannot be read.
    """
    results = read_results(manifest, release)
    files = manifest["model"].get("labels", {})
    outputs = manifest["model"]["signature"]["outputs"]
    names = {output["name"] for output in outputs}
    scored = {
        output["name"]: read_lines(release.path(files[output["name"]]))
        for output in outputs
        if output["name"] in files
        and len(output["shape"]) == 2
        and output["dtype"] != "string"
        and output["name"] + "_labels" not in names
    }
    return partial(say, results, scored=scored)


def read_lines(path: str) -> List[str]:
    """Return a file's lines; only the end of a line ends one.

    Raises:
        InputOutputFault: it cannot be read.
    """
    try:
        with open(path, encoding="utf-8", newline="\n") as stream:
            return stream.read().split("\n")[:-1]
    except OSError as error:
        raise InputOutputFault("cannot read `%s`: %s" % (path, error.strerror)) from error


def say(
    results: Sequence[Result],
    outputs: Mapping[str, Tensor],
    *,
    scored: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> Dict[str, Any]:
    """Return the labels of an answer by the name they have in it, nested like their numbers.

    Of greedily decoded rows it is one text each.

    Args:
        results: How class numbers are read.
        outputs: The answer.
        scored: Labels by the output that has a score for each of them, a row for each sample: the
            best one's is said, and of booleans all that hold.
    """
    said: Dict[str, Any] = {}
    for result in results:
        numbers = outputs.get(result.names["classes"])
        if result.labels is None or numbers is None:
            continue
        flat = numbers.to_flat()
        if result.kind == "boxes":
            said[result.said_as] = [result.label(number) for number in flat]
        elif result.kind == "text":
            said[result.said_as] = ["".join(row) for row in _texts(result, numbers)]
        else:
            width = numbers.shape[-1]
            said[result.said_as] = [
                [result.label(number) for number in flat[at : at + width]]
                for at in range(0, len(flat), width)
            ]
    for name, labels in scored.items():
        if name in outputs:
            said[name + "_labels"] = _best(outputs[name], labels)
    return said


def _best(scores: Tensor, labels: Sequence[str]) -> List[Any]:
    """Return for each row the label of its best score, None where no score is a number.

    Of a row of booleans it is the labels of those that hold.
    """
    flat, width = scores.to_flat(), max(scores.shape[-1], 1)
    rows = [flat[at : at + width] for at in range(0, len(flat), width)]
    if scores.dtype == "bool":
        return [[_label(labels, at) for at, held in enumerate(row) if held] for row in rows]
    found: List[Any] = []
    for row in rows:
        # a NaN equals nothing, itself included; ties go to the lower class
        best = max((score for score in row if score == score), default=None)  # noqa: PLR0124
        found.append(None if best is None else _label(labels, row.index(best)))
    return found


def show(results: Sequence[Result], outputs: Mapping[str, Tensor]) -> Dict[str, Dict[str, Any]]:
    """Return views for people by the output they stand for: `top`, `texts` or `found`.

    The outputs that a view takes in are left out where it is shown.
    """
    views: Dict[str, Dict[str, Any]] = {}
    for result in results:
        numbers = outputs[result.names["classes"]]
        if result.kind == "text":
            texts = ["".join(row) for row in _texts(result, numbers)]
            views[result.names["classes"]] = {"texts": texts}
        elif result.kind == "top_k":
            scores = outputs[result.names["scores"]].to_flat()
            classes, width = numbers.to_flat(), numbers.shape[-1]
            pairs = [
                {"label": result.label(number), "index": number, "score": _finite(score)}
                for number, score in zip(classes, scores)  # noqa: B905 - not in CPython 3.8
            ]
            rows = [pairs[at : at + width] for at in range(0, len(pairs), width)]
            views[result.names["scores"]] = {"top": rows, "takes": [result.names["classes"]]}
        else:
            views[result.names["boxes"]] = _boxes(result, outputs)
    return views


def _texts(result: Result, numbers: Tensor) -> List[List[str]]:
    """Return the labels of each row up to its end, which -1 fills."""
    flat, width = numbers.to_flat(), numbers.shape[-1]
    between = "" if result.labels is not None else " "
    return [
        [
            (between if place else "") + result.label(number)
            for place, number in enumerate(flat[at : at + width])
            if number >= 0
        ]
        for at in range(0, len(flat), max(width, 1))
    ]


def _boxes(result: Result, outputs: Mapping[str, Tensor]) -> Dict[str, Any]:
    corners = outputs[result.names["boxes"]].to_flat()
    columns = [outputs[result.names[part]].to_flat() for part in ("classes", "scores", "batch")]
    found = [
        {
            "label": result.label(number),
            "index": number,
            "score": _finite(score),
            "batch": batch,
            "box": [_finite(side) for side in corners[4 * at : 4 * at + 4]],
        }
        for at, (number, score, batch) in enumerate(zip(*columns))  # noqa: B905 - see above
    ]
    return {
        "found": found,
        "takes": [result.names[part] for part in ("classes", "scores", "batch")],
    }


def _finite(value: Any) -> Any:
    """Return a number as JSON can hold it: None for a NaN or an infinity."""
    return value if math.isfinite(value) else None
