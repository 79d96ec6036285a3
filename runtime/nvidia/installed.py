"""Which TensorRT and which CUDA runtime are installed, told from the files alone."""

from __future__ import annotations

import glob
import os
import re
import sys
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

_PACKAGES = (
    "libnvinfer8",
    "libnvinfer10",
    "libnvinfer11",
    "nvidia-jetpack",
    "nvidia-l4t-core",
    "python3-libnvinfer",
)
_APT_LIST = "var/lib/dpkg/info/python3-libnvinfer.list"
# The package of a module, and those of its parts, which carry the version where it is a shell.
_DISTRIBUTION = {
    "tensorrt": re.compile(r"tensorrt(_cu\d+)?(_bindings|_libs)?-(\d[\d.]*)\S*\.dist-info$"),
    "tensorrt_rtx": re.compile(
        r"tensorrt_rtx(_cu\d+)?(_bindings|_libs)?-(\d[\d.]*)\S*\.dist-info$"
    ),
}
_OTHER_PYTHONS = (
    "usr/lib/python3*/dist-packages",
    "usr/lib/python3*/site-packages",
    "usr/local/lib/python3*/dist-packages",
    "usr/local/lib/python3*/site-packages",
)
_CUDART_FOLDERS = (
    "usr/local/cuda*/lib64",
    "usr/local/cuda*/targets/*/lib",
    "usr/lib/*-linux-gnu",
    "usr/lib64",
)
_CUDART_WHEELS = (
    ("nvidia/cuda_runtime/lib", "nvidia_cuda_runtime_cu*-*.dist-info"),
    ("nvidia/cu13/lib", "nvidia_cuda_runtime-*.dist-info"),
)
_CUDART_NAME = re.compile(r"libcudart\.so\.(\d+(?:\.\d+)*)$")


class Interpreter(NamedTuple):
    """The Python that would import TensorRT.

    Attributes:
        version: As `3.10`.
        isolated: It is a virtual environment that does not see the system's packages.
        paths: Folders that it imports from.
    """

    version: str
    isolated: bool
    paths: Tuple[str, ...]


def this_interpreter() -> Interpreter:
    """Return the interpreter that runs this."""
    isolated = sys.prefix != sys.base_prefix
    if isolated:
        try:
            with open(os.path.join(sys.prefix, "pyvenv.cfg"), encoding="utf-8") as stream:
                isolated = not re.search(
                    r"(?mi)^include-system-site-packages\s*=\s*true", stream.read(1 << 16)
                )
        except OSError:
            pass
    folders = tuple(path for path in sys.path if path and os.path.isdir(path))
    return Interpreter("%d.%d" % sys.version_info[:2], isolated, folders)


def read_packages(root: str) -> Dict[str, str]:
    """Return the versions of the NVIDIA packages that dpkg has installed, by name."""
    try:
        with open(os.path.join(root, "var/lib/dpkg/status"), "rb") as stream:
            status = b"\n" + stream.read()
    except OSError:
        return {}
    found = {}
    for name in _PACKAGES:
        start = status.find(b"\nPackage: %s\n" % name.encode())
        if start < 0:
            continue
        end = status.find(b"\n\n", start + 1)
        entry = status[start : end if end > 0 else len(status)].decode("utf-8", "replace")
        version = re.search(r"(?m)^Version: (\S+)", entry)
        if version and re.search(r"(?m)^Status: .* installed$", entry):
            found[name] = version.group(1)
    return found


def find_tensorrt(
    root: str, interpreter: Interpreter, packages: Dict[str, str]
) -> Tuple[List[Dict[str, Any]], List[Dict[str, Any]]]:
    """Return the TensorRT modules of this interpreter, and those that only another one sees.

    Each is `module`, `version` (with its build where a file says it), `origin` and `path`; one
    that another interpreter sees has that one's version as `python`. `origin` is `apt`; `wheel`
    for a wheel that carries TensorRT's libraries itself, as those of package indexes do; `other`
    for bindings alone.
    """
    apt = _apt_folders(root)
    ours: List[Dict[str, Any]] = []
    for module in _DISTRIBUTION:
        for folder in interpreter.paths:
            if os.path.isfile(os.path.join(folder, module, "__init__.py")):
                ours.append(_describe(root, module, folder, apt, packages))
                break
    seen = {os.path.realpath(found["path"]) for found in ours}
    elsewhere: List[Dict[str, Any]] = []
    for pattern in _OTHER_PYTHONS:
        for folder in sorted(glob.glob(os.path.join(glob.escape(root), pattern))):
            if not os.path.isfile(os.path.join(folder, "tensorrt", "__init__.py")):
                continue
            found = _describe(root, "tensorrt", folder, apt, packages)
            if os.path.realpath(found["path"]) not in seen:
                found["python"] = os.path.basename(os.path.dirname(folder))[len("python") :]
                elsewhere.append(found)
    return ours, elsewhere


