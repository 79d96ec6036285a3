"""What a bundle tells of its model's texts: labels of classes, and the tokenizer's vocabulary."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from packager.bundle.archive import Entry
from packager.errors import InputOutputError, UsageError
from packager.passes.boxes import class_count
from packager.passes.text import manifest_text
from packager.passes.wordpiece import read_wordpiece
from packager.recipe import OutputSteps

if TYPE_CHECKING:
    from pathlib import Path

    from packager.model import Signature
    from packager.recipe import Recipe

_SAFE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_VOCABULARY: Final = "model/vocabulary.txt"


@dataclass(frozen=True, kw_only=True)
class Readable:
    """Texts that make inputs and outputs readable.

    Attributes:
        entries: Label files and the vocabulary.
        fields: What `manifest["model"]` says of them: `labels` by the output whose last axis holds
            classes; `results` and `text` where the recipe has such.
    """

    entries: tuple[Entry, ...]
    fields: dict[str, Any]


def make_readable(recipe: Recipe, signature: Signature) -> Readable:
    """Read the label files and the tokenizer that a recipe names, and check them.

    Args:
        recipe: Its inputs and outputs.
        signature: Of the model alone.

    Raises:
        UsageError: not one label per class, or a tokenizer that does not fit.
        InputOutputError: a file cannot be read.
    """
    entries: dict[str, Entry] = {}
    labels: dict[str, str] = {}
    results: list[dict[str, Any]] = []
    specs = {spec.name: spec for spec in signature.outputs}
    taken = {spec.name for spec in signature.outputs}

    def add(name: str, path: Path, classes: int | None, **options: Any) -> str:
        stem = name if _SAFE.fullmatch(name) else "output"
        place = f"labels/{stem}.txt"
        while place in entries:
            place = f"labels/{stem}-{len(entries)}.txt"
        text = _labels(name, path, classes, **options)
        entries[place] = Entry(path=place, source=text.encode(), compress=True)
        return place

    for name, steps in _label_sources(recipe, signature).items():
        spec = specs[name]
        classes = spec.shape[-1].size if spec.shape else None
        file = None
        if steps.labels is not None:
            blank = steps.blank if steps.ctc else None
            file = add(name, steps.labels, classes, blank=blank)
        if steps.ctc or steps.top_k is not None:
            results.append(_result(steps, name, file, taken))
        elif file is not None:
            labels[name] = file
    if recipe.boxes is not None:
        file = None
        if recipe.boxes.labels is not None:
            file = add("classes", recipe.boxes.labels, class_count(recipe.boxes, specs))
        places = {"boxes": "boxes", "scores": "scores", "batch": "batch"}
        named = {"labels": file, "as": _fresh("labels", taken)} if file else {}
        results.append({"kind": "boxes", "classes": "classes", **places, **named})
    fields: dict[str, Any] = {"labels": labels}
    if results:
        fields["results"] = results
    if recipe.text is not None:
        words = read_wordpiece(recipe.text).vocabulary
        content = "".join(f"{word}\n" for word in words).encode()
        entries[_VOCABULARY] = Entry(path=_VOCABULARY, source=content, compress=True)
        fields["text"] = manifest_text(recipe.text, signature, _VOCABULARY)
    return Readable(entries=tuple(entries.values()), fields=fields)


def _label_sources(recipe: Recipe, signature: Signature) -> dict[str, OutputSteps]:
    """Return the steps of every output that has any; a photo's labels are for the first output."""
    found = dict(recipe.outputs)
    image = next((image.labels for image in recipe.images.values() if image.labels), None)
    first = signature.outputs[0].name
    in_boxes = recipe.boxes is not None and first in {recipe.boxes.boxes, recipe.boxes.scores}
    if image is not None and not in_boxes:
        steps = found.get(first, OutputSteps())
        found[first] = dataclasses.replace(steps, labels=steps.labels or image)
    return found


def _result(steps: OutputSteps, name: str, file: str | None, taken: set[str]) -> dict[str, Any]:
    """Return how clients read an output of class numbers."""
    if steps.ctc:
        named = {"labels": file, "as": _fresh(f"{name}_text", taken)} if file else {}
        return {"kind": "text", "classes": name, **named}
    named = {"labels": file, "as": _fresh(f"{name}_labels", taken)} if file else {}
    return {"kind": "top_k", "scores": name, "classes": f"{name}_classes", **named}


def _fresh(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def _labels(name: str, path: Path, classes: int | None, *, blank: int | None = None) -> str:
    """Return the labels with one line per class, checked.

    Args:
        name: The output's.
        path: The file.
        classes: How many there must be, None where the model does not say.
        blank: For `ctc`: a line that is one blank is a label then, and the blank's own line may be
            missing.
    """
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as fault:
        raise InputOutputError(f"`{path}` cannot be read as text: {fault}") from fault
    lines = content.removesuffix("\n").split("\n")
    if blank is None:
        names = [line.strip() for line in lines]
    else:
        names = [line.removesuffix("\r") for line in lines]
        if classes is not None and len(names) == classes - 1:
            names.insert(blank, "")
    if classes is not None and len(names) != classes:
        raise UsageError(
            f"`{path.name}` has {len(names)} lines for {classes} classes of `{name}`",
            accepted="one class name per line"
            if blank is None
            else "one character per line; the blank may be left out",
        )
    return "".join(f"{line}\n" for line in names)
