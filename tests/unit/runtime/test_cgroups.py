"""A container's and a unit's limits on CPU time and memory count as this device's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from runtime import cgroups
from runtime.cgroups import available_cores, memory_left

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

GIB = 1 << 30
V1 = "3:cpuset:/\n2:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n0::/\n"
CORES = len(os.sched_getaffinity(0))


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Write what Linux tells in `/proc` and `/sys`, on a machine of eight cores."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))

    def make(groups: str, files: Mapping[str, str]) -> str:
        told = {"proc/self/cgroup": groups}
        told.update({f"sys/fs/cgroup/{name}": text for name, text in files.items()})
        for name, text in told.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return str(tmp_path)

    return make


@pytest.mark.parametrize(
    ("groups", "files", "cores"),
    [
        ("", {}, 8),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 8),
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "1600000 100000\n"}, 8),
        ("0::/\n", {"cpu.max": "\n"}, 8),
        ("0::/\n", {"cpu.max": "100000 0\n"}, 8),
        ("0::/../..\n", {"cpu.max": "300000 100000\n"}, 3),
        # the smallest quota on the way up counts
        (
            "0::/system.slice/edgepack.service\n",
            {
                "system.slice/edgepack.service/cpu.max": "max 100000\n",
                "system.slice/cpu.max": "300000 100000\n",
                "cpu.max": "400000 100000\n",
            },
            3,
        ),
        (
            V1,
            {
                "cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "400000\n",
                "cpu,cpuacct/docker/abc/cpu.cfs_period_us": "100000\n",
                "cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
                "cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            4,
        ),
        # in a container its own group is mounted, and the path is the host's
        (
            V1,
            {
                "cpu,cpuacct/cpu.cfs_quota_us": "50000\n",
                "cpu,cpuacct/cpu.cfs_period_us": "25000\n",
            },
            2,
        ),
    ],
)
def test_a_quota_of_cpu_time_limits_the_cores(
    groups: str, files: Mapping[str, str], cores: int, machine: Callable[..., str]
) -> None:
    assert available_cores(machine(groups, files)) == cores


@pytest.mark.parametrize(
    ("groups", "files", "left"),
    [
        ("0::/\n", {}, None),
        ("0::/a\n", {"a/memory.max": "max\n", "a/memory.current": "5\n"}, None),
        ("0::/a\n", {"a/memory.max": f"{4 * GIB}\n", "a/memory.current": f"{GIB}\n"}, 3 * GIB),
        ("0::/a\n", {"a/memory.max": f"{GIB}\n", "a/memory.current": f"{2 * GIB}\n"}, 0),
        (
            "0::/a\n",
            {
                "a/memory.max": f"{4 * GIB}\n",
                "a/memory.current": f"{3 * GIB}\n",
                "a/memory.stat": f"anon 7\ninactive_file {GIB}\nactive_file {GIB}\n",
            },
            3 * GIB,
        ),
        (
            V1,
            {
                "memory/docker/abc/memory.limit_in_bytes": f"{2 * GIB}\n",
                "memory/docker/abc/memory.usage_in_bytes": f"{GIB}\n",
                "memory/docker/abc/memory.stat": "inactive_file 9\ntotal_inactive_file 512\n",
                "memory/memory.limit_in_bytes": "9223372036854771712\n",
                "memory/memory.usage_in_bytes": f"{9 * GIB}\n",
            },
            GIB + 512,
        ),
    ],
)
def test_a_limit_on_memory_leaves_what_is_not_used_or_given_back(
    groups: str, files: Mapping[str, str], left: int | None, machine: Callable[..., str]
) -> None:
    assert memory_left(machine(groups, files)) == left


def test_cores_are_those_this_process_may_run_on() -> None:
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert available_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)
    assert available_cores() == len(allowed)


@pytest.fixture
def half_a_core() -> Iterator[Path]:
    """Make a control group with a quota of 50 % of a core, in the version that is mounted."""
    for base in (Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup")):
        group = base / f"edgepack-test-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            if (group / "cpu.max").exists():
                (group / "cpu.max").write_text("50000 100000")
            else:
                (group / "cpu.cfs_quota_us").write_text("50000")
            yield group
        except OSError:
            pytest.skip("control groups cannot limit CPU time here")
        finally:
            group.rmdir()
        return
    pytest.skip("control groups cannot be made here")


def test_a_process_in_a_real_group_knows_its_quota(half_a_core: Path) -> None:
    program = (
        f"open({str(half_a_core / 'cgroup.procs')!r}, 'w').write('0');"
        "from runtime.cgroups import available_cores; print(available_cores())"
    )
    run = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True, text=True, check=True,
        cwd=Path(cgroups.__file__).resolve().parent.parent,
    )  # fmt: skip
    assert run.stdout == "1\n"
