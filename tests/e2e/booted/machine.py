"""A whole Debian machine that systemd boots: made once per checkout, run in an emulator.

`mmdebstrap` makes the root and `mke2fs` its image, `qemu-system-x86_64` emulates the processor, so
neither KVM nor loop devices are needed. The machine has no network.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

# Program and the Debian package that has it.
PROGRAMS: Final = {
    "qemu-system-x86_64": "qemu-system-x86",
    "mmdebstrap": "mmdebstrap",
    "mke2fs": "e2fsprogs",
}
SUITE: Final = "bookworm"
PACKAGES: Final = (
    "systemd", "systemd-sysv", "dbus", "linux-image-cloud-amd64", "python3", "openssl",
)  # fmt: skip
SIZE_MIB: Final = 700
# Runs what lies on the second disk, tells on the second serial line, and switches the machine off.
SERVICE: Final = """\
[Unit]
Description=Runs what lies on the second disk
After=multi-user.target

[Service]
Type=oneshot
StandardOutput=file:/dev/ttyS1
StandardError=inherit
ExecStart=/bin/sh -c "mkdir /srv/given && cd /srv/given && tar -xf /dev/vdb && python3 checks.py"
ExecStopPost=/bin/systemctl --no-block poweroff --force

[Install]
WantedBy=multi-user.target
"""
_SOURCES: Final = ("/etc/apt/sources.list", "/etc/apt/sources.list.d/debian.sources")


def what_is_missing() -> str:
    """Return why no machine can be booted here, empty where one can."""
    for program, package in PROGRAMS.items():
        if shutil.which(program) is None:
            return f"`{program}` is not installed (package {package})"
    if os.geteuid() != 0:
        return "only root can make a machine's root folder"
    return ""


def make(folder: Path) -> Path:
    """Return the folder of the machine's image, kernel and first root, made where it is missing."""
    told = repr((SUITE, PACKAGES, SIZE_MIB, SERVICE))
    made = folder / f"{SUITE}-{hashlib.sha256(told.encode()).hexdigest()[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.is_dir():
            partial = made.with_suffix(".part")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            _make(partial)
            partial.rename(made)
    return made


def _make(folder: Path) -> None:
    root = folder / "root"
    # where this machine is of the same release, its mirror is the one that can be reached
    release = Path("/etc/os-release").read_text(encoding="utf-8")
    sources = [path for path in _SOURCES if Path(path).exists()] if SUITE in release else []
    _run(
        "mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(PACKAGES)}", SUITE,
        str(root), *sources,
    )  # fmt: skip
    (root / "etc/systemd/system/given.service").write_text(SERVICE)
    _run("systemctl", f"--root={root}", "enable", "given.service")
    for name in ("vmlinuz", "initrd.img"):
        (kernel,) = (root / "boot").glob(f"{name}-*")
        kernel.rename(folder / name)
    for name in ("etc/apt", "usr/share/doc", "usr/share/locale", "usr/share/man", "var/lib/apt"):
        shutil.rmtree(root / name)
    image = folder / "root.img"
    _run("mke2fs", "-q", "-t", "ext4", "-m", "0", "-d", str(root), str(image), f"{SIZE_MIB}M")
    shutil.rmtree(root)


def run(machine: Path, given: Iterable[Path], folder: Path, *, timeout_s: float) -> str:
    """Boot, let `checks.py` among the given files run, and return what it wrote.

    Args:
        machine: As `make` returns it; nothing that happens in it is kept.
        given: What lies beside each other in the machine.
        folder: Takes what the machine writes on its two serial lines.
        timeout_s: Ends the machine.
    """
    disk = folder / "given.tar"
    with tarfile.open(disk, "w") as archive:
        for path in given:
            archive.add(path, path.name)
    told, console = folder / "told.txt", folder / "console.txt"
    _run(
        "qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2",
        "-m", "2G", "-display", "none", "-nodefaults", "-no-reboot", "-nic", "none",
        "-kernel", str(machine / "vmlinuz"), "-initrd", str(machine / "initrd.img"),
        "-append", "root=/dev/vda rw console=ttyS0 quiet",
        "-drive", f"file={machine / 'root.img'},if=virtio,format=raw,snapshot=on",
        "-drive", f"file={disk},if=virtio,format=raw,readonly=on",
        "-serial", f"file:{console}", "-serial", f"file:{told}",
        timeout_s=timeout_s,
    )  # fmt: skip
    return told.read_text(encoding="utf-8")


def _run(*argv: str, timeout_s: float = 900) -> None:
    done = subprocess.run(
        argv, capture_output=True, text=True, check=False, timeout=timeout_s,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, (argv, done.returncode, done.stdout, done.stderr)
