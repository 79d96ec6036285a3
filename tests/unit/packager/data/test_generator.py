"""The user's generator: it runs once in a child process, and its faults are told in plain words."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from packager.errors import InputOutputError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SOURCE = """
import pathlib
import random
import numpy as np
from beside import SCALE

def plain():
    for index in range(3):
        yield {"x": np.full(3, index * SCALE, np.float32)}

def labelled():
    for index in range(4):
        yield {"x": [[index, 1.0, 2.0]]}, index % 3

def differs():
    for _ in range(2):
        yield {"x": np.array([random.random()] * 3)}

def counts():
    with open(pathlib.Path(__file__).with_name("runs"), "a") as stream:
        stream.write("run\\n")
    return [{"x": np.zeros((1, 3))}, {"x": np.ones((1, 3))}]

def boxes():
    for index in range(2):
        label = {"boxes": [[0, 0, 1, index]] * index, "classes": [index] * index}
        yield {"x": np.zeros(3)}, label

def fails():
    yield {"x": np.zeros(3)}
    raise RuntimeError("no such colour")

def endless():
    index = 0
    while True:
        yield {"x": np.zeros(3)}

def no_dict():
    yield np.zeros(3)

def three():
    yield {"x": np.zeros(3)}, 1, 2

def objects():
    yield {"x": np.array([object()])}

def ragged():
    yield {"x": [[1, 2], [3]]}

def nan():
    yield {"x": np.zeros(3)}
    yield {"x": np.array([1, np.nan, 2])}

def other_name():
    yield {"image": np.zeros(3)}

def nothing():
    return iter(())

def number():
    return 5

constant = 7
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data.py").write_text(SOURCE)
    (tmp_path / "beside.py").write_text("SCALE = 2\n")
    return tmp_path


def test_what_it_yields_becomes_samples(folder: Path, load: Callable, make_spec: Callable) -> None:
    samples = load(f"{folder}/data.py:plain", make_spec("x", "float32", 3))
    assert [s["x"].tolist() for s in samples] == [[[v] * 3] for v in (0.0, 2.0, 4.0)]
    assert samples.labels is None
    assert samples.names == ("sample 0", "sample 1", "sample 2")
    assert (samples.kind, samples.origin) == ("generator", "3 samples of `data.py:plain`")
    assert samples.notes == ("a batch axis was added to `x` in 3 of 3 samples",)


def test_labels_come_as_pairs(folder: Path, load: Callable, make_spec: Callable) -> None:
    samples = load(f"{folder}/data.py:labelled", make_spec("x", "float32", 3), labelled=True)
    assert [label.tolist() for label in samples.labels] == [[0], [1], [2], [0]]
    boxed = load(f"{folder}/data.py:boxes", make_spec("x", "float32", 3), labelled=True)
    assert boxed.labels[0]["boxes"].shape == (0, 4)
    assert boxed.labels[1]["boxes"].tolist() == [[0, 0, 1, 1]]
    assert boxed.labels[1]["classes"].dtype == np.int64


def test_it_runs_once_and_later_uses_read_what_was_kept(
    folder: Path, load: Callable, make_spec: Callable
) -> None:
    samples = load(f"{folder}/data.py:counts", make_spec("x", "float32", 3))
    assert [list(samples), list(samples)]
    assert (folder / "runs").read_text() == "run\n"


def test_the_digest_is_that_of_the_content(
    folder: Path, load: Callable, make_spec: Callable
) -> None:
    x = make_spec("x", "float32", 3)
    digests = [load(f"{folder}/data.py:{name}", x).digest for name in ("plain", "plain")]
    digests += [load(f"{folder}/data.py:differs", x).digest for _ in range(2)]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("fails", r"the generator `data.py:fails` failed\n(.|\n)*RuntimeError: no such colour"),
        ("no_dict", r"^sample 0 of `data.py:no_dict` is ndarray, not a dict of arrays"),
        ("three", r"is a tuple of 3, not \(dict, label\)"),
        ("objects", r"`x` holds objects \(ndarray\), not numbers or texts"),
        ("ragged", r"sample 0 of `data.py:ragged`: `x` is no array"),
        ("nan", r"^sample 1 of `data.py:nan`: `x` holds NaN"),
        ("other_name", r"sample 0 of `data.py:other_name` holds the arrays `image`"),
        ("nothing", r"holds no samples"),
        ("number", r"`data.py:number` returns int, not samples"),
        ("constant", r"`data.py` has no function `constant`"),
        ("missing", r"`data.py` has no function `missing`"),
        ("", r"names no function"),
    ],
)
def test_a_generator_that_cannot_be_is_refused(
    folder: Path, load: Callable, make_spec: Callable, function: str, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        load(f"{folder}/data.py:{function}", make_spec("x", "float32", 3))


def test_an_endless_generator_is_stopped(
    folder: Path, load: Callable, make_spec: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("packager.data._generator.MOST_SAMPLES", 50)
    with pytest.raises(UsageError, match=r"`data.py:endless` yields more than 50 samples"):
        load(f"{folder}/data.py:endless", make_spec("x", "float32", 3))


def test_a_generator_that_takes_too_long_is_ended(
    folder: Path, load: Callable, make_spec: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "slow.py").write_text("import time\ndef slow():\n    time.sleep(60)\n    yield {}\n")
    monkeypatch.setattr("packager.data._generator._TIMEOUT_S", 0.5)
    with pytest.raises(UsageError, match="took longer than") as caught:
        load(f"{folder}/slow.py:slow", make_spec("x", "float32", 3))
    assert "must come to its end" in caught.value.hint


def test_a_missing_file_is_an_input_error(
    folder: Path, load: Callable, make_spec: Callable
) -> None:
    with pytest.raises(InputOutputError, match=r"none.py` does not exist"):
        load(f"{folder}/none.py:plain", make_spec("x", "float32", 3))


def test_nothing_is_left_behind(
    folder: Path, load: Callable, make_spec: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tempfile

    (folder / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder / "temporary"))
    load(f"{folder}/data.py:plain", make_spec("x", "float32", 3))
    with pytest.raises(UsageError):
        load(f"{folder}/data.py:fails", make_spec("x", "float32", 3))
    assert list((folder / "temporary").iterdir()) == []
