"""Halves that share nothing, and samples that two sets have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packager.data import Samples, overlap_note, shared_samples, split_halves

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path


def make(contents: Sequence[str], labels: Sequence[Any] | None = None) -> Samples:
    return Samples(
        [dict] * len(contents),
        digest="d",
        origin="some",
        kind="npz",
        labels=labels,
        names=[f"{content}-{index}" for index, content in enumerate(contents)],
        contents=contents,
    )


def classes(samples: Samples) -> list[int]:
    assert samples.labels is not None
    return sorted(int(label[0]) for label in samples.labels)


@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 3)), min_size=2, max_size=60),
    st.integers(0, 5),
)
def test_halves_share_no_content_and_lose_nothing(drawn: list[tuple[int, int]], seed: int) -> None:
    labels = [np.array([label]) for _, label in drawn]
    samples = make([str(content) for content, _ in drawn], labels)
    choose, confirm = split_halves(samples, seed)
    if len({content for content, _ in drawn}) == 1:
        assert choose is confirm is samples
        return
    assert not set(choose.contents) & set(confirm.contents)
    assert sorted(choose.names + confirm.names) == sorted(samples.names)
    assert len(choose)
    assert len(confirm)


def test_each_class_goes_half_and_half() -> None:
    numbers = [index % 3 for index in range(42)]
    samples = make([str(i) for i in range(42)], [np.array([number]) for number in numbers])
    choose, confirm = split_halves(samples, 0)
    assert classes(choose) == classes(confirm) == sorted([0, 1, 2] * 7)


def test_odd_classes_still_make_equal_halves() -> None:
    samples = make([str(i) for i in range(30)], [np.array([i % 10]) for i in range(30)])
    assert [len(half) for half in split_halves(samples, 1)] == [15, 15]


def test_halves_depend_on_contents_and_seed_and_not_on_the_order() -> None:
    contents = [str(i) for i in range(40)]
    halves = [
        {frozenset(half.contents) for half in split_halves(make(order), seed)}
        for order, seed in ((contents, 0), (contents[::-1], 0), (contents, 1))
    ]
    assert halves[0] == halves[1] != halves[2]


@pytest.mark.parametrize("labels", [None, [["a"], ["b"], ["c"], ["d"]], [np.array([0.5])] * 4])
def test_without_classes_the_contents_alone_decide(labels: Any) -> None:
    choose, confirm = split_halves(make(list("abcd"), labels), 0)
    assert (len(choose), len(confirm)) == (2, 2)


def test_shared_samples_are_counted_by_their_contents(
    tmp_path: Path, load: Callable, make_spec: Callable
) -> None:
    x = make_spec("x", "float32")
    (tmp_path / "a.csv").write_text("x\n1\n2\n3\n")
    np.save(tmp_path / "b.npy", np.array([3, 4, 2], np.float32))
    calibration, evaluation = load(tmp_path / "a.csv", x), load(tmp_path / "b.npy", x)
    assert shared_samples(calibration, evaluation) == 2
    note = overlap_note(calibration, evaluation)
    assert note is not None
    assert note.startswith("2 of 3 samples of the evaluation data are in the calibration data")
    assert overlap_note(calibration, evaluation[1:2]) is None


def test_samples_that_do_not_match_in_number_are_a_fault_of_ours() -> None:
    with pytest.raises(ValueError, match="1 for 2 samples"):
        make(["a", "b"], [np.array([0])])


def test_a_spread_is_drawn_over_the_whole_set_and_keeps_its_order() -> None:
    samples = make([f"{index:03}" for index in range(100)])
    some = samples.spread(20)
    assert len(some) == 20
    assert list(some.contents) == sorted(some.contents)
    assert int(some.contents[-1]) > 60
    assert samples.spread(20).names == some.names
    assert samples.spread(100) is samples
