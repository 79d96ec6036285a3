"""Targets with TensorRT: what their tables say agrees with NVIDIA's parts and with each other.

Their bundles are built elsewhere, for a few of them: here every JetPack of every file is read.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

from packager.target import Target, TensorRT, all_targets, find_target

# CUDA compute capability by GPU, from NVIDIA's table of its GPUs.
CAPABILITIES = {
    "jetson-xavier-nx": "7.2", "jetson-agx-xavier": "7.2",
    "jetson-orin-nano-4gb": "8.7", "jetson-orin-nano-8gb": "8.7", "jetson-orin-nx-8gb": "8.7",
    "jetson-orin-nx-16gb": "8.7", "jetson-agx-orin-32gb": "8.7", "jetson-agx-orin-64gb": "8.7",
    "jetson-agx-thor": "11.0", "jetson-thor-t4000": "11.0",
    "server-t4": "7.5", "server-a10": "8.6", "server-a100": "8.0", "server-l4": "8.9",
    "server-l40s": "8.9", "server-h100": "9.0", "server-h200": "9.0", "server-b200": "10.0",
    "rtx-ampere": "8.6", "rtx-ada": "8.9", "rtx-blackwell": "12.0", "dgx-spark": "12.1",
}  # fmt: skip
# What `tensorrt_rtx.ComputeCapability` of 1.7 has.
OF_RTX = {"7.5", "8.0", "8.6", "8.9", "12.0", "12.1"}
# JetPack: Jetson Linux from which on, CUDA, TensorRT, CPython, glibc of its Ubuntu.
JETPACKS = {
    "5.1": ("35.2.1", "11.4", "8.5.2.2", "3.8", "glibc 2.31"),
    "6.0": ("36.3", "12.2", "8.6.2.3", "3.10", "glibc 2.35"),
    "6.1": ("36.4", "12.6", "10.3.0.30", "3.10", "glibc 2.35"),
    "6.2": ("36.4.3", "12.6", "10.3.0.30", "3.10", "glibc 2.35"),
    "7.0": ("38.2", "13.0", "10.13.3.9", "3.12", "glibc 2.39"),
    "7.1": ("38.4", "13.0", "10.13.3.9", "3.12", "glibc 2.39"),
    "7.2": ("39.2", "13.2", "10.16.2.10", "3.12", "glibc 2.39"),
}
OFFERED = {
    "7.2": ["5.1"],
    "8.7": ["5.1", "6.0", "6.1", "6.2", "7.2"],
    "11.0": ["7.0", "7.1", "7.2"],
}
DLA_CORES = {
    "jetson-xavier-nx": 2, "jetson-agx-xavier": 2, "jetson-orin-nx-8gb": 1,
    "jetson-orin-nx-16gb": 2, "jetson-agx-orin-32gb": 2, "jetson-agx-orin-64gb": 2,
}  # fmt: skip
# Opset and IR version of the ONNX release that each parser was built with: none reads more.
PARSERS = {
    "8.5": (17, 8), "8.6": (18, 8), "10.3": (21, 10), "10.13": (23, 11), "10.16": (25, 13),
    "1.7": (25, 13),
}  # fmt: skip

MODULES = [target.module_name for target in all_targets() if target.tensorrt is not None]
RESOLVED = [
    find_target(f"{name}@{jetpack}" if jetpack else name)
    for name in MODULES
    for jetpack in find_target(name).jetpacks or ("",)
]
JETSONS = [target for target in RESOLVED if target.family == "jetson"]
every = pytest.mark.parametrize("target", RESOLVED, ids=lambda target: target.name)
every_jetson = pytest.mark.parametrize("target", JETSONS, ids=lambda target: target.name)


def _tensorrt(target: Target) -> TensorRT:
    assert target.tensorrt is not None
    return target.tensorrt


def test_every_device_that_is_asked_for_has_its_file() -> None:
    assert set(MODULES) == set(CAPABILITIES)


@every
def test_the_compute_capability_is_that_of_the_gpu(target: Target) -> None:
    tensorrt = _tensorrt(target)
    assert tensorrt.compute_capability == CAPABILITIES[target.module_name]
    assert tensorrt.compute_capabilities == (tensorrt.compute_capability,)
    if tensorrt.module == "tensorrt_rtx":
        assert set(tensorrt.compute_capabilities) <= OF_RTX


@every
def test_the_module_fits_the_device(target: Target) -> None:
    tensorrt = _tensorrt(target)
    modules = {"jetson": "tensorrt", "server": "tensorrt", "rtx": "tensorrt_rtx"}
    assert tensorrt.module == modules[target.family]
    assert target.arch == ("x86_64" if tensorrt.memory == "own" else "aarch64")
    assert tensorrt.strongly_typed == (not tensorrt.version.startswith("8."))
    assert re.fullmatch(r"\d+\.\d+", tensorrt.cuda)
    assert len(tensorrt.version.split(".")) == 4, "an engine belongs to one build"


@every
def test_the_parser_reads_no_more_than_it_was_built_for(target: Target) -> None:
    tensorrt = _tensorrt(target)
    opset, ir_version = PARSERS[".".join(tensorrt.version.split(".")[:2])]
    assert 17 <= tensorrt.max_opset <= opset
    assert 8 <= tensorrt.max_ir_version <= ir_version
    assert tensorrt.max_opset <= target.engine.max_opset
    assert tensorrt.max_ir_version <= target.engine.max_ir_version


@every
def test_memory_that_is_shared_is_counted_once(target: Target) -> None:
    tensorrt = _tensorrt(target)
    assert tensorrt.gpu_memory_mib >= 3000
    assert target.memory_mib >= 3000
    if tensorrt.memory == "shared":
        assert tensorrt.gpu_memory_mib == target.memory_mib
    size = re.search(r"-(\d+)gb", target.name)
    if size:
        assert 0.8 < target.memory_mib / (int(size[1]) << 10) < 0.95


@every
def test_the_fallback_on_the_cpu_is_the_engine_of_the_cpu_target(target: Target) -> None:
    plain = find_target({"x86_64": "cpu-x86_64", "aarch64": "cpu-arm64"}[target.arch])
    assert target.engine == plain.engine
    assert target.cpu_features_all == plain.cpu_features_all
    assert _numbers(target.libc) >= _numbers(plain.libc)


@every
def test_int8_is_what_tensorrt_takes(target: Target) -> None:
    assert target.precisions == ("int8", "fp16", "fp32")
    assert target.quantization.in_words() == "S8S8 per channel"
    assert target.quantization.symmetric
    assert target.quantization.bias == "float"
    words = {"x86_64": "runs the same file in float", "aarch64": "nothing saturates"}
    assert words[target.arch] in target.quantization.why


@every
def test_what_was_not_tried_is_said(target: Target) -> None:
    assert target.verified == "built to the documentation, not run: no such device was there"
    assert _tensorrt(target).uncertain
    for sentence in _tensorrt(target).uncertain:
        assert len(sentence) > 30
        assert not sentence.endswith(".")
    assert _tensorrt(target).packages


@every
def test_sparse_weights_are_only_for_gpus_with_sparse_kernels(target: Target) -> None:
    # 2:4 came with Ampere; TensorRT-RTX takes the flag and builds the same engine.
    sparse = _numbers(_tensorrt(target).compute_capability) >= [8, 0]
    gains = sparse and _tensorrt(target).module == "tensorrt"
    assert target.sparsity == (("2:4",) if gains else ())


@every_jetson
def test_a_jetpack_brings_its_own_versions(target: Target) -> None:
    l4t, cuda, version, python, libc = JETPACKS[target.jetpack]
    tensorrt = _tensorrt(target)
    if target.jetpack == "5.1" and "orin-nano" in target.name:
        l4t = "35.3.1"
    assert (tensorrt.l4t, tensorrt.cuda, tensorrt.version) == (l4t, cuda, version)
    assert (target.python, target.libc) == (python, libc)
    assert f"cuda-cudart-{cuda.replace('.', '-')}" in tensorrt.packages
    assert f"libnvinfer{version.partition('.')[0]}" in tensorrt.packages
    assert target.name.endswith(f"@{target.jetpack}")


@every_jetson
def test_a_module_has_the_jetpacks_that_boot_on_it(target: Target) -> None:
    wanted = OFFERED[_tensorrt(target).compute_capability]
    if target.module_name == "jetson-thor-t4000":
        wanted = wanted[1:]
    assert list(target.jetpacks) == wanted


@every_jetson
def test_the_accelerators_are_those_of_the_module(target: Target) -> None:
    cores = DLA_CORES.get(target.module_name, 0)
    tensorrt = _tensorrt(target)
    if target.jetpack == "7.2" and cores:
        # Not known to work there, so not used, and said.
        assert any("DLA" in sentence for sentence in tensorrt.uncertain)
        cores = 0
    assert tensorrt.dla_cores == cores
    orin = tensorrt.compute_capability == "8.7"
    assert tensorrt.dla_version == (("2.0" if orin else "1.0") if cores else "")


@every_jetson
def test_a_jetson_says_how_it_is_flashed(target: Target) -> None:
    assert target.flash is not None
    assert target.flash.parts
    assert all(re.fullmatch(r"p\d{4}(-\d{4})?", part) for part in target.flash.parts)
    assert target.flash.board.startswith("jetson-")
    assert re.fullmatch(r"(mmcblk0|nvme0n1)p1", target.flash.root_device)
    newer = target.jetpack in {"6.2", "7.2"}
    if "orin-n" in target.name:
        assert target.flash.board.endswith("-super") == newer
        assert target.flash.root_device == "nvme0n1p1"


def test_no_two_modules_have_the_same_part_number() -> None:
    parts = [part for name in MODULES if (flash := find_target(name).flash) for part in flash.parts]
    assert len(set(parts)) == len(parts)


def test_only_modules_of_jetson_are_flashed() -> None:
    assert {t.family for t in all_targets() if t.flash is not None} == {"jetson"}
    assert {t.family for t in all_targets() if t.jetpacks} == {"jetson"}


def _numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)]


def _rows(heading: str) -> list[list[str]]:
    """Return the cells of the guide's table whose first column has this heading."""
    guide = Path(__file__).resolve().parents[2] / "docs" / "guide" / "targets.md"
    lines = guide.read_text(encoding="utf-8").partition(f"| {heading} |")[2].splitlines()[2:]
    return [
        [cell.strip(" `") for cell in line.strip("|").split("|")]
        for line in itertools.takewhile(lambda line: line.startswith("|"), lines)
    ]


def test_the_guide_has_the_versions_of_every_jetpack() -> None:
    rows = _rows("JetPack")
    assert [row[0] for row in rows] == sorted({t.jetpack for t in JETSONS}, key=_numbers)
    for jetpack, l4t, cuda, version, opset, python, modules in rows:
        of_it = [target for target in JETSONS if target.jetpack == jetpack]
        for target in of_it:
            tensorrt = _tensorrt(target)
            assert (tensorrt.cuda, tensorrt.version, target.python) == (cuda, version, python)
            assert tensorrt.max_opset == int(opset)
            assert tensorrt.l4t in l4t
            series = {"7.2": "Xavier", "8.7": "Orin", "11.0": "Thor"}
            assert series[tensorrt.compute_capability] in modules
        defaults = [t for t in of_it if find_target(t.module_name) == t]
        assert ("default" in modules or jetpack == "5.1") == bool(defaults)


def test_the_guide_has_every_gpu() -> None:
    wanted = {
        target.name: [target.tensorrt.compute_capability, str(target.tensorrt.gpu_memory_mib)]
        for target in RESOLVED
        if target.family != "jetson" and target.tensorrt is not None
    }
    assert {row[0]: row[1:] for row in _rows("target")} == wanted
