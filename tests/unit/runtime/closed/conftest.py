"""An authority for all tests of one session, and a model small enough to serve anywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from runtime.engine import open_engine
from tests.unit.runtime.closed.authority import Authority
from tests.unit.runtime.live_server import BATCH, OpenRelease, make_release, tensor

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="session")
def release(
    small_models: dict[str, Any], engine_library: Path, tmp_path_factory: pytest.TempPathFactory
) -> OpenRelease:
    """Return a model whose answers can be large: floats in, the same floats out."""
    height = {"name": "height", "min": 1, "max": 1024, "opt": 1}
    width = {"name": "width", "min": 1, "max": 1024, "opt": 1}
    return make_release(
        tmp_path_factory.mktemp("release"),
        small_models["dynamic"].path,
        engine_library,
        [tensor("x", "float32", BATCH, height, width)],
        [tensor("y", "float32", BATCH, height, width)],
        name="relu",
    )


@pytest.fixture(scope="session")
def engine(release: OpenRelease) -> Iterator[Any]:
    opened = open_engine(release)
    yield opened
    opened.close()
