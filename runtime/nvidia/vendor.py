"""Finds the installed TensorRT, and tells by its attributes what it can do."""

from __future__ import annotations

import ctypes
import importlib
import os
import re
from typing import Any, List, NamedTuple, Optional, Tuple

from ..errors import TargetMismatch

NAMES = {
    "tensorrt": "TensorRT",
    "tensorrt_lean": "TensorRT's lean runtime",
    "tensorrt_dispatch": "TensorRT's dispatch runtime",
    "tensorrt_rtx": "TensorRT-RTX",
}
# What differs between the releases: feature -> where it shows, below the module.
FEATURES = {
    "strong_typing": "NetworkDefinitionCreationFlag.STRONGLY_TYPED",
    "explicit_batch": "NetworkDefinitionCreationFlag.EXPLICIT_BATCH",
    "precision_flags": "BuilderFlag.FP16",
    "int8_flag": "BuilderFlag.INT8",
    "version_compatible": "BuilderFlag.VERSION_COMPATIBLE",
    "progress_monitor": "IProgressMonitor",
    "progress_attribute": "IBuilderConfig.progress_monitor",
    "compute_capabilities": "IBuilderConfig.num_compute_capabilities",
    "set_compute_capability": "IBuilderConfig.set_compute_capability",
    "compute_capability_names": "ComputeCapability",
    "node_names": "ParserError.node_name",
    "node_operators": "ParserError.node_operator",
    "adjust_for_dla": "OnnxParserFlag.ADJUST_FOR_DLA",
    "parser_flags": "OnnxParser.set_flag",
    "parser_config": "OnnxParser.set_builder_config",
    "cublas_tactics": "TacticSource.CUBLAS",
    "cublaslt_tactics": "TacticSource.CUBLAS_LT",
    "cudnn_tactics": "TacticSource.CUDNN",
    "host_code_allowed": "Runtime.engine_host_code_allowed",
    "runtime_config": "ICudaEngine.create_runtime_config",
    "engine_validity": "Runtime.get_engine_validity",
}
_OLDEST = (8, 5)
_LIBRARY = re.compile(r"/lib(?:nvinfer(?:_lean|_dispatch)?|tensorrt_rtx)\.so[.0-9]*$")
_L4T = re.compile(r"# R(\d+) ")
# From JetPack 7 on, Jetsons take the same packages as other Arm servers.
_FIRST_COMMON_L4T = 38


class VendorMissing(TargetMismatch):
    """TensorRT is not installed, not usable here, or of another major version."""


class Vendor(NamedTuple):
    """An imported TensorRT.

    Attributes:
        module: `tensorrt`, `tensorrt_rtx`, or one that only runs engines: `tensorrt_lean`.
        name: As users know it.
        version: With the build, such as `10.3.0.30`, where the library tells.
        numbers: The version as numbers.
        trt: The module itself.
    """

    module: str
    name: str
    version: str
    numbers: Tuple[int, ...]
    trt: Any

    @property
    def is_rtx(self) -> bool:
        """TensorRT-RTX, which builds for a list of GPUs and without one."""
        return self.module == "tensorrt_rtx"

    def has(self, feature: str) -> bool:
        """Return whether this release has what `FEATURES` lists under that word."""
        found = self.trt
        for name in FEATURES[feature].split("."):
            if not hasattr(found, name):
                return False
            found = getattr(found, name)
        return True

    @property
    def has_strong_typing(self) -> bool:
        """Precision can be taken from the graph alone (10.0 on)."""
        return self.has("strong_typing")

    @property
    def has_precision_flags(self) -> bool:
        """Weakly typed networks and their FP16 and INT8 flags (up to 10)."""
        return self.has("precision_flags")

    @property
    def has_progress_monitor(self) -> bool:
        """The builder reports its phases (10.0 on)."""
        return self.has("progress_monitor") and self.has("progress_attribute")

    @property
    def has_timing_cache(self) -> bool:
        """Timings are worth keeping: not in TensorRT-RTX, which measures nothing (since 1.2)."""
        return not self.is_rtx


def load_vendor(
    module: str = "tensorrt",
    *,
    wanted: Optional[str] = None,
    l4t_file: str = "/etc/nv_tegra_release",
) -> Vendor:
    """Import a TensorRT module.

    Args:
        module: One of `NAMES`.
        wanted: The version a bundle was made for; another major version is refused.
        l4t_file: By which a Jetson is known.

    Raises:
        VendorMissing: there is none, it cannot be imported, it is too old, of another major
            version than `wanted`, or the server build from the package index on a Jetson.
    """
    if module not in NAMES:
        raise VendorMissing("`%s` is no TensorRT module" % module, "one of " + ", ".join(NAMES))
    name, jetson = NAMES[module], _l4t_major(l4t_file)
    try:
        trt = importlib.import_module(module)
    except ModuleNotFoundError as fault:
        if fault.name != module:
            raise VendorMissing(
                "%s is installed, and lacks the Python package `%s`" % (name, fault.name),
                "install `%s` for this interpreter" % fault.name,
            ) from fault
        raise VendorMissing(
            "%s is not installed for this interpreter" % name, _how_to_install(module, jetson)
        ) from fault
    except Exception as fault:  # it loads libraries, which may raise anything
        raise VendorMissing(
            "%s is installed and cannot be imported: %s" % (name, _first_line(fault)),
            _how_to_repair(str(fault), module, jetson),
        ) from fault
    if jetson is not None and jetson < _FIRST_COMMON_L4T and _from_package_index(trt, module):
        raise VendorMissing(
            "this %s comes from the package index, whose build is for servers and lacks this "
            "Jetson's GPU" % name,
            "python3 -m pip uninstall %s; sudo apt install python3-libnvinfer" % module,
        )
    version = _full_version(str(getattr(trt, "__version__", "")))
    numbers = numbers_of(version)
    if not numbers:
        raise VendorMissing(
            "a module called `%s` is installed that has no version" % module,
            _how_to_install(module, jetson),
        )
    if module != "tensorrt_rtx" and numbers[:2] < _OLDEST:
        raise VendorMissing(
            "%s %s is too old: edgepack needs 8.5 or later" % (name, version),
            "update JetPack to 5.1 or later"
            if jetson is not None
            else "python3 -m pip install -U " + module,
        )
    if wanted is not None and numbers[:1] != numbers_of(wanted)[:1]:
        raise VendorMissing(
            "this bundle is for %s %s, and %s is installed" % (name, wanted, version),
            "build the bundle for the target that has %s %s" % (name, version),
        )
    return Vendor(module, name, version, numbers, trt)


