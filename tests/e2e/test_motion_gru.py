"""A bidirectional GRU with a dynamic time axis, all the way to a served answer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [pytest.mark.torch, pytest.mark.network]


@pytest.fixture(scope="module")
def motion(build: Callable[..., dict[str, Any]], motion_gru: Any) -> dict[str, Any]:
    """Build the GRU with a dynamic time axis, exported at a length that unrolls soon."""
    return build(
        motion_gru.factory, "-t", "cpu-x86_64", "-c", motion_gru.calibration,
        "--shape", "signal=batch,time,6", "--dim", "time=10..80,opt=12", "--name", "motion",
    )  # fmt: skip


@pytest.mark.parametrize("time", [10, 40, 80])
def test_every_declared_length_is_served_as_the_original_answers(
    motion: dict[str, Any], motion_gru: Any, serve: Any, time: int
) -> None:
    rows, _ = motion_gru.module.make_data(4, time=time, seed=9)
    with serve(Path(motion["path"])) as server:
        answer = server.post("/predict", {"data": rows.tolist()})
    expected = motion_gru.answers(rows)
    assert (
        np.abs(np.array(answer["result"]) - expected).max() < 0.05 * np.abs(expected).max() + 1e-3
    )


def test_a_length_outside_the_declared_range_is_refused(
    motion: dict[str, Any], motion_gru: Any, serve: Any
) -> None:
    rows, _ = motion_gru.module.make_data(1, time=81, seed=9)
    with serve(Path(motion["path"])) as server, pytest.raises(AssertionError, match=r"400.*time"):
        server.post("/predict", {"data": rows.tolist()})
