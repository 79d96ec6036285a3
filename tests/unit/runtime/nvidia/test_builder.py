"""Real TensorRT-RTX builds through the child process, and what the builder refuses or explains."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import helper

from runtime.errors import IntegrityFault
from runtime.nvidia.builder import BuildFailed, build_engine
from runtime.nvidia.building import start_build
from runtime.nvidia.vendor import Vendor, load_vendor
from tests.unit.runtime.nvidia.graphs import (
    CASES,
    CHILD,
    ROOT,
    attention,
    case,
    convolutions,
    make_request,
    mlp,
    model,
    one_range,
    save,
    value,
    weights,
)

if TYPE_CHECKING:
    from runtime.nvidia.building import Report
    from runtime.nvidia.progress import Step
    from runtime.nvidia.request import BuildRequest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="the `rtx` extra is not installed"
)
ENV = {**os.environ, "PYTHONPATH": str(ROOT)}
MAGIC = b"vtrt"


def build(request: BuildRequest, folder: Path, **options: Any) -> Report:
    return start_build(CHILD, request, str(folder), timeout_s=120, env=ENV, **options)


def refusal(request: BuildRequest, folder: Path) -> BuildFailed:
    with pytest.raises(BuildFailed) as caught:
        build(request, folder)
    assert not (folder / "engine").exists()
    return caught.value


@pytest.fixture(scope="module")
def rtx() -> Vendor:
    return load_vendor("tensorrt_rtx")


@pytest.mark.parametrize("name", CASES)
def test_a_graph_is_built_without_a_gpu_and_two_processes_write_the_same_bytes(
    name: str, tmp_path: Path
):
    request = case(name, tmp_path)
    steps: list[Step] = []
    first = build(request, tmp_path / "first", on_progress=steps.append)
    second = build(request, tmp_path / "second")
    plan = Path(first.engine).read_bytes()
    assert plan[:4] == MAGIC
    assert hashlib.sha256(plan).hexdigest() == first.sha256 == second.sha256
    assert first.size == len(plan)
    assert first.facts["profiles"] == [
        {
            key: {bound: list(shape) for bound, shape in bounds.items()}
            for key, bounds in one.items()
        }
        for one in request.profiles
    ]
    fractions = [step.fraction for step in steps]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert len(fractions) > 5


def test_an_engine_without_a_gpu_says_that_nobody_looked_at_its_precision(tmp_path: Path):
    report = build(case("mlp", tmp_path), tmp_path / "out")
    assert report.layers is None
    assert report.lost_precision is None
    assert report.not_inspected is not None
    assert "no GPU was there to look" in report.not_inspected
    assert report.timing_cache is None
    assert any("Engine generation completed" in line for line in report.log)
    assert report.peak_memory_mib < 1024


def test_int8_weights_make_a_smaller_engine_than_the_same_in_fp32(tmp_path: Path):
    floating = model(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")],
        [value("x", ["n", 512])],
        [value("y", ["n", 512])],
        [weights("w", 512, 512)],
    )
    (tmp_path / "int8").mkdir()
    int8 = build(case("int8", tmp_path / "int8"), tmp_path / "int8" / "out")
    request = make_request(
        tmp_path, save(floating, tmp_path), profiles=CASES["int8"][2]
    )  # fmt: skip
    assert int8.size < 0.5 * build(request, tmp_path / "out").size


def test_every_compute_capability_asked_for_is_in_the_engine(tmp_path: Path):
    one = build(case("mlp", tmp_path, compute_capabilities=("8.9",)), tmp_path / "one")
    two = build(case("mlp", tmp_path, compute_capabilities=("8.6", "8.9")), tmp_path / "two")
    assert one.sha256 != two.sha256
    assert two.facts["capabilities"] == ["8.6", "8.9"]


def test_a_compute_capability_that_rtx_lacks_is_refused_with_those_it_has(tmp_path: Path):
    fault = refusal(case("mlp", tmp_path, compute_capabilities=("8.7",)), tmp_path / "out")
    assert fault.message == "TensorRT-RTX 1.7.1.116 builds nothing for compute capability 8.7"
    assert fault.hint is not None
    assert "SM89" in fault.hint


def test_an_operator_that_is_unknown_is_named_with_its_node(tmp_path: Path):
    strange = model(
        [
            helper.make_node("Relu", ["x"], ["a"], name="clamp"),
            helper.make_node("Mystery", ["a"], ["y"], name="mine", domain="house"),
        ],
        [value("x", ["n", 64])],
        [value("y", ["n", 64])],
        domain="house",
    )
    fault = refusal(make_request(tmp_path, save(strange, tmp_path)), tmp_path / "out")
    assert "cannot take node `mine` (Mystery): it has no such operator" in fault.message
    assert fault.hint is not None
    assert "moves such nodes to the CPU" in fault.hint
    assert fault.log
    assert fault.exit_code == 5


def test_a_node_without_a_name_goes_by_its_output(tmp_path: Path):
    nameless = model(
        [helper.make_node("Det", ["x"], ["size"])], [value("x", [3, 3])], [value("size", [])]
    )
    fault = refusal(make_request(tmp_path, save(nameless, tmp_path), profiles=()), tmp_path / "out")
    assert "cannot take node `size` (Det)" in fault.message


def test_a_damaged_graph_is_told_from_an_unsupported_one(tmp_path: Path):
    save(mlp(), tmp_path)
    path = tmp_path / "model.onnx"
    path.write_bytes(path.read_bytes()[:-400])
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    fault = refusal(make_request(tmp_path, digest), tmp_path / "out")
    assert "cannot read `model.onnx`" in fault.message


def test_a_graph_that_is_not_the_recipes_is_refused_before_it_is_parsed(tmp_path: Path):
    save(mlp(), tmp_path)
    with pytest.raises(BuildFailed, match="is not the file that the recipe names") as caught:
        build(make_request(tmp_path, "0" * 64), tmp_path / "out")
    assert caught.value.exit_code == IntegrityFault.exit_code


def test_an_open_size_without_a_profile_is_refused_by_its_input(tmp_path: Path):
    fault = refusal(case("mlp", tmp_path, profiles=()), tmp_path / "out")
    assert fault.message == "input `x` has no fixed shape, and the recipe has no profile"
    assert fault.hint is not None
    assert "--dim" in fault.hint


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        (one_range("z", (1, 64), (1, 64), (1, 64)), "a profile of the recipe lacks input `x`"),
        (
            {**one_range("x", *[(1, 64)] * 3), **one_range("z", *[(1,)] * 3)},
            "names input `z`, which the graph does not have",
        ),
        (one_range("x", (1,), (1,), (2,)), "the profile of input `x` cannot be"),
        (one_range("x", (1, 32), (1, 32), (2, 32)), r"\[2, 32\] does not fit the graph's"),
    ],
    ids=["other input", "one too many", "rank", "fixed size"],
)
def test_a_profile_that_does_not_fit_the_graph_is_refused(
    profile: Any, message: str, tmp_path: Path, rtx: Vendor
):
    request = case("mlp", tmp_path, profiles=(profile,))
    with pytest.raises(BuildFailed, match=message):
        build_engine(rtx, request, progress=lambda _: None)


def test_sizes_at_which_the_graph_cannot_run_are_named_with_the_node(tmp_path: Path, rtx: Vendor):
    shape = onnx.numpy_helper.from_array(np.array([1, 4, 8], np.int64), "shape")
    fixed = model(
        [helper.make_node("Reshape", ["x", "shape"], ["y"], name="fixed")],
        [value("x", ["n", 32])],
        [value("y", None)],
        [shape],
    )
    profile = one_range("x", (1, 32), (4, 32), (4, 32))
    request = make_request(tmp_path, save(fixed, tmp_path), profiles=(profile,))
    with pytest.raises(BuildFailed, match="does not run at all sizes of profile 0: `fixed`"):
        build_engine(rtx, request, progress=lambda _: None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strongly_typed": False}, "the recipe is for a weakly typed network"),
        ({"version_compatible": True}, "builds no version-compatible engines"),
        ({"dla_core": 0, "precision": "fp16"}, "TensorRT-RTX has no DLA"),
    ],
    ids=["weak typing", "version-compatible", "DLA"],
)
def test_what_rtx_does_not_have_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path, rtx: Vendor
):
    with pytest.raises(BuildFailed, match=message) as caught:
        build_engine(rtx, case("mlp", tmp_path, **changes), progress=lambda _: None)
    assert caught.value.hint


def test_an_engine_for_this_machines_gpu_needs_a_driver(tmp_path: Path):
    if Path("/dev/nvidiactl").exists():
        pytest.skip("this machine has a driver")
    request = make_request(tmp_path, save(attention(), tmp_path))
    child = (
        "import sys, tensorrt_rtx as trt\n"
        "trt.ComputeCapability.SM89 = trt.ComputeCapability.CURRENT\n"
        "from runtime.nvidia.child import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    profile = CASES["attention"][2][:1]
    with pytest.raises(BuildFailed, match="there is no NVIDIA driver here") as caught:
        start_build(
            [CHILD[0], "-c", child], request._replace(profiles=profile), str(tmp_path / "out"),
            timeout_s=60, env=ENV,
        )  # fmt: skip
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("install the driver")


def test_a_child_with_too_little_memory_ends_in_a_sentence(tmp_path: Path):
    big = model(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")],
        [value("x", ["n", 4096])],
        [value("y", ["n", 4096])],
        [weights("w", 4096, 4096)],
    )
    profile = one_range("x", (1, 4096), (1, 4096), (1, 4096))
    request = make_request(tmp_path, save(big, tmp_path), profiles=(profile,))
    said = "needs about 428 MiB of memory, and 160 MiB are allowed"
    with pytest.raises(BuildFailed, match=said) as caught:
        build(request, tmp_path / "out", memory_mib=160)
    assert caught.value.exit_code == 10
    assert not (tmp_path / "out" / "engine").exists()


def test_a_convolution_net_with_fixed_sizes_needs_no_profile(tmp_path: Path, rtx: Vendor):
    request = make_request(tmp_path, save(convolutions(), tmp_path), profiles=())
    assert bytes(memoryview(build_engine(rtx, request, progress=lambda _: None).plan)[:4]) == MAGIC
