"""Which files of NVIDIA a bundle carries where its user wants that, and on what terms."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from packager.errors import TargetError
from packager.resources import data_dir
from packager.target import EngineLibrary

if TYPE_CHECKING:
    from packager.target import Target, TensorRT

FOLDER: Final = "vendor"
MODULE_PATH: Final = f"{FOLDER}/tensorrt_rtx.py"
# NVIDIA's package of this name is a source distribution that downloads the others; all it does once
# installed is this.
MODULE_SOURCE: Final = (
    b'"""Gives the bindings beside it the name that programs import."""\n\n'
    b"from tensorrt_rtx_bindings import *  # noqa: F403\n"
    b"from tensorrt_rtx_bindings import __version__ as __version__\n"
)
# What is chosen, or asked of the user, and why.
_TERMS: Final = (
    (
        "passed on in binary form, inside a product, to licensees bound as strictly",
        "section 12.1 of NVIDIA's licence agreement, which travels along in `licenses/`",
    ),
    (
        "ask NVIDIA before such a bundle leaves your organisation",
        "that section names libnvinfer alone, neither TensorRT-RTX's libraries nor its bindings",
    ),
    ("NVIDIA's driver is the device's own", "libcuda.so.1 is a part of it"),
)
_SCHEMA: Final = 1
_MIB: Final = 1 << 20


@dataclass(frozen=True, kw_only=True)
class VendorFile:
    """One file of NVIDIA's and where it lies in a bundle.

    Attributes:
        path: Inside the bundle: `vendor/`, then as in the wheel; bindings below `vendor/cp312`.
        library: The package that it comes from, by digest.
    """

    path: str
    library: EngineLibrary


def vendor_files(target: Target) -> tuple[VendorFile, ...]:
    """Return what a bundle for `target` carries of NVIDIA's, by path.

    The libraries, CUDA's runtime, and the Python bindings for every CPython that the target may
    have. Bindings cannot be replaced by ctypes: the library exports C++ classes, whose methods have
    no names to call.

    Raises:
        TargetError: the target has no TensorRT that can be carried.
    """
    wheels = [
        wheel
        for wheel in _read(_carriable(target))["wheel"]
        if wheel["arch"] == target.arch and _is_for(wheel["python_tag"], target.python)
    ]
    if not wheels:
        raise TargetError(f"`{target.name}` runs on {target.arch}, for which there are no packages")
    files = [
        VendorFile(path=f"{_folder(wheel)}/{member['path']}", library=_library(wheel, member))
        for wheel in wheels
        for member in wheel["member"]
    ]
    return tuple(sorted(files, key=lambda file: file.path))


def carried_pythons(target: Target) -> tuple[str, ...]:
    """Return the CPythons whose bindings are carried, as `3.12`."""
    tags = {file.library.python_tag for file in vendor_files(target)}
    numbers = sorted(int(tag[3:]) for tag in tags if tag.startswith("cp"))
    return tuple(f"3.{number}" for number in numbers)


def vendor_terms(target: Target) -> tuple[tuple[str, str], ...]:
    """Return the plan's steps on the files: what is carried, and what their licence asks.

    A reading of NVIDIA's text, which travels along, and no legal advice.

    Returns:
        (what, why) of each, the files first.

    Raises:
        TargetError: the target has no TensorRT that can be carried.
    """
    files = vendor_files(target)
    packages = sorted({f"{file.library.package} {file.library.version}" for file in files})
    unpacked = sum(file.library.member_size for file in files)
    pythons = carried_pythons(target)
    size = f"{unpacked // _MIB} MiB once unpacked, bindings for CPython"
    carried = f"{', '.join(packages)}: {size} {pythons[0]} to {pythons[-1]}"
    return ((carried, "`--vendor-libraries`; by digest, from NVIDIA's own packages"), *_TERMS)


def _carriable(target: Target) -> TensorRT:
    found = target.tensorrt
    if found is None or found.module != "tensorrt_rtx":
        what = "no TensorRT" if found is None else f"{found.module}, which its own system brings"
        raise TargetError(
            f"`{target.name}` has {what}: there is nothing to carry along",
            accepted="`--vendor-libraries` with an `rtx-…` target or `dgx-spark`",
        )
    if not _path(found).is_file():
        raise TargetError(f"the packages of {found.module} {found.version} are not known")
    return found


def _path(tensorrt: TensorRT) -> Any:
    return data_dir("targets") / FOLDER / f"{tensorrt.module}-{tensorrt.version}.toml"


@cache
def _read(tensorrt: TensorRT) -> dict[str, Any]:
    table = tomllib.loads(_path(tensorrt).read_text(encoding="utf-8"))
    if table["schema"] != _SCHEMA:
        raise TargetError(f"`{_path(tensorrt).name}` has schema {table['schema']!r}")
    return table


def _is_for(tag: str, lowest: str) -> bool:
    """Return whether a wheel's interpreter may be on a device whose lowest is `lowest`."""
    return tag.startswith("py") or int(tag[3:]) >= int(lowest.split(".")[1])


def _folder(wheel: dict[str, Any]) -> str:
    tag = wheel["python_tag"]
    return FOLDER if tag.startswith("py") else f"{FOLDER}/{tag}"


def _library(wheel: dict[str, Any], member: dict[str, Any]) -> EngineLibrary:
    return EngineLibrary(
        package=wheel["package"],
        version=wheel["version"],
        python_tag=wheel["python_tag"],
        platform=wheel["platform"],
        wheel_sha256=wheel["sha256"],
        member=member["path"],
        member_sha256=member["sha256"],
        member_size=member["size"],
        licenses=tuple(wheel["licenses"]),
    )
