"""Machines that are not there: what their drivers answer, and their facts."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from runtime.nvidia.device import gpu_facts
from tests.standin import machines
from tests.standin.gpu import StandinGpu
from tests.standin.simulated_tensorrt import build_cudart

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
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


@pytest.fixture(scope="session")
def cudart_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the stand-in for CUDA's runtime library; whoever loads it takes a copy."""
    if shutil.which("cc") is None:
        pytest.skip("`cc` is not installed")
    return build_cudart(tmp_path_factory.mktemp("cudart"))


@pytest.fixture
def make_gpu(cudart_file: Path, tmp_path: Path) -> Iterator[Callable[..., StandinGpu]]:
    """Return a function that makes a stand-in GPU; each must be left without a leak."""
    made: list[StandinGpu] = []

    def make(**options: Any) -> StandinGpu:
        copy = tmp_path / f"gpu-{len(made)}" / "libcudart.so.12"
        copy.parent.mkdir()
        shutil.copy(cudart_file, copy)
        made.append(StandinGpu(copy, **options))
        return made[-1]

    yield make
    assert [gpu.live for gpu in made] == [0] * len(made), "memory, streams or graphs are left"


@pytest.fixture
def gpu(make_gpu: Callable[..., StandinGpu]) -> StandinGpu:
    """Return a stand-in GPU under TensorRT 10.3."""
    return make_gpu()
