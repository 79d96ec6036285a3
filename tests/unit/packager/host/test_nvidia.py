"""`doctor` tells what a host needs to build for NVIDIA's GPUs, and a device to run on its own."""

from __future__ import annotations

import json
import shlex
from importlib import metadata
from typing import TYPE_CHECKING, Any

import pytest

from packager.bundle import device
from packager.host import nvidia
from packager.host.nvidia import nvidia_findings
from packager.process import Completed
from runtime.nvidia.device import gpu_facts
from runtime.nvidia.obstacles import obstacles
from tests.standin import machines

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from packager.host.findings import Finding
    from tests.standin.machines import Machine

    Examine = Callable[..., dict[str, list[Finding]]]


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the stand-in for the driver's libraries."""
    return machines.compile_driver(tmp_path_factory.mktemp("driver"))


@pytest.fixture
def examine(monkeypatch: pytest.MonkeyPatch) -> Examine:
    """Return a function that gives the findings on a made-up machine, by what they are about."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def on(machine: Machine, **changes: Any) -> dict[str, list[Finding]]:
        for name, value in machine.environment.items():
            monkeypatch.setenv(name, value)
        facts = gpu_facts(machine.path, machine.interpreter)
        if facts:
            facts.update(changes)

        def run(argv: list[str], **_: Any) -> Completed:
            wanted = json.loads(argv[-1])
            told = {name: obstacles(fields, facts) for name, fields in wanted.items()}
            text = json.dumps({"gpu": facts, "obstacles": told})
            return Completed(argv=tuple(argv), returncode=0, stdout=text, stderr="", log=None)

        monkeypatch.setattr(device, "run", run)
        by_what: dict[str, list[Finding]] = {}
        for finding in nvidia_findings():
            by_what.setdefault(finding.what, []).append(finding)
        return by_what

    return on


def test_this_host_is_examined_by_the_runtime_itself() -> None:
    findings = list(nvidia_findings())
    assert findings[0].what == "tensorrt_rtx"
    assert findings[1].what == "NVIDIA GPU"
    for finding in findings:
        assert finding.status == "ok" or finding.fix


def test_a_host_without_a_gpu_lacks_nothing_for_building(tmp_path: Path, examine: Examine) -> None:
    found = examine(machines.plain_machine(tmp_path))
    (gpu,) = found.pop("NVIDIA GPU")
    assert (gpu.status, gpu.fix) == ("ok", None)
    assert gpu.found.startswith("none here, and none is needed")
    assert list(found) == ["tensorrt_rtx"]


@pytest.mark.parametrize(
    ("version", "status", "found", "fix"),
    [
        ("1.7.1.116", "ok", "1.7.1.116", None),
        ("1.6.0.1", "optional", "run in 1.7.1.116 alone", "tensorrt-rtx-cu13==1.7.1.116'"),
        (None, "optional", "not installed: no engines for RTX targets", "'edgepack[rtx]'"),
    ],
)
def test_what_builds_rtx_engines_is_told(
    monkeypatch: pytest.MonkeyPatch, version: str | None, status: str, found: str, fix: str | None
) -> None:
    def installed(name: str) -> str:
        assert name == "tensorrt-rtx-cu13"
        if version is None:
            raise metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(nvidia.metadata, "version", installed)
    finding = next(nvidia_findings())
    assert (finding.what, finding.status) == ("tensorrt_rtx", status)
    assert found in finding.found
    if fix is None:
        assert finding.fix is None
    else:
        assert finding.fix is not None
        assert finding.fix.endswith(fix)
        assert shlex.split(finding.fix)[:2] == ["pip", "install"]


def test_a_jetson_is_told_what_its_own_target_needs(
    tmp_path: Path, driver: Path, examine: Examine
) -> None:
    machine = machines.orin_nano(tmp_path, driver)
    found = examine(machine)
    (ready,) = found["TensorRT for jetson-orin-nano-8gb@6.2"]
    assert (ready.status, ready.found) == ("ok", "ready")
    (gpu,) = found["NVIDIA GPU"]
    assert gpu.found == "Orin, compute capability 8.7"
    assert [what for what in found if what.startswith("TensorRT")] == [ready.what]
    # One JetPack down, without TensorRT and CUDA.
    found = examine(machine, l4t="36.4.0", jetpack="6.1", tensorrt=[], cudart=[])
    lacks = found["TensorRT for jetson-orin-nano-8gb@6.1"]
    assert [finding.status for finding in lacks] == ["optional", "optional"]
    assert [finding.fix for finding in lacks] == [
        "sudo apt-get install python3-libnvinfer", "sudo apt-get install cuda-cudart-12-6",
    ]  # fmt: skip
    hidden = examine(machine, l4t=None, jetpack=None)
    assert "TensorRT for jetson-orin-nano-8gb@6.2" in hidden, "a container hides the JetPack"


def test_a_server_is_told_once_for_each_tensorrt(
    tmp_path: Path, driver: Path, examine: Examine
) -> None:
    machine = machines.h100_server(tmp_path, driver)
    found = examine(machine)
    assert found["NVIDIA GPU"][0].found == (
        "NVIDIA H100 80GB HBM3, compute capability 9.0, and 1 more, driver 580.65.06"
    )
    assert [what for what in found if what.startswith("TensorRT")] == ["TensorRT for server-h100"]
    machine.environment["STANDIN_GPUS"] = "NVIDIA RTX 4090|8|9|24564"
    both = examine(machine)
    assert both["TensorRT for server-l4"][0].status == "ok"
    assert "TensorRT for server-l40s" not in both, "the same TensorRT as the L4's"
    (rtx,) = [finding for finding in both["TensorRT for rtx-ada"] if "RTX" in finding.found]
    assert rtx.fix == "python3 -m pip install 'tensorrt-rtx-cu13==1.7.1.116'"


def test_a_gpu_that_no_target_is_for_is_said(
    tmp_path: Path, driver: Path, examine: Examine
) -> None:
    machine = machines.h100_server(tmp_path, driver)
    machine.environment["STANDIN_GPUS"] = "Tesla K80|3|7|11441"
    (finding,) = examine(machine)["TensorRT"]
    assert (finding.found, finding.fix) == ("no target is for this GPU", "edgepack targets list")


def test_a_gpu_that_does_not_answer_is_said(tmp_path: Path, examine: Examine) -> None:
    machine = machines.plain_machine(tmp_path)
    machines.write_pci_gpu(tmp_path)
    found = examine(machine)
    (finding,) = found["NVIDIA GPU"]
    assert finding.status == "optional"
    assert finding.found.startswith("does not answer: `libcuda.so.1` is not there")
    assert finding.fix
