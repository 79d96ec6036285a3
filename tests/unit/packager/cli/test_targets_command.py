"""`edgepack targets` on machines that are not this one: what it says of their GPUs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from packager.bundle import device
from packager.cli.targets import command
from packager.target import all_targets, find_target
from runtime.nvidia.device import gpu_facts
from runtime.nvidia.obstacles import obstacles
from tests.standin import machines

if TYPE_CHECKING:
    from pathlib import Path

    from tests.standin.machines import Machine

JETSON_CPU = {
    "arch": "aarch64", "os": "linux", "libc": "glibc 2.35", "cpu_features": ["asimd"],
}  # fmt: skip
SERVER_CPU = {
    "arch": "x86_64", "os": "linux", "libc": "glibc 2.35", "cpu_features": ["avx2", "fma"],
}  # fmt: skip


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the stand-in for the driver's libraries."""
    return machines.compile_driver(tmp_path_factory.mktemp("driver"))


def _detect(
    cpu: dict[str, Any], machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, Any], str]:
    """Return what `detect` says on a machine, as JSON and as text; the rules are the runtime's."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for name, value in machine.environment.items():
        monkeypatch.setenv(name, value)
    gpu = gpu_facts(machine.path, machine.interpreter)
    facts = {**cpu, "gpu": gpu} if gpu else cpu
    monkeypatch.setattr(device, "detect_device", lambda: facts)
    monkeypatch.setattr(
        device,
        "reasons_against_engines",
        lambda targets: {
            name: _reasons(wanted, gpu) for name, wanted in device.engines_wanted(targets).items()
        },
    )
    as_json = CliRunner().invoke(command, ["detect", "--json"], catch_exceptions=False)
    as_text = CliRunner().invoke(command, ["detect"], catch_exceptions=False)
    return json.loads(as_json.output), as_text.output


def _reasons(wanted: Any, facts: Any) -> list[str]:
    return [f"{found.what}: {found.fix}" for found in obstacles(wanted, facts, of_class=True)]


def test_an_orin_nano_is_its_own_target_and_no_other_module(
    tmp_path: Path, driver: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, text = _detect(JETSON_CPU, machines.orin_nano(tmp_path, driver), monkeypatch)
    assert found["targets"]["jetson-orin-nano-8gb@6.2"] == []
    assert found["engines"]["jetson-orin-nano-8gb@6.2"] == []
    (reason,) = found["engines"]["jetson-orin-nano-4gb@6.2"]
    assert reason == "it is for the module p3767-0004, and this one is p3767-0005"
    assert found["targets"]["server-l4"] == [
        "it is for x86_64, and this machine is aarch64",
    ]
    ours = text.split("this machine is\n")[1].split("\non the CPU alone")[0]
    assert "  jetson-orin-nano-8gb@6.2" in ours
    assert "  cpu-arm64" in ours
    assert "jetson-orin-nx-8gb" not in ours


def test_a_jetson_is_asked_about_with_the_jetpack_that_it_has(
    tmp_path: Path, driver: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu = {**JETSON_CPU, "libc": "glibc 2.31"}
    found, _ = _detect(cpu, machines.agx_orin(tmp_path, driver), monkeypatch)
    assert found["targets"]["jetson-agx-orin-64gb@5.1"] == []
    assert found["engines"]["jetson-agx-orin-64gb@5.1"] == []
    assert "jetson-agx-orin-64gb@6.2" not in found["targets"]
    assert found["targets"]["jetson-agx-thor@7.2"] == [
        "it needs glibc 2.39, and this machine has glibc 2.31"
    ]


def test_a_server_is_the_targets_of_its_gpu(
    tmp_path: Path, driver: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, text = _detect(SERVER_CPU, machines.h100_server(tmp_path, driver), monkeypatch)
    assert found["engines"]["server-h100"] == []
    (reason,) = found["engines"]["server-l4"]
    assert "for compute capability 8.9, and this machine has NVIDIA H100" in reason
    assert any("TensorRT-RTX 1.7.1.116" in reason for reason in found["engines"]["rtx-ada"])
    assert "  server-l4\n" in text.partition("on the CPU alone")[2]


def test_without_a_gpu_their_bundles_answer_on_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, text = _detect(SERVER_CPU, machines.plain_machine(tmp_path), monkeypatch)
    assert found["targets"]["server-l4"] == []
    assert "no NVIDIA GPU" in found["engines"]["server-l4"][0]
    assert text.count("no NVIDIA GPU") == 1, "one verdict for all of them"


def test_the_rules_of_the_runtime_are_asked_in_a_process_of_its_own() -> None:
    targets = [find_target(name) for name in ("server-l4", "rtx-ada", "jetson-agx-thor@7.1")]
    found = device.reasons_against_engines(targets)
    assert list(found) == ["server-l4", "rtx-ada", "jetson-agx-thor@7.1"]
    facts = gpu_facts()
    wanted = device.engines_wanted(targets)
    assert bool(found["server-l4"]) == bool(_reasons(wanted["server-l4"], facts))


def test_the_list_groups_families_and_marks_the_default_jetpack() -> None:
    lines = CliRunner().invoke(command, ["list"], catch_exceptions=False).output.splitlines()
    headings = [line.partition(":")[0] for line in lines if line and not line.startswith(" ")]
    assert headings == [
        "CPUs, by ONNX Runtime", "Jetson", "servers with an NVIDIA GPU", "RTX and DGX Spark",
    ]  # fmt: skip
    (nano,) = (line for line in lines if "jetson-orin-nano-8gb" in line)
    assert "5.1 6.0 6.1 [6.2] 7.2  TensorRT 10.3.0.30" in nano
    named = {line.split()[0] for line in lines if line.startswith("  ")} - {"target"}
    assert named == {target.module_name for target in all_targets()}


def test_a_jetpack_is_shown_with_each_of_its_uncertainties_on_a_line() -> None:
    shown = CliRunner().invoke(command, ["show", "jetson-orin-nx-16gb@7.2"]).output.splitlines()
    assert "name: jetson-orin-nx-16gb@7.2" in shown
    assert "tensorrt.version: 10.16.2.10" in shown
    assert "jetpacks: 5.1, 6.0, 6.1, 6.2, 7.2" in shown
    wanted = find_target("jetson-orin-nx-16gb@7.2").tensorrt
    assert wanted is not None
    assert [line for line in shown if line.startswith("tensorrt.uncertain: ")] == [
        f"tensorrt.uncertain: {sentence}" for sentence in wanted.uncertain
    ]