def find_cudart(root: str, paths: Sequence[str]) -> List[Dict[str, str]]:
    """Return every CUDA runtime found, newest first, as `version` and `path`.

    Args:
        root: `/`, or a folder that stands for it.
        paths: The interpreter's import folders, where wheels put it.
    """
    found: Dict[str, Dict[str, str]] = {}
    folders = [
        folder
        for pattern in _CUDART_FOLDERS
        for folder in sorted(glob.glob(os.path.join(glob.escape(root), pattern)))
    ]
    if root == "/":
        folders += [part for part in os.environ.get("LD_LIBRARY_PATH", "").split(":") if part]
    for folder in folders:
        _add_cudart(found, folder, None)
    for path in paths:
        for below, distribution in _CUDART_WHEELS:
            matches = glob.glob(os.path.join(glob.escape(path), distribution))
            told = re.search(r"-([\d.]+)\.dist-info$", matches[0]) if matches else None
            _add_cudart(found, os.path.join(path, below), told.group(1) if told else None)
    return sorted(
        found.values(),
        key=lambda one: [int(part) for part in re.findall(r"\d+", one["version"])],
        reverse=True,
    )


def _add_cudart(found: Dict[str, Dict[str, str]], folder: str, version: Optional[str]) -> None:
    try:
        names = os.listdir(folder)
    except OSError:
        return
    for name in sorted(names):
        if not _CUDART_NAME.match(name):
            continue
        path = os.path.join(folder, name)
        real = os.path.realpath(path)
        # The link `libcudart.so.12` is what is loaded; the file's own name has the whole version.
        whole = _CUDART_NAME.match(os.path.basename(real))
        loaded = _CUDART_NAME.match(name)
        told = version or (whole or loaded).group(1)  # type: ignore[union-attr]
        if real not in found or len(path) < len(found[real]["path"]):
            found[real] = {"version": told, "path": path}


def _describe(
    root: str, module: str, folder: str, apt: Sequence[str], packages: Dict[str, str]
) -> Dict[str, Any]:
    version = None
    for name in sorted(os.listdir(folder)):
        told = _DISTRIBUTION[module].match(name)
        if told and len(told.group(3)) > len(version or ""):
            version = told.group(3).rstrip(".")
    carried = glob.glob(os.path.join(glob.escape(folder), module + "_libs", "*.so*"))
    # TensorRT 8 kept its libraries inside the module itself.
    carried += glob.glob(os.path.join(glob.escape(folder), module, "libnvinfer.so*"))
    origin = "wheel" if carried else "other"
    if module == "tensorrt" and os.path.realpath(folder) in apt and not carried:
        origin = "apt"
        # Either may lack the build: apt says `8.5.2-1+cuda11.4` and `10.3.0.30-1+cuda12.5`.
        package = packages.get("python3-libnvinfer", "").split("-")[0]
        if len(package) > len(version or ""):
            version = package
    return {
        "module": module,
        "version": version,
        "origin": origin,
        "path": os.path.join(folder, module),
    }


def _apt_folders(root: str) -> List[str]:
    try:
        with open(os.path.join(root, _APT_LIST), encoding="utf-8", errors="replace") as stream:
            lines = stream.read(1 << 20).split("\n")
    except OSError:
        return []
    ending = "/tensorrt/__init__.py"
    return [
        os.path.realpath(os.path.join(root, line[: -len(ending)].lstrip("/")))
        for line in lines
        if line.endswith(ending)
    ]
