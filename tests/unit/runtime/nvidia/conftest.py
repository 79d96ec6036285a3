"""Machines that are not there: what their drivers answer, and their facts."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from runtime.nvidia.device import gpu_facts
from tests.standin import machines

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.standin.machines import Machine


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the stand-in for the driver's libraries."""
    return machines.compile_driver(tmp_path_factory.mktemp("driver"))


@pytest.fixture
def facts_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[Machine], dict[str, Any]]:
    """Return a function that reads a machine's facts, its driver answering as the machine's."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def read(machine: Machine) -> dict[str, Any]:
        for name in [name for name in os.environ if name.startswith("STANDIN_")]:
            monkeypatch.delenv(name)
        for name, value in machine.environment.items():
            monkeypatch.setenv(name, value)
        return gpu_facts(machine.path, machine.interpreter)

    return read