def numbers_of(version: str) -> Tuple[int, ...]:
    """Return the leading numbers of a version: `8.6.1.post1` gives (8, 6, 1)."""
    numbers: List[int] = []
    for part in version.split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)


def working_tactic_libraries() -> Tuple[str, ...]:
    """Return which of `CUBLAS`, `CUBLAS_LT` and `CUDNN` can be loaded and answer.

    TensorRT 8 wants them for some of its tactics. A stand-in, made so that TensorRT loads at all,
    has no function that tells its version, or tells an impossible one.
    """
    return tuple(source for source in _VERSION_OF if _answers(source))


# Source -> sonames, the function that tells the version, and what the library cannot be below.
_VERSION_OF = {
    "CUBLAS": (("libcublas.so.11", "libcublas.so.12"), "cublasGetCudartVersion", 8000),
    "CUBLAS_LT": (("libcublasLt.so.11", "libcublasLt.so.12"), "cublasLtGetVersion", 8000),
    "CUDNN": (("libcudnn.so.8",), "cudnnGetVersion", 7000),
}


def _answers(source: str) -> bool:
    sonames, function, lowest = _VERSION_OF[source]
    for soname in sonames:
        try:
            tell = getattr(ctypes.CDLL(soname), function)
        except (OSError, AttributeError):
            continue
        tell.restype = ctypes.c_size_t
        if int(tell()) >= lowest:
            return True
    return False


def _full_version(version: str) -> str:
    """Return the version with its build number: some releases' modules leave it out."""
    if len(numbers_of(version)) >= 4:
        return version
    for path in _mapped_files():
        if not _LIBRARY.search(path):
            continue
        try:
            library = ctypes.CDLL(path)
            parts = [
                int(getattr(library, "getInferLib%sVersion" % part)())
                for part in ("Major", "Minor", "Patch", "Build")
            ]
        except (OSError, AttributeError):
            continue
        if tuple(parts[:2]) == numbers_of(version)[:2]:
            return ".".join(map(str, parts))
    return version


def _mapped_files() -> List[str]:
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as stream:
            paths = [line.rstrip("\n").split(None, 5)[5:] for line in stream]
    except OSError:
        return []
    return sorted({path[0] for path in paths if path and path[0].startswith("/")})


def _l4t_major(path: str) -> Optional[int]:
    """Return the major release of Jetson Linux; None on other machines."""
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            found = _L4T.match(stream.readline(200))
    except OSError:
        return None
    return int(found.group(1)) if found else None


def _from_package_index(trt: Any, module: str) -> bool:
    """Tell a wheel from JetPack's package: the wheel's libraries lie in a module beside it."""
    folder = os.path.dirname(os.path.dirname(os.path.abspath(trt.__file__ or "")))
    beside = (module + "_libs", module + "_bindings")
    return any(os.path.isdir(os.path.join(folder, name)) for name in beside)


def _how_to_install(module: str, jetson: Optional[int]) -> str:
    if module == "tensorrt_rtx":
        return "python3 -m pip install tensorrt-rtx-cu13"
    if jetson is not None:
        return (
            "sudo apt install python3-libnvinfer, and start the bundle with the system's python3 "
            "(/usr/bin/python3)"
        )
    return "python3 -m pip install %s, in the version that `detect` names" % module


def _how_to_repair(message: str, module: str, jetson: Optional[int]) -> str:
    if "libcudnn" in message or "libcublas" in message or "libcudart" in message:
        lacking = re.search(r"lib[A-Za-z]+\.so[.0-9]*", message)
        return "install CUDA's `%s`, or add its folder to LD_LIBRARY_PATH" % (
            lacking.group(0) if lacking else "libraries"
        )
    if re.search(r"failed to map segment|[Cc]annot allocate memory|bad_alloc", message):
        return "stop what else uses the memory: its libraries alone need some hundred MiB"
    if "numpy" in message:
        return "install a numpy that fits this %s: 1.x for 8.5" % NAMES[module]
    return _how_to_install(module, jetson)


def _first_line(fault: BaseException) -> str:
    return (str(fault).strip().splitlines() or [type(fault).__name__])[0]
