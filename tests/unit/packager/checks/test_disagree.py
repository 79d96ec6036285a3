"""The samples that differ most are found, the changed ones first."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from packager.checks.disagree import most_different


def outputs(*rows: list[float]) -> dict[str, np.ndarray]:
    return {"y": np.array(rows, np.float32)}


def test_changed_answers_come_first_and_equal_ones_are_left_out() -> None:
    want = [outputs([5, 1, 0]), outputs([5, 1, 0]), outputs([1, 0.9, 0]), outputs([0, 1, 0])]
    have = [outputs([5, 1, 0]), outputs([5, 1, 4]), outputs([0.9, 1, 0]), outputs([0, 0, 1])]
    found = most_different(want, have, ["same", "far", "near", "turned"])
    assert [(f["sample"], f["changed"]) for f in found] == [
        ("turned", True), ("near", True), ("far", False),
    ]  # fmt: skip
    assert found[0]["distance"] == pytest.approx(1.0)
    assert found[0]["original"][0] == ["1", 1.0]
    assert found[0]["artifact"][0] == ["2", 1.0]


def test_only_so_many_are_returned_and_earlier_ones_win_ties() -> None:
    want, have = [outputs([1, 0])] * 20, [outputs([0, 1])] * 20
    found = most_different(want, have, [str(i) for i in range(20)], count=3, labels=["cat", "dog"])
    assert [f["sample"] for f in found] == ["0", "1", "2"]
    assert found[0]["original"] == [["cat", 1.0], ["dog", 0.0]]
    assert found[0]["artifact"] == [["dog", 1.0], ["cat", 0.0]]
    assert most_different(want, have, ["x"] * 20, count=0) == []


def test_the_row_that_differs_most_is_shown() -> None:
    want = [outputs([1, 0], [0, 1], [1, 0])]
    have = [outputs([1, 0], [1, 0], [0.9, 0.1])]
    (found,) = most_different(want, have, ["a.npz"])
    assert (found["row"], found["changed"], found["original"][0]) == (1, True, ["1", 1.0])


def test_embeddings_are_told_apart_by_distance_alone() -> None:
    vector = np.array([[0.6, -0.8]], np.float32)
    (found,) = most_different([{"e": vector}], [{"e": vector[:, ::-1] * -1}], ["a"])
    assert (found["changed"], found["original"], found["artifact"]) == (False, [], [])
    assert found["distance"] == pytest.approx(1 - 0.96, abs=1e-6)


def test_top_classes_of_the_graph_are_shown() -> None:
    def answer(first: int) -> dict[str, np.ndarray]:
        return {"y": np.array([[0.7, 0.3]], np.float32), "y_classes": np.array([[first, 3]])}

    (found,) = most_different([answer(812)], [answer(5)], ["a"])
    assert found["changed"]
    assert found["original"] == [["812", pytest.approx(0.7)], ["3", pytest.approx(0.3)]]
    assert found["artifact"][0][0] == "5"


def test_texts_are_shown_as_texts() -> None:
    want, have = {"t": np.array([[1, 2, -1]])}, {"t": np.array([[1, 1, -1]])}
    (found,) = most_different([want], [have], ["line"], labels=["", "a", "b"])
    assert (found["original"], found["artifact"]) == ([["ab", None]], [["aa", None]])
    strings = [{"t": np.array([text], object)} for text in ("ab", "aa")]
    (found,) = most_different(strings[:1], strings[1:], ["line"])
    assert (found["original"], found["artifact"]) == ([["ab", None]], [["aa", None]])


def test_boxes_differ_in_number_class_or_place() -> None:
    def boxes(*scores: float, classes: list[int]) -> dict[str, np.ndarray]:
        return {
            "boxes": np.tile(np.array([1.0, 2, 3, 4], np.float32), (len(scores), 1)),
            "scores": np.array(scores, np.float32),
            "classes": np.array(classes, np.int64),
            "batch": np.zeros(len(scores), np.int64),
        }

    want = [boxes(0.9, 0.5, classes=[1, 0])] * 3
    have = [
        boxes(0.9, classes=[1]), boxes(0.9, 0.5, classes=[0, 0]), boxes(0.9, 0.5, classes=[1, 0]),
    ]  # fmt: skip
    found = most_different(want, have, ["fewer", "other", "same"], labels=["cat", "dog"])
    assert [f["sample"] for f in found] == ["fewer", "other"]
    assert found[0]["distance"] == 2.0
    assert found[0]["original"] == [["dog", pytest.approx(0.9)], ["cat", 0.5]]


def test_what_is_found_is_json_even_where_the_artifact_gives_nan() -> None:
    found = most_different([outputs([1, 0])], [outputs([math.nan, 0])], ["a"])
    assert found[0]["distance"] == 2.0
    assert "NaN" not in json.dumps(found, allow_nan=False)


def test_an_output_that_is_missing_or_of_another_shape_is_the_worst() -> None:
    want = [outputs([1, 0]), outputs([1, 0])]
    found = most_different(want, [{}, outputs([1, 0, 0])], ["a", "b"])
    assert [(f["changed"], f["distance"]) for f in found] == [(True, 2.0)] * 2
    with pytest.raises(ValueError, match="shorter"):
        most_different(want, want[:1], ["a", "b"])


def test_rows_of_strings_are_told_apart() -> None:
    original = {"label": np.array(["ham", "spam"], object), "p": np.ones((2, 2), np.float32)}
    artifact = {"label": np.array(["ham", "ham"], object), "p": np.ones((2, 2), np.float32)}
    (found,) = most_different([original], [artifact], ["mail"])
    assert found["row"] == 1
    assert found["changed"]
    assert most_different([original], [original], ["mail"]) == []
