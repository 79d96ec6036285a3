"""Made-up file trees of machines with and without an NVIDIA GPU, as their systems lay them out."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from runtime.nvidia.installed import Interpreter

_SOURCE = Path(__file__).with_name("nvml.c")
_APT_ENTRY = "Package: {0}\nStatus: install ok installed\nArchitecture: arm64\nVersion: {1}\n\n"


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A tree that stands for a machine's files, and what its driver's libraries answer."""

    root: Path
    interpreter: Interpreter
    environment: dict[str, str]

    @property
    def path(self) -> str:
        """The root, as the runtime takes it."""
        return str(self.root)


def compile_driver(folder: Path) -> Path:
    """Compile the stand-in for libnvidia-ml and libcuda."""
    if shutil.which("cc") is None:
        pytest.skip("`cc` is not installed")
    library = folder / "libstandin-driver.so"
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-o", library, _SOURCE],
        check=True, timeout=60,
    )  # fmt: skip
    return library


def orin_nano(root: Path, driver: Path) -> Machine:
    """Write a Jetson Orin Nano under JetPack 6.2; NVML is there, but knows no GPU's capability."""
    machine = _jetson(
        root, driver,
        release="# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic",
        compatible="nvidia,p3768-0000+p3767-0005-super\0nvidia,p3767-0005\0nvidia,tegra234\0",
        libraries="usr/lib/aarch64-linux-gnu/nvidia", python="3.10",
        tensorrt=("10.3.0", "10.3.0.30-1+cuda12.5", "libnvinfer10"),
        cudart=("usr/local/cuda-12.6/targets/aarch64-linux/lib", "libcudart.so.12", "12.6.68"),
        gpu="Orin|8|7|0", cuda="12060",
    )  # fmt: skip
    write(root, "etc/nvpmodel.conf", _modes(1, {0: "15W", 1: "25W", 2: "MAXN_SUPER", 3: "7W"}))
    write(root, "var/lib/nvpmodel/status", "pmode:0002\n")
    return machine


def agx_orin(root: Path, driver: Path) -> Machine:
    """Write a Jetson AGX Orin 64 GB under JetPack 5.1: no NVML, no nvpmodel status yet."""
    machine = _jetson(
        root, driver,
        release="# R35 (release), REVISION: 2.1, GCID: 32413640, BOARD: t186ref",
        compatible="nvidia,p3737-0000+p3701-0005\0nvidia,p3701-0005\0nvidia,tegra234\0",
        libraries="usr/lib/aarch64-linux-gnu/tegra", python="3.8",
        tensorrt=("8.5.2.2", "8.5.2-1+cuda11.4", "libnvinfer8"),
        cudart=("usr/local/cuda-11.4/lib64", "libcudart.so.11.0", "11.4.298"),
        gpu="Orin|8|7|0", cuda="11040",
    )  # fmt: skip
    modes = {0: "MAXN", 1: "MODE_15W", 2: "MODE_30W", 3: "MODE_50W"}
    write(root, "etc/nvpmodel.conf", _modes(2, modes))
    return machine


def thor(root: Path, driver: Path) -> Machine:
    """Write a Jetson AGX Thor under JetPack 7.2, whose NVML answers but for the memory."""
    machine = _jetson(
        root, driver,
        release="# R39 (release), REVISION: 2.0, GCID: 1, BOARD: generic",
        compatible="nvidia,p4071-0000+p3834-0008\0nvidia,p3834-0008\0nvidia,tegra264\0",
        libraries="usr/lib/aarch64-linux-gnu", python="3.12",
        tensorrt=("10.16.2", "10.16.2.10-1+cuda13.2", "libnvinfer10"),
        cudart=("usr/local/cuda-13.2/lib64", "libcudart.so.13", "13.2.75"),
        gpu="NVIDIA Thor|11|0|0", cuda="13020",
    )  # fmt: skip
    machine.environment["STANDIN_NVML_LACKS"] = "0"
    write(root, "proc/driver/nvidia/version", _nvrm("595.10.07"))
    write(root, "etc/nvpmodel.conf", _modes(1, {0: "MAXN", 1: "120W"}))
    write(root, "var/lib/nvpmodel/status", "pmode:0007\n")
    return machine


