"""Says what a device must have for its TensorRT engine, a sentence each, with the command."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from packager.target import TensorRT

# The device has the same table, as it imports nothing of ours: runtime/nvidia/obstacles.py.
MINIMUM_DRIVERS: Final = {11: "450.80.02", 12: "525.60.13", 13: "580.65.06"}
# The first JetPack whose devices take the packages of Arm servers.
_FIRST_SBSA_JETPACK: Final = 7


def needs(tensorrt: TensorRT, jetpack: str, carried_pythons: Sequence[str] = ()) -> list[str]:
    """Return what a device of the target must have, for people who set it up.

    Args:
        tensorrt: The target's.
        jetpack: The resolved JetPack, as `6.2`; empty for another device than a Jetson.
        carried_pythons: CPythons that the bundle brings TensorRT-RTX and CUDA's runtime for.
    """
    gpu = f"an NVIDIA GPU of compute capability {' or '.join(tensorrt.compute_capabilities)}"
    if jetpack:
        return [gpu, *_of_jetson(tensorrt, jetpack)]
    return [gpu, *_of_server(tensorrt, carried_pythons)]


def _of_jetson(tensorrt: TensorRT, jetpack: str) -> list[str]:
    packages = " ".join(tensorrt.packages) or "python3-libnvinfer"
    release = f"JetPack {jetpack}" + (f" (L4T {tensorrt.l4t} or later)" if tensorrt.l4t else "")
    seen = "a Python that sees it: the system's own, or `python3 -m venv --system-site-packages`"
    if _major(jetpack) < _FIRST_SBSA_JETPACK:
        seen += "; the wheels on PyPI are for servers and do not run here"
    libraries = f"TensorRT {tensorrt.version} and CUDA {tensorrt.cuda}'s runtime"
    return [
        f"{release}, which brings the GPU's driver",
        f"{libraries} from its packages: `sudo apt-get install {packages}`",
        seen,
    ]


def _of_server(tensorrt: TensorRT, carried_pythons: Sequence[str]) -> list[str]:
    major = _major(tensorrt.cuda)
    minimum = MINIMUM_DRIVERS.get(major)
    driver = f"{minimum} or later" if minimum else "its version"
    rtx = tensorrt.module == "tensorrt_rtx"
    name = "TensorRT-RTX" if rtx else "TensorRT"
    version = f"{name} {tensorrt.version}" + (
        ", this release alone" if rtx else " or a later minor"
    )
    packages = " ".join(f"'{package}'" for package in tensorrt.packages)
    # TensorRT-RTX's own packages do not bring CUDA's runtime; since CUDA 13 its name has no suffix.
    runtime = "nvidia-cuda-runtime" if major >= 13 else f"nvidia-cuda-runtime-cu{major}"
    library = f"libcudart.so.{'11.0' if major == 11 else major}"
    needed = f"the NVIDIA driver {driver}, for CUDA {major}"
    if carried_pythons:
        pythons = f"CPython {carried_pythons[0]} to {carried_pythons[-1]}"
        return [needed, f"{pythons}: the bundle brings {name} and CUDA's runtime for these"]
    return [
        needed,
        f"{version}, in the Python that runs the bundle: `python3 -m pip install {packages}`",
        f"CUDA's runtime, {library}: `python3 -m pip install '{runtime}=={major}.*'`",
    ]


def _major(version: str) -> int:
    return int(version.partition(".")[0])
