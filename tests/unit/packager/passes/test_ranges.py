"""Ranges of activations: what each method takes in, and that counts are exact."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

from packager.errors import UsageError
from packager.passes.contract import apply
from packager.passes.int8_static import Int8Static
from packager.passes.ranges import (
    METHODS,
    Histogram,
    choose_range,
    find_histograms,
    narrowed_by_clamps,
)

if TYPE_CHECKING:
    from collections.abc import Callable


def histogram_of(*parts: Any) -> Histogram:
    found = Histogram("float32")
    for part in parts:
        found.add(np.asarray(part, np.float32))
    return found


def squared_error(values: Any, low: float, high: float) -> float:
    step = (high - low) / 255
    quantized = np.clip(np.rint((values - low) / step), 0, 255) * step + low
    return float(((quantized - values) ** 2).sum())


def test_a_histogram_counts_every_value_once_however_it_grew() -> None:
    random = np.random.default_rng(0)
    parts = [random.standard_normal(900) * size - shift for size, shift in
             ((0.01, 0), (1, 3), (200, 0), (5, 900))]  # fmt: skip
    grown, other = histogram_of(*parts), histogram_of(*parts[::-1])
    assert grown.counts.sum() == other.counts.sum() == 3600
    together = np.concatenate(parts).astype(np.float32)
    assert (grown.low, grown.high) == (together.min(), together.max())
    width = 2.0**grown.exponent
    edges = (np.arange(len(grown.counts) + 1) + grown.first) * width
    assert np.array_equal(np.histogram(together.astype(np.float64), edges)[0], grown.counts)


@pytest.mark.parametrize("values", [[], [0.0], [7.0], [-3e30, 3e30], [1e-30], [np.nan, np.inf]])
def test_odd_values_have_a_range_that_holds_zero(values: list[float]) -> None:
    found = histogram_of(values)
    for method in METHODS:
        for symmetric in (False, True):
            low, high = choose_range(found, method, symmetric=symmetric)
            assert low <= 0 <= high
            assert np.isfinite([low, high]).all()


def test_values_that_are_no_numbers_are_passed_over() -> None:
    found = histogram_of([1.0, np.nan, 2.0, -np.inf])
    assert choose_range(found, "minmax") == (0.0, 2.0)


def test_minmax_takes_everything_in_and_the_others_leave_outliers_out() -> None:
    random = np.random.default_rng(1)
    values = np.append(random.standard_normal(1_000_000), [-60.0, 90.0]).astype(np.float32)
    found = histogram_of(*np.array_split(values, 100))
    assert choose_range(found, "minmax") == (-60.0, 90.0)
    for method in ("percentile", "mse", "entropy"):
        low, high = choose_range(found, method)
        assert -50 < low < -2, method
        assert 2 < high < 50, method


def test_least_squares_is_as_good_as_trying_every_range() -> None:
    random = np.random.default_rng(2)
    for values in (
        random.standard_normal(20_000),
        random.standard_t(2, 20_000),
        np.maximum(random.laplace(size=20_000), 0),
        np.minimum(np.maximum(random.standard_normal(20_000) * 3, 0), 6),
    ):
        values = values.astype(np.float32)  # noqa: PLW2901 - the same values as the histogram's
        low, high = choose_range(histogram_of(values), "mse")
        chosen = squared_error(values, low, high)
        shares = np.linspace(0.05, 1, 60)
        least = min(
            squared_error(values, min(values.min(), 0) * a, values.max() * b)
            for a in (shares if values.min() < 0 else [1.0])
            for b in shares
        )
        assert chosen <= 1.05 * least
        assert chosen <= 1.001 * squared_error(values, min(values.min(), 0), values.max())


def test_a_symmetric_range_is_centred_on_zero() -> None:
    found = histogram_of(np.linspace(-1, 5, 3000))
    for method in METHODS:
        low, high = choose_range(found, method, symmetric=True)
        assert low == -high
        assert high > 2.5


def test_what_a_clamp_cuts_off_needs_no_range(
    drawing: Any, make_spec: Callable, batch: Any, tmp_path: Any
) -> None:
    d = drawing()
    value = d.add("Conv", "x", d.weight(4, 4, 1, 1), out="wide")
    clipped = d.add("Clip", d.add("Relu", value), d.constant(np.float32(-1)),
                    d.constant(np.float32(6)))  # fmt: skip
    both = d.add("Conv", clipped, d.weight(4, 4, 1, 1), out="both")
    d.add("Add", d.add("Relu", both), both, out="y")
    shape = (batch, 4, 2, 2)
    model = d.save(tmp_path / "clamps.onnx", (make_spec("x", "float32", *shape),),
                   make_spec("y", "float32", *shape))  # fmt: skip
    ranges = dict.fromkeys(("x", "wide", "both", "y"), (-9.0, 9.0))
    ranges |= {"relu_1": (0.0, 9.0), clipped: (0.0, 6.0), "relu_4": (0.0, 9.0)}
    found = narrowed_by_clamps(onnx.load(model.path), ranges)
    assert found == ranges | {"wide": (0.0, 6.0), "relu_1": (0.0, 6.0)}


def test_one_run_serves_every_method_and_choice_of_layers(
    make_cnn: Callable, make_samples: Callable, make_context: Callable
) -> None:
    model = make_cnn(layers=4)
    samples = make_samples(model)
    loaded: list[int] = []
    context = make_context(samples.map(lambda s: loaded.append(1) or s))
    base = onnx.load(model.path)
    results = []
    for step in (
        *(Int8Static(calibration=method) for method in METHODS),
        Int8Static(keep_float=("n_scores",)),
        Int8Static(operators=("Conv",)),
    ):
        after, (report,) = apply((step,), base, context)
        assert report.status == "applied"
        results.append(after.SerializeToString(deterministic=True))
    assert len(loaded) == len(samples) + 3, "two probes, and one for the sizes"
    assert len(set(results)) == len(results)


def test_ranges_are_of_the_data_they_were_found_on(
    make_cnn: Callable, make_samples: Callable, make_context: Callable
) -> None:
    model = make_cnn()
    base = onnx.load(model.path)
    first, second = (
        find_histograms(base, ("Conv",), make_context(make_samples(model, seed=seed)))
        for seed in (0, 1)
    )
    assert first["image"].high != second["image"].high


def test_an_unknown_method_and_an_unknown_node_are_refused(
    make_cnn: Callable, make_samples: Callable, make_context: Callable
) -> None:
    model = make_cnn()
    context = make_context(make_samples(model))
    base = onnx.load(model.path)
    with pytest.raises(UsageError, match="there is no calibration method `median`") as caught:
        Int8Static(calibration="median").run(base, context)
    assert caught.value.accepted == "minmax, entropy, percentile, mse"
    with pytest.raises(UsageError, match="the model has no node `head` that could stay float"):
        Int8Static(keep_float=("head",)).run(base, context)
