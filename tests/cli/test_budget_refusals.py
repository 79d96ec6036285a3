"""Every metric, budget and set of samples that cannot be: one sentence, exit 2, nothing written."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def _refused(done: Any, code: int, *words: str) -> None:
    assert done.returncode == code, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    assert done.stderr.count("error: ") == 1
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr, done.stderr
    message = done.stderr[done.stderr.index("error: ") :].splitlines()[0]
    assert message[len("error: ")].islower() or message[len("error: ")] == "`"
    assert not message.endswith(".")
    assert done.stdout == ""


METRICS = """
def raises(outputs, labels):
    raise KeyError("no such class")


def nan(outputs, labels):
    return float("nan")


def word(outputs, labels):
    return "very good"


def nothing(outputs, labels):
    pass


def exits(outputs, labels):
    raise SystemExit(4)


def noisy(outputs, labels):
    print("measuring")
    import os
    os._exit(3)
"""


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("raises", ["mine.py:raises", "KeyError: 'no such class'", "mine.py:3: raise KeyError"]),
        ("nan", ["mine.py:nan", "returned nan, not a finite number"]),
        ("word", ["mine.py:word", "returned `'very good'` (str), not a number"]),
        ("nothing", ["mine.py:nothing", "returned `None` (NoneType), not a number"]),
        ("exits", ["mine.py:exits", "failed"]),
        ("noisy", ["mine.py:noisy", "failed"]),
        ("missing", ["`mine.py` has no function `missing`"]),
    ],
)
def test_a_metric_that_gives_no_number_is_refused(  # noqa: PLR0917 - one row of the table
    here: Any, search_options: Callable[..., Any], kept: Path, tmp_path: Path, function: str,
    words: list[str],
) -> None:  # fmt: skip
    (tmp_path / "mine.py").write_text(METRICS)
    done = here("compress", *search_options("plain"), "--metric", f"mine.py:{function}", "-o", kept)
    _refused(done, 2, *words)


def test_a_metric_that_cannot_be_imported_is_refused(
    here: Any, search_options: Callable[..., Any], kept: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text("import nothing_of_this_name\n")
    done = here("compress", *search_options("plain"), "--metric", "mine.py:f", "-o", kept)
    _refused(done, 2, "mine.py:f", "nothing_of_this_name")
    (tmp_path / "mine.py").write_text("def f(outputs, labels:\n")
    done = here("compress", *search_options("plain"), "--metric", "mine.py:f", "-o", kept)
    _refused(done, 2, "mine.py:f", "SyntaxError")
    done = here("compress", *search_options("plain"), "--metric", "none.py:f", "-o", kept)
    _refused(done, 2, "none.py", "does not exist")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--metric", "topp1"], ["no metric `topp1`", "did you mean `top1`?"]),
        (["--metric", "map"], ["`map` needs decoded boxes", "[boxes]"]),
        (["--metric", "top1:z"], ["`top1:z` names no output", "y"]),
        (["--metric", "wer"], ["int64", "a text per row"]),
        (["--metric", ""], ["`--metric` is empty"]),
        (["--max-drop=-1%"], ["`-1%` is no budget", "never below zero"]),
        (["--max-drop", "little"], ["`little` is no budget", "`0.5%`"]),
        (["--max-drop", ""], ["`` is no budget"]),
        (["--max-drop", "nan"], ["`nan` is no budget"]),
        (["--max-drop", "1e999"], ["`1e999` is no budget"]),
        (["--metric", "top1", "--max-drop", "200%"], ["a budget of 2 lets `top1` lose"]),
        (["--metric", "auc", "--max-drop", "rel:200%"], ["lets `auc` lose everything"]),
        (["--max-drop", "1"], ["a budget of 1 lets", "did you mean `1%`?"]),
        (["--metric", "top1", "--max-drop", "0.5%"], ["finer than one answer", "200 rows"]),
        (["--time-budget", "soon"], ["`soon` is no time", "`10m`"]),
        (["--time-budget", "10"], ["`10` is no time"]),
        (["--time-budget", "0s"], ["`0s` is no time"]),
        (["--time-budget=-5m"], ["`-5m` is no time"]),
        (["--time-budget", "1" + "0" * 400 + "h"], ["is no time"]),
        (["--objective", "speed"], ["speed", "latency"]),
        (["--precision", "int3"], ["int3"]),
        (["--label", "klass", "--metric", "top1"], ["the arrays `x`, `label`", "`--label label`"]),
    ],
)  # fmt: skip
def test_a_budget_that_cannot_be_is_refused(
    here: Any, search_options: Callable[..., Any], kept: Path, options: list[str], words: list[str]
) -> None:
    _refused(here("compress", *search_options("plain"), *options, "-o", kept), 2, *words)
    _refused(here("build", *search_options("plain"), *options, "-o", kept), 2, *words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"label": np.zeros(90, np.int64)}, ["`eval.npz` has 100 rows", "labels [90]"]),
        ({"label": np.full(100, 10)}, ["label 10", "10 classes"]),
        ({"label": np.full(100, -1)}, ["label -1"]),
        ({"label": np.array(["cat"] * 100)}, ["`top1` needs class numbers", "text"]),
        ({"label": np.full(100, 0.5)}, ["`top1` needs class numbers", "float64"]),
        ({"label": np.full(100, np.nan)}, ["NaN"]),
        ({"label": np.zeros((100, 10), np.int64)}, ["[1, 10]"]),
        ({"label": None}, ["no labels"]),
        ({"x": np.full((100, 64), np.nan, np.float32)}, ["NaN"]),
        ({"x": np.zeros((100, 63), np.float32)}, ["63"]),
        ({"x": np.zeros((1, 64), np.float32), "label": np.zeros(1, np.int64)}, ["one single"]),
        ({"x": np.zeros((0, 64), np.float32), "label": np.zeros(0, np.int64)}, ["no samples"]),
    ],
)
def test_evaluation_data_that_does_not_fit_is_refused(  # noqa: PLR0917 - one row of the table
    here: Any, data: Path, kept: Path, tmp_path: Path, change: dict[str, Any], words: list[str]
) -> None:
    with np.load(data / "plain-eval.npz") as arrays:
        changed = {**arrays, **change}
    np.savez(tmp_path / "eval.npz", **{k: v for k, v in changed.items() if v is not None})
    done = here(
        "compress", data / "plain.onnx", "-t", "cpu-arm64", "--eval", "eval.npz",
        "--metric", "top1", "--max-drop", "3%", "-o", kept,
    )  # fmt: skip
    _refused(done, 2, *words)


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--metric", "top1"], 2, ["`top1` needs labelled data", "--eval DATA"]),
        (["--max-drop", "1%"], 2, ["`agreement` cannot be measured without data", "--eval DATA"]),
        (["--eval", "none"], 10, ["`none` does not exist"]),
        (["--eval", "empty", "--metric", "top1"], 2, ["`empty` holds nothing"]),
        (["--eval", "random", "--metric", "top1"], 2, ["`random` has no labels"]),
        (["--eval", "none.py:rows"], 10, ["none.py", "does not exist"]),
        (["-c", "none.npz"], 10, ["`none.npz` does not exist"]),
        (["-c", "random:0"], 2, ["`random:0`"]),
        (["-c", "random:many"], 2, ["`random:many`"]),
        (["--precision", "int8-static"], 2, ["calibration data"]),
    ],
)
def test_data_that_is_not_there_is_refused(  # noqa: PLR0917 - one row of the table
    here: Any, data: Path, kept: Path, tmp_path: Path, options: list[str], code: int,
    words: list[str],
) -> None:  # fmt: skip
    (tmp_path / "empty").mkdir()
    done = here("compress", data / "plain.onnx", "-t", "cpu-arm64", *options, "-o", kept)
    _refused(done, code, *words)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (np.full((40, 64), np.nan, np.float32), ["NaN"]),
        (np.full((40, 64), np.inf, np.float32), ["inf"]),
        (np.array([["a"] * 64]), ["float32"]),
        (np.ones((40, 64), np.complex64), ["float32"]),
        (np.array([[None] * 64]), ["object"]),
        (np.full((40, 64), 1e300), ["float64", "float32"]),
    ],
)
def test_calibration_of_another_kind_is_refused(  # noqa: PLR0917 - one row of the table
    here: Any, data: Path, kept: Path, tmp_path: Path, rows: Any, words: list[str]
) -> None:
    np.savez(tmp_path / "calibration.npz", x=rows)
    done = here(
        "compress", data / "plain.onnx", "-t", "cpu-arm64", "-c", "calibration.npz", "-o", kept
    )
    _refused(done, 2, "calibration.npz", *words)


def test_whole_numbers_are_converted_and_said(here: Any, data: Path, tmp_path: Path) -> None:
    rows = np.random.default_rng(0).integers(-3, 4, (40, 64), dtype=np.int32)
    np.savez(tmp_path / "calibration.npz", x=rows)
    done = here(
        "compress", data / "plain.onnx", "-t", "cpu-arm64", "-c", "calibration.npz",
        "--precision", "fp32",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "`x` was converted from int32 to float32 in 40 of 40 rows" in done.stderr


def test_nothing_is_calibrated_on_one_sample_unless_asked_for(
    here: Any, data: Path, tmp_path: Path
) -> None:
    np.savez(tmp_path / "one.npz", x=np.ones((1, 64), np.float32))
    search = ("compress", data / "plain.onnx", "-t", "cpu-arm64", "-c", "one.npz", "--json")
    done = here(*search)
    assert done.returncode == 0, done.stderr
    assert "there is one single sample: what is found on it may not hold for others" in done.stderr
    assert "only 1 sample is left to compare on" in done.stderr
    (found,) = json.loads(done.stdout)
    (static,) = (c for c in found["candidates"] if c["name"] == "int8-static")
    assert static["verdict"] == "skipped"
    assert "one single sample" in static["reason"]
    (asked,) = json.loads(here(*search, "--precision", "int8-static").stdout)
    assert asked["precision"] == "int8-static"
