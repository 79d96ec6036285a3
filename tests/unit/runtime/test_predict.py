"""What the device's own `predict` makes of files for inputs that NumPy has no type for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import pytest

from runtime.errors import BadRequest
from runtime.predict import _read_feeds
from runtime.signature import Signature

if TYPE_CHECKING:
    from pathlib import Path

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def signature(*dtypes: str) -> Signature:
    names = "xyz"[: len(dtypes)]
    return Signature(
        {
            "inputs": [
                {"name": name, "dtype": dtype, "shape": [1, 2]}
                for name, dtype in zip(names, dtypes, strict=True)
            ],
            "outputs": [],
        }
    )


def feeds(path: Path, *dtypes: str) -> dict[str, Any]:
    release: Any = SimpleNamespace(manifest={})
    return _read_feeds(str(path), signature(*dtypes), release)


@pytest.mark.parametrize("dtype", [np.float32, BFLOAT16])
def test_float32_is_rounded_to_bfloat16_and_bfloat16_taken_as_it_lies(
    tmp_path: Path, dtype: Any
) -> None:
    array = np.array([[1.2345678, -3e38]], dtype)
    np.savez(tmp_path / "a.npz", x=array)
    np.save(tmp_path / "a.npy", array)
    for name in ("a.npz", "a.npy"):
        found = feeds(tmp_path / name, "bfloat16")["x"]
        assert (found.dtype, found.shape) == ("bfloat16", (1, 2))
        assert bytes(found.data) == array.astype(BFLOAT16).tobytes()


def test_only_inputs_of_bfloat16_are_rounded(tmp_path: Path) -> None:
    ones = np.ones((1, 2), np.float32)
    np.savez(tmp_path / "a.npz", x=ones, y=ones, z=ones, other=ones)
    found = feeds(tmp_path / "a.npz", "float32", "bfloat16", "float16")
    kinds = {name: tensor.dtype for name, tensor in found.items()}
    assert kinds == {"x": "float32", "y": "bfloat16", "z": "float32", "other": "float32"}


def test_what_would_become_infinite_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.array([[1, 3.4e38]], np.float32))
    with pytest.raises(BadRequest, match=r"`x\[1\]` is too large for bfloat16"):
        feeds(tmp_path / "a.npz", "bfloat16")