def h100_server(root: Path, driver: Path) -> Machine:
    """Write a server with two H100; TensorRT and CUDA's runtime are wheels in an environment."""
    site = root / "srv/venv/lib/python3.12/site-packages"
    for path in ("tensorrt/__init__.py", "tensorrt_libs/libnvinfer.so.10",
                 "tensorrt_cu12-10.13.3.9.dist-info/METADATA",
                 "tensorrt_cu12_bindings-10.13.3.9.dist-info/METADATA",
                 "nvidia/cuda_runtime/lib/libcudart.so.12",
                 "nvidia_cuda_runtime_cu12-12.9.79.dist-info/METADATA"):  # fmt: skip
        write(site, path, "")
    for name in ("libnvidia-ml.so.1", "libcuda.so.1"):
        _put_library(root, driver, f"usr/lib/x86_64-linux-gnu/{name}")
    write(root, "proc/driver/nvidia/version", _nvrm("580.65.06"))
    write(root, "sys/module/nvidia/version", "580.65.06\n")
    write_pci_gpu(root)
    write(root, "proc/meminfo", "MemTotal:       131072000 kB\n")
    gpu = "NVIDIA H100 80GB HBM3|9|0|81559"
    return Machine(
        root=root,
        interpreter=Interpreter("3.12", True, (str(site),)),
        environment={"STANDIN_GPUS": f"{gpu};{gpu}", "STANDIN_DRIVER": "580.65.06",
                     "STANDIN_DRIVER_CUDA": "13000"},
    )  # fmt: skip


def plain_machine(root: Path) -> Machine:
    """Write a machine with another maker's GPU."""
    write(root, "sys/bus/pci/devices/0000:00:02.0/vendor", "0x8086\n")
    write(root, "sys/bus/pci/devices/0000:00:02.0/class", "0x030000\n")
    write(root, "proc/meminfo", "MemTotal:        8000000 kB\n")
    return Machine(root=root, interpreter=Interpreter("3.11", False, ()), environment={})


def write_pci_gpu(root: Path) -> None:
    """Put an NVIDIA GPU on the bus, and the sound device that comes with it."""
    for function, kind in (("0", "0x030200"), ("1", "0x040300")):
        write(root, f"sys/bus/pci/devices/0000:17:00.{function}/vendor", "0x10de\n")
        write(root, f"sys/bus/pci/devices/0000:17:00.{function}/class", f"{kind}\n")


def write(root: Path, path: str, text: str) -> None:
    """Write one file below the root."""
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text)


def _jetson(
    root: Path,
    driver: Path,
    *,
    release: str,
    compatible: str,
    libraries: str,
    python: str,
    tensorrt: tuple[str, str, str],
    cudart: tuple[str, str, str],
    gpu: str,
    cuda: str,
) -> Machine:
    metadata, package, library = tensorrt
    write(root, "etc/nv_tegra_release", release + "\n# KERNEL_VARIANT: oot\n")
    write(root, "proc/device-tree/compatible", compatible)
    write(root, "proc/device-tree/model", "NVIDIA Jetson Developer Kit\0")
    write(root, "proc/meminfo", "MemTotal:        7990784 kB\nMemFree: 1 kB\n")
    _put_library(root, driver, f"{libraries}/libcuda.so.1")
    if "tegra" not in libraries:
        _put_library(root, driver, f"{libraries}/libnvidia-ml.so.1")
    site = f"usr/lib/python{python}/dist-packages"
    write(root, f"{site}/tensorrt/__init__.py", "")
    write(root, f"{site}/tensorrt-{metadata}.dist-info/METADATA", "")
    write(root, f"{site}/tensorrt_lean-9.9.9.9.9.dist-info/METADATA", "")
    write(root, "var/lib/dpkg/info/python3-libnvinfer.list", f"/.\n/{site}/tensorrt/__init__.py\n")
    status = _APT_ENTRY.format("python3-libnvinfer", package) + _APT_ENTRY.format(library, package)
    removed = _APT_ENTRY.format("nvidia-jetpack", "1").replace("ok installed", "ok config-files")
    write(root, "var/lib/dpkg/status", removed + status)
    folder, name, version = cudart
    whole = f"libcudart.so.{version}"
    write(root, f"{folder}/{whole}", "")
    (root / folder / name).symlink_to(whole)
    (root / folder / "libcudart.so").symlink_to(name)
    return Machine(
        root=root,
        interpreter=Interpreter(python, False, (str(root / site),)),
        environment={"STANDIN_GPUS": gpu, "STANDIN_DRIVER_CUDA": cuda,
                     "STANDIN_MACHINE_MIB": "7800", "STANDIN_NVML_LACKS": "1"},
    )  # fmt: skip


def _put_library(root: Path, driver: Path, path: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(driver, root / path)


def _modes(default: int, names: dict[int, str]) -> str:
    lines = ["# a comment", f"< PM_CONFIG DEFAULT={default} >"]
    for number, name in names.items():
        lines += [f"< POWER_MODEL ID={number} NAME={name} >", "CPU_ONLINE CORE_0 1", ""]
    return "\n".join(lines)


def _nvrm(version: str) -> str:
    return (
        f"NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {version}  Release Build"
        "  (dvs-builder@U22)\nGCC version:  gcc version 11.4.0\n"
    )
