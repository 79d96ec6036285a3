"""Drift statistics: exact over many requests, silent about single ones."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest

from runtime.privacy import drift as module
from runtime.privacy.drift import BLOCK, Drift, Summary
from runtime.tensor import Tensor

if TYPE_CHECKING:
    from collections.abc import Mapping


class Request(NamedTuple):
    feeds: Mapping[str, Tensor]


class Steady:
    """A clock that goes on by a tenth of a second a look."""

    now = 0.0

    def __call__(self) -> float:
        self.now += 0.1
        return self.now


def tensor(array: np.ndarray[Any, Any]) -> Tensor:
    return Tensor(str(array.dtype), array.shape, array.tobytes())


def fed(drift: Drift, values: np.ndarray[Any, Any], name: str = "x") -> None:
    for row in values:
        drift.observe(Request({name: tensor(row)}), {})
        drift.gather()


def test_a_summary_of_parts_is_that_of_the_whole() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(1e6, 3.0, 1000)
    summary = Summary()
    for part in np.split(values, [1, 10, 500]):
        summary.add(part.tolist())
    assert summary.count == 1000
    assert summary.mean == pytest.approx(values.mean(), rel=1e-12)
    assert summary.deviation == pytest.approx(values.std(), rel=1e-6)
    assert sum(summary.bins) == 1000


def test_nothing_is_shown_before_a_block_is_full_and_then_only_whole_blocks() -> None:
    drift = Drift([], steady=Steady())
    rows = np.arange(3 * BLOCK, dtype=np.float32).reshape(-1, 1)
    looks = []
    for row in rows:
        fed(drift, row[None])
        looks.append(drift.snapshot())
    assert looks[BLOCK - 2] == (0, {})
    # what is shown is the same for all the requests of a block that is not full
    assert {requests for requests, _ in looks} == {0, BLOCK, 2 * BLOCK, 3 * BLOCK}
    assert len({str(look) for look in looks}) == 4
    assert looks[-1] == (
        3 * BLOCK, {("input", "x"): (3 * BLOCK, rows.mean(), pytest.approx(rows.std()))}
    )  # fmt: skip


def test_masked_inputs_are_not_counted() -> None:
    drift = Drift(["secret"], steady=Steady())
    one = Tensor("float32", (1,), b"\0\0\x80?")
    for _ in range(BLOCK):
        drift.observe(Request({"secret": one, "x": one}), {"secret": one})
    drift.gather()
    assert set(drift.snapshot()[1]) == {("input", "x"), ("output", "secret")}


def test_no_single_value_is_written() -> None:
    drift = Drift([], steady=Steady())
    fed(drift, np.full((BLOCK, 1), 0.7310585, np.float32))
    fed(drift, np.array([[1234.5678]], np.float32).repeat(BLOCK, 0))
    (record,) = drift.records(ending=True)
    (told,) = record.fields["tensors"]
    assert record.fields["requests"] == 2 * BLOCK
    assert (told["low"], told["high"]) == (0.5, 2048.0)
    text = json.dumps(told)
    assert "0.731" not in text
    assert "1234.5" not in text
    assert record.inputs == record.outputs == {}


def test_bounds_are_rounded_outward() -> None:
    for value, low, high in ((3.0, 2.0, 4.0), (-3.0, -4.0, -2.0), (0.0, 0.0, 0.0), (4.0, 4.0, 8.0)):
        summary = Summary()
        summary.add([value])
        assert (summary.low, summary.high) == (low, high)


def test_what_is_no_finite_number_is_counted_apart() -> None:
    drift = Drift([], steady=Steady())
    fed(drift, np.tile(np.array([1, np.nan, np.inf, -np.inf, 1e300, 3]), (BLOCK, 1)))
    (record,) = drift.records(ending=True)
    (told,) = record.fields["tensors"]
    assert (told["count"], told["strange"], told["mean"]) == (2 * BLOCK, 4 * BLOCK, 2.0)
    assert math.isfinite(told["std"])


def test_a_block_that_is_too_small_is_never_written() -> None:
    drift = Drift([], steady=Steady())
    fed(drift, np.ones((BLOCK - 1, 1), np.float32))
    assert drift.records(ending=True) == []


def test_statistics_are_written_every_ten_minutes_for_that_time_alone() -> None:
    steady = Steady()
    drift = Drift([], steady=steady)
    fed(drift, np.full((BLOCK, 1), 1, np.float32))
    assert drift.records(ending=False) == []
    steady.now += module.WRITE_S
    (first,) = drift.records(ending=False)
    fed(drift, np.full((BLOCK, 1), 3, np.float32))
    steady.now += module.WRITE_S
    (second,) = drift.records(ending=False)
    means = [one.fields["tensors"][0]["mean"] for one in (first, second)]
    assert means == [1, 3]
    assert drift.snapshot()[1]["input", "x"][1] == 2


def test_bins_follow_the_values_that_the_build_host_saw() -> None:
    drift = Drift([], lambda: {("input", "x"): (0.0, 20.0)}, steady=Steady())
    fed(drift, np.array([[-1.0], [0.0], [0.5], [19.5], [20.0], [99.0]]).repeat(BLOCK, 0))
    (record,) = drift.records(ending=True)
    (told,) = record.fields["tensors"]
    assert told["edges"] == [float(edge) for edge in range(21)]
    wanted = [0] * 22
    wanted[0] = wanted[20] = BLOCK
    wanted[1] = wanted[21] = 2 * BLOCK
    assert told["bins"] == wanted


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
def test_the_best_class_of_each_row_of_scores_is_counted(dtype: str) -> None:
    drift = Drift([], steady=Steady())
    scores = np.eye(5, dtype=dtype)[[4, 2]]
    for _ in range(BLOCK):
        drift.observe(Request({}), {"scores": tensor(scores)})
    (record,) = drift.records(ending=True)
    assert record.fields["tensors"][0]["classes"] == {"2": BLOCK, "4": BLOCK}


@pytest.mark.parametrize(
    "dtype", ["uint8", "int8", "int16", "uint16", "int32", "int64", "uint32", "uint64", "bool"]
)
def test_every_type_of_number_is_counted(dtype: str) -> None:
    drift = Drift([], steady=Steady())
    fed(drift, np.ones((BLOCK, 2), dtype))
    assert drift.snapshot()[1]["input", "x"] == (2 * BLOCK, 1.0, 0.0)


def test_texts_and_empty_tensors_are_passed_over() -> None:
    drift = Drift([], steady=Steady())
    for _ in range(BLOCK):
        drift.observe(
            Request({"t": Tensor("string", (1,), [b"x"]), "e": Tensor("float32", (0, 2), b"")}), {}
        )
    drift.gather()
    assert drift.snapshot() == (BLOCK, {})


def test_a_large_tensor_is_sampled_from_all_over() -> None:
    drift = Drift([], steady=Steady())
    values = np.linspace(0, 1, 100_000, dtype=np.float32)
    for _ in range(BLOCK):
        drift.observe(Request({"x": tensor(values)}), {})
    drift.gather()
    count, mean, deviation = drift.snapshot()[1]["input", "x"]
    assert count == BLOCK * module.MAX_ELEMENTS
    assert mean == pytest.approx(0.5, abs=0.01)
    assert deviation == pytest.approx(values.std(), abs=0.01)


def test_requests_past_the_rate_are_not_looked_at() -> None:
    drift = Drift([], steady=lambda: 5.0)
    for _ in range(10 * module.MAX_PER_S):
        drift.observe(Request({"x": Tensor("uint8", (1,), b"\1")}), {})
    drift.gather()
    assert drift.snapshot()[0] <= module.MAX_PER_S
