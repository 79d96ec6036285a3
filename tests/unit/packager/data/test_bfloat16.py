"""Samples for inputs of bfloat16, which numpy's files have no name for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import pytest

from packager.data import synthetic
from packager.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
VALUES = [[1.5, -2.0, 0.1], [3e38, 0.0, 1e-3]]


@pytest.mark.parametrize(
    ("dtype", "notes"),
    [
        (np.float32, ("`x` was converted from float32 to bfloat16 in 2 of 2 rows",)),
        (np.float64, ("`x` was converted from float64 to bfloat16 in 2 of 2 rows",)),
        (BFLOAT16, ()),
    ],
)
def test_floats_are_rounded_and_what_numpy_saved_of_ml_dtypes_is_taken_as_it_lies(
    tmp_path: Path, load: Callable, make_spec: Callable, dtype: Any, notes: tuple[str, ...]
) -> None:
    array = np.array(VALUES, dtype)
    np.save(tmp_path / "a.npy", array)
    np.savez(tmp_path / "a.npz", x=array)
    for file in ("a.npy", "a.npz"):
        samples = load(tmp_path / file, make_spec("x", "bfloat16", 3))
        assert {sample["x"].dtype for sample in samples} == {BFLOAT16}
        rows = [sample["x"].tolist() for sample in samples]
        assert rows == [[row] for row in array.astype(BFLOAT16).tolist()]
        assert samples.notes == notes


def test_cells_of_a_table_are_rounded(tmp_path: Path, load: Callable, make_spec: Callable) -> None:
    (tmp_path / "a.csv").write_text("x.0,x.1\n1.2345678,3\n")
    (sample,) = load(tmp_path / "a.csv", make_spec("x", "bfloat16", 2))
    assert sample["x"].dtype == BFLOAT16
    assert sample["x"].tolist() == np.array([[1.2345678, 3]]).astype(BFLOAT16).tolist()


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([[np.nan]], BFLOAT16), "holds NaN"),
        (np.array([[np.inf]], BFLOAT16), "holds infinity"),
        (np.array([[3.4e38]], np.float32), "is float32"),
        (np.array([[0x3F81]], np.uint16), "is uint16"),
        (np.array([[b"abc"]], "V3"), r"is \|V3"),
    ],
)
def test_what_bfloat16_cannot_hold_is_refused_with_what_can_be_given(
    tmp_path: Path, load: Callable, make_spec: Callable, array: Any, message: str
) -> None:
    np.savez(tmp_path / "a.npz", x=array)
    with pytest.raises(UsageError, match=message) as refused:
        list(load(tmp_path / "a.npz", make_spec("x", "bfloat16", 1)))
    assert message.startswith("holds") or "float32, which is rounded" in refused.value.hint


def test_two_bytes_without_a_name_fill_no_other_type(
    tmp_path: Path, load: Callable, make_spec: Callable
) -> None:
    np.savez(tmp_path / "a.npz", x=np.ones((1, 1), BFLOAT16))
    with pytest.raises(UsageError, match=r"is \|V2"):
        list(load(tmp_path / "a.npz", make_spec("x", "float32", 1)))


def test_made_up_numbers_are_those_of_float32_rounded(
    signature: Callable, make_spec: Callable
) -> None:
    (sample,) = synthetic(signature(make_spec("x", "bfloat16", 64)), 1, 0)
    assert sample["x"].dtype == BFLOAT16
    assert 0.5 < np.std(sample["x"].astype(np.float32)) < 1.5


@pytest.mark.slow
@pytest.mark.torch
def test_a_generator_may_yield_bfloat16_of_torch_and_of_ml_dtypes(
    tmp_path: Path, load: Callable, make_spec: Callable
) -> None:
    (tmp_path / "made.py").write_text(
        "import ml_dtypes, numpy, torch\n"
        "def samples():\n"
        "    yield {'x': torch.tensor([[1.1]], dtype=torch.bfloat16)}\n"
        "    yield {'x': numpy.array([[1.1]], ml_dtypes.bfloat16)}\n"
    )
    samples = load(f"{tmp_path / 'made.py'}:samples", make_spec("x", "bfloat16", 1))
    rounded = float(BFLOAT16.type(1.1))
    found = [(sample["x"].dtype, sample["x"].item()) for sample in samples]
    assert found == [(BFLOAT16, rounded), (BFLOAT16, rounded)]
