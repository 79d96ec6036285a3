"""The commands as a person or a script meets them: data on standard output, the rest beside it."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path

TARGETS = [
    "cpu-arm64", "cpu-x86_64", "cpu-x86_64-vnni", "dgx-spark",
    "jetson-agx-orin-32gb@6.2", "jetson-agx-orin-64gb@6.2", "jetson-agx-thor@7.2",
    "jetson-agx-xavier@5.1", "jetson-orin-nano-4gb@6.2", "jetson-orin-nano-8gb@6.2",
    "jetson-orin-nx-16gb@6.2", "jetson-orin-nx-8gb@6.2", "jetson-thor-t4000@7.2",
    "jetson-xavier-nx@5.1", "raspberry-pi-4", "raspberry-pi-5", "rtx-ada", "rtx-ampere",
    "rtx-blackwell", "server-a10", "server-a100", "server-b200", "server-h100", "server-h200",
    "server-l4", "server-l40s", "server-t4",
]  # fmt: skip


def test_help_names_every_command(edgepack: Any) -> None:
    done = edgepack("--help", check=True)
    for command in ("demo", "inspect", "targets", "build", "predict", "run", "bench", "verify",
                    "export", "doctor"):  # fmt: skip
        assert f"\n  {command} " in done.stdout


@pytest.mark.parametrize(
    "command", ["build", "predict", "run", "bench", "verify", "export", "inspect"]
)
def test_each_command_has_help_without_heavy_imports(edgepack: Any, command: str) -> None:
    assert edgepack(command, "--help", check=True).stdout.startswith(f"Usage: edgepack {command}")


def test_targets_are_listed_as_text_and_as_json(edgepack: Any) -> None:
    text = edgepack("targets", "list", check=True).stdout
    listed = json.loads(edgepack("targets", "list", "--json", check=True).stdout)
    assert [target["name"] for target in listed] == TARGETS
    for name in TARGETS:
        assert name.partition("@")[0] in text


def test_a_target_is_shown_whole(edgepack: Any) -> None:
    shown = json.loads(edgepack("targets", "show", "cpu-x86_64-vnni", "--json", check=True).stdout)
    assert shown["cpu_features_any"] == ["avx512_vnni", "avx_vnni"]
    assert shown["quantization"]["reduce_range"] is False
    assert len(shown["engine"]["library"]["wheel_sha256"]) == 64


def test_detect_tells_which_targets_fit_this_machine(edgepack: Any) -> None:
    found = json.loads(edgepack("targets", "detect", "--json", check=True).stdout)
    assert set(found["targets"]) == set(TARGETS)
    for reasons in found["targets"].values():
        assert all(isinstance(reason, str) and reason for reason in reasons)
    arch = found["device"]["arch"]
    other = "raspberry-pi-5" if arch == "x86_64" else "cpu-x86_64"
    assert any(arch in reason for reason in found["targets"][other])


def test_doctor_finds_what_is_installed_here(edgepack: Any) -> None:
    findings = json.loads(edgepack("doctor", "--json", check=True).stdout)
    by_name = {finding["what"]: finding for finding in findings}
    assert by_name["onnxruntime"]["status"] == "ok"
    for finding in findings:
        assert finding["status"] == "ok" or finding["fix"]


def test_a_dry_run_prints_the_plan_with_its_reasons_and_builds_nothing(
    edgepack: Any, tmp_path: Path
) -> None:
    (tmp_path / "x.onnx").write_bytes(b"never opened by a dry run")
    done = edgepack("build", "x.onnx", "-t", "cpu-x86_64", "-t", "raspberry-pi-5", "--dry-run",
                    cwd=tmp_path, check=True)  # fmt: skip
    assert "7-bit weights never do" in done.stdout
    assert "-c FOLDER" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.onnx"]
    plan = json.loads(
        edgepack("build", "x.onnx", "-t", "cpu-x86_64", "--dry-run", "--json", cwd=tmp_path,
                 check=True).stdout
    )  # fmt: skip
    steps = plan["targets"]["cpu-x86_64"]["steps"]
    assert all(step["reason"] for step in steps)


def test_no_color_and_pipes_get_plain_text(edgepack: Any) -> None:
    done = edgepack("targets", "show", "nothing", env={"NO_COLOR": "1"})
    assert "\x1b" not in done.stderr


def test_python_m_packager_is_edgepack(edgepack: Any) -> None:
    assert edgepack("--version", check=True).stdout.startswith("edgepack, version ")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shell_completion_is_offered(edgepack: Any, shell: str) -> None:
    done = edgepack(env={"_EDGEPACK_COMPLETE": f"{shell}_source"})
    assert "edgepack" in done.stdout


def test_a_command_leaves_the_signals_of_its_process_as_they_were(here: Any) -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
    before = [signal.getsignal(number) for number in numbers]
    assert here("inspect", "missing.onnx").returncode == 2
    assert [signal.getsignal(number) for number in numbers] == before
