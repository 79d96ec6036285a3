"""A real bundle, served by a process of its own to all the hostile requests of a module."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.unit.runtime.small_bundle import serving_process, write_bundle

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory, engine_library: Path) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundle") / "mlp.edgepack", engine_library)


@pytest.fixture(scope="module")
def served(
    bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Serve without TLS and keys; gives the process and its port."""
    with serving_process(bundle, tmp_path_factory.mktemp("cache")) as running:
        yield running


@pytest.fixture
def port(served: tuple[subprocess.Popen[str], int]) -> int:
    return served[1]
