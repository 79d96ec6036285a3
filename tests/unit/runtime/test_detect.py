"""A device describes itself, and refuses in one sentence what was built for another."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

import runtime
from runtime import detect
from runtime.errors import TargetMismatch

FACTS: dict[str, Any] = {
    "arch": "x86_64", "os": "linux", "libc": "glibc 2.36", "cpu_features": ["avx2", "fma"],
}  # fmt: skip
TARGET: dict[str, Any] = {
    "name": "t", "arch": "x86_64", "os": "linux", "libc": "glibc 2.28",
    "cpu_features_all": ["avx2", "fma"], "cpu_features_any": [],
}  # fmt: skip


def test_this_device_is_described() -> None:
    facts = detect.detect_device()
    assert facts["arch"] == os.uname().machine
    assert facts["os"] == "linux"
    assert facts["cores"] == len(os.sched_getaffinity(0))
    assert facts["memory_mib"] > 100
    assert facts["cpu_features"] == sorted(facts["cpu_features"]) != []
    json.dumps(facts)
    assert len(detect.describe(facts)) == len(facts)


def test_a_device_that_fits_has_nothing_against_it() -> None:
    assert detect.reasons_against(TARGET, FACTS) == []
    detect.check_fits({"target": TARGET}, FACTS)


@pytest.mark.parametrize(
    ("change", "facts", "reason"),
    [
        ({"arch": "aarch64"}, {}, "it is for aarch64, and this machine is x86_64"),
        ({"arch": "aarch64"}, {"arch": "aarch64 with a 32-bit userland"}, "32-bit userland"),
        ({"os": "darwin"}, {}, "it is for darwin, and this machine runs linux"),
        ({"cpu_features_all": ["avx2", "amx"]}, {}, "this CPU lacks amx"),
        ({"cpu_features_any": ["avx_vnni", "avx512_vnni"]}, {}, "has none of avx_vnni, avx512_v"),
        ({}, {"libc": "glibc 2.27"}, "it needs glibc 2.28, and this machine has glibc 2.27"),
        ({}, {"libc": "glibc 2.4"}, "this machine has glibc 2.4"),
        ({}, {"libc": None}, "this machine has another C library"),
        ({}, {"libc": "musl 9.9"}, "this machine has musl 9.9"),
    ],
)
def test_each_thing_that_does_not_fit_is_a_reason(
    change: dict[str, Any], facts: dict[str, Any], reason: str
) -> None:
    (found,) = detect.reasons_against({**TARGET, **change}, {**FACTS, **facts})
    assert reason in found


def test_several_reasons_are_one_sentence() -> None:
    target = {**TARGET, "cpu_features_all": ["x"], "cpu_features_any": ["y"], "libc": "glibc 3.0"}
    with pytest.raises(TargetMismatch) as caught:
        detect.check_fits({"target": target}, FACTS)
    assert caught.value.exit_code == 3
    assert caught.value.message == (
        "this bundle was built for `t`: this CPU lacks x; this CPU has none of y; "
        "it needs glibc 3.0, and this machine has glibc 2.36"
    )


def test_the_board_and_the_jetson_release_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {
        "/proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
        "/etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 1, BOARD: generic\n",
    }
    monkeypatch.setattr(detect, "read_lines", lambda path: files.get(path, "").split("\n"))
    facts = detect.detect_device()
    assert facts["board"] == "Raspberry Pi 5 Model B Rev 1.0"
    assert facts["l4t"] == "36.4.3"


def test_every_python_tells_the_same(old_python: Path) -> None:
    code = (
        "import json, sys\n"
        f"sys.path.append({str(Path(runtime.__file__).parents[1])!r})\n"
        "from runtime.detect import detect_device\n"
        "print(json.dumps(detect_device()))\n"
    )
    done = subprocess.run(
        [old_python, "-I", "-S", "-B", "-c", code], capture_output=True, text=True, check=True
    )
    facts, ours = json.loads(done.stdout), detect.detect_device()
    assert facts.pop("python").startswith("3.")
    ours.pop("python")
    assert facts == ours
