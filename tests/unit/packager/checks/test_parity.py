"""Parity: what counts as near, and what cannot be compared."""

from __future__ import annotations

import math

import numpy as np
import pytest

from packager.checks.parity import compare, contradiction, cosine_similarity


def floats(*rows: list[float]) -> np.ndarray:
    return np.array(rows, dtype=np.float32)


def test_equal_outputs_have_the_best_parity() -> None:
    outputs = [{"y": np.arange(12, dtype=np.float32).reshape(2, 6)}] * 3
    parity = compare(outputs, outputs)
    assert (parity.samples, parity.max_abs, parity.exact) == (3, 0.0, True)
    assert parity.cosine == pytest.approx(1.0)
    assert parity.top1_agreement == 1.0


def test_agreement_counts_rows_and_not_samples() -> None:
    expected = [{"y": floats([1, 2, 0], [3, 0, 0])}, {"y": floats([0, 0, 1])}]
    got = [{"y": floats([1, 2, 0], [0, 3, 0])}, {"y": floats([0, 0, 2])}]
    assert compare(expected, got).top1_agreement == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    "output",
    [np.zeros((2, 1), np.float32), np.zeros((2, 3, 4), np.float32), np.zeros(5, np.float32),
     np.zeros((2, 4), np.int64)],
)  # fmt: skip
def test_only_rows_of_float_scores_have_an_agreement(output: np.ndarray) -> None:
    assert compare([{"y": output}], [{"y": output}]).top1_agreement is None


def test_embeddings_of_unit_length_have_no_agreement() -> None:
    rows = np.random.default_rng(0).standard_normal((4, 16)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    assert compare([{"y": rows}], [{"y": rows}]).top1_agreement is None


def test_certain_probabilities_still_have_an_agreement() -> None:
    sure = floats([1.0, 0.0, 0.0])
    assert compare([{"y": sure}], [{"y": sure}]).top1_agreement == 1.0


def test_the_worst_output_decides() -> None:
    good = np.arange(10, dtype=np.float32)
    bad = good[::-1].copy()
    parity = compare([{"a": good, "b": good}], [{"a": good, "b": bad}])
    assert parity.cosine == pytest.approx(cosine_similarity(good, bad))
    assert parity.max_abs == 9.0


def test_scalars_are_compared_over_all_samples() -> None:
    expected = [{"y": floats([value])} for value in (1.0, 2.0, 3.0)]
    got = [{"y": floats([value])} for value in (3.0, 2.0, 1.0)]
    assert compare(expected, got).cosine == pytest.approx(10 / 14)


def test_integers_and_strings_are_exact_or_not() -> None:
    same = {"label": np.array(["cat"]), "id": np.array([3])}
    other = {"label": np.array(["dog"]), "id": np.array([3])}
    assert compare([same], [same]).exact
    assert not compare([same], [other]).exact


@pytest.mark.parametrize(
    ("got", "why"),
    [
        ({}, "the output `y` is missing"),
        ({"y": floats([1, 2, 3])}, "`y` has the shape [1, 3], not [1, 2]"),
        ({"y": floats([1, 2]).astype(np.float64)}, "`y` is float64, not float32"),
        ({"y": floats([1, math.nan])}, "`y` holds NaN or infinity where the original has numbers"),
        ({"y": floats([math.inf, 2])}, "`y` holds NaN or infinity where the original has numbers"),
    ],
)
def test_what_cannot_be_compared_is_named_and_fails(got: dict[str, np.ndarray], why: str) -> None:
    expected = {"y": floats([1, 2])}
    assert contradiction(expected, got) == why
    parity = compare([expected], [got])
    assert (parity.cosine, parity.max_abs, parity.exact) == (0.0, math.inf, False)


def test_what_is_no_number_in_both_is_left_out() -> None:
    pair = {"y": floats([1, math.nan, -math.inf, 4])}
    parity = compare([pair], [pair])
    assert parity.max_abs == 0.0
    assert parity.cosine == pytest.approx(1.0)


def test_numbers_where_the_original_has_none_are_a_contradiction() -> None:
    why = contradiction({"y": floats([1, math.nan])}, {"y": floats([1, 2])})
    assert why == "`y` holds numbers where the original has NaN or infinity"


def test_half_precision_does_not_overflow() -> None:
    large = {"y": np.full((1, 32), 60000, np.float16)}
    assert compare([large], [large]).cosine == pytest.approx(1.0)


def test_nothing_to_compare_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing to compare"):
        compare([], [])
