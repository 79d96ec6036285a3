"""What the adapter and its simulation take from TensorRT exists there, in every release at hand."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.standin.interface import RTX, USED, missing
from tests.standin.simulated_tensorrt import load_simulated

ROOT = Path(__file__).resolve().parents[4]
LEAN = ("tensorrt-lean-cu13-bindings==11.4.0.106", "tensorrt-lean-cu13-libs==11.4.0.106")
# Loads one plan and tells the fault, as a user would read it.
LOAD = """
import sys
sys.path[:0] = sys.argv[1:3]
import {module} as trt
from runtime.nvidia.loading import EngineFault, load
from runtime.nvidia.vendor import NAMES, Vendor
from tests.standin.interface import RTX, USED, missing
print(missing(trt, {used}))
vendor = Vendor("{name}", NAMES["{name}"], trt.__version__, (0,), trt)
plan = open(sys.argv[3], "rb").read()
try:
    load(vendor, plan)
except EngineFault as fault:
    print(fault.message)
    print(fault.hint)
"""
BUILD = """
import sys
import tensorrt_rtx as trt
logger = trt.Logger(trt.Logger.ERROR)
builder = trt.Builder(logger)
network = builder.create_network(0)
x = network.add_input("x", trt.float32, (-1, 4))
layer = network.add_activation(x, trt.ActivationType.RELU)
layer.get_output(0).name = "y"
network.mark_output(layer.get_output(0))
config = builder.create_builder_config()
config.num_compute_capabilities = 1
config.set_compute_capability(trt.ComputeCapability.SM89, 0)
profile = builder.create_optimization_profile()
profile.set_shape("x", (1, 4), (2, 4), (8, 4))
config.add_optimization_profile(profile)
open(sys.argv[1], "wb").write(builder.build_serialized_network(network, config))
"""
needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="the `rtx` extra is not installed"
)


def names_after(tree: ast.AST, objects: set[str]) -> set[str]:
    """Return the attributes that code takes of variables or attributes of these names."""
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        for owner in [node.value]
        if (isinstance(owner, ast.Name) and owner.id in objects)
        or (isinstance(owner, ast.Attribute) and owner.attr in objects)
    }


def test_the_list_holds_all_that_the_adapter_asks_for():
    used = {name for table in (USED, RTX) for names in table.values() for name in names}
    used |= set(USED) | set(RTX)
    optional = {"engine_host_code_allowed", "init_libnvinfer_plugins"}
    owners = {"trt", "engine", "context", "_context", "runtime", "_config", "_cache"}
    for module in ("adapter", "lane", "loading", "growing", "profiles"):
        tree = ast.parse((ROOT / "runtime" / "nvidia" / f"{module}.py").read_text())
        assert names_after(tree, owners) - used - optional == set(), module


@pytest.mark.parametrize("rtx", [False, True])
def test_the_simulation_has_all_that_the_adapter_asks_for(cudart_file: Path, rtx: bool):
    simulated = load_simulated(cudart_file, rtx=rtx)
    assert missing(simulated, {**USED, **(RTX if rtx else {})}) == []


@needs_rtx
def test_tensorrt_rtx_has_all_that_the_adapter_asks_for():
    import tensorrt_rtx

    assert missing(tensorrt_rtx, USED) == []
    assert missing(tensorrt_rtx, RTX) == []


@needs_rtx
@pytest.mark.parametrize(
    "kind",
    [
        *("Runtime", "ICudaEngine", "IExecutionContext", "IRuntimeConfig", "IRuntimeCache"),
        *("ILogger", "Logger", "TensorIOMode", "TensorLocation", "DataType"),
    ],
)
def test_the_simulation_invents_nothing(cudart_file: Path, kind: str):
    import tensorrt_rtx

    def public(owner: Any) -> set[str]:
        return {name for name in vars(owner) if not name.startswith("_")}

    simulated = getattr(load_simulated(cudart_file, rtx=True), kind)
    found = {name for owner in simulated.__mro__[:2] for name in public(owner)}
    own = {"module", "fields", "content", "logger", "lock", "contexts", "in_use", "engine"}
    known = set(dir(getattr(tensorrt_rtx, kind))) | set(dir(int)) | {"name", "value"}
    assert found - own - known == set()


def told_by(module: str, name: str, used: str, plan: Path, *folders: Path) -> list[str]:
    """Return what a process of its own says: which names lack, then of the plan."""
    program = LOAD.format(module=module, name=name, used=used)
    done = subprocess.run(
        [sys.executable, "-c", program, ROOT, *(folders or (ROOT,)), plan],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def has_driver() -> bool:
    return Path("/proc/driver/nvidia/version").exists() or Path("/dev/nvhost-gpu").exists()


@needs_rtx
@pytest.mark.skipif(has_driver(), reason="this machine has an NVIDIA driver")
def test_an_engine_of_tensorrt_rtx_without_a_driver_is_told_in_a_sentence(tmp_path: Path):
    plan = tmp_path / "engine"
    subprocess.run([sys.executable, "-c", BUILD, plan], check=True, timeout=120)
    lacking, message, hint = told_by("tensorrt_rtx", "tensorrt_rtx", "{**USED, **RTX}", plan)
    assert lacking == "[]"
    assert message.startswith("TensorRT-RTX 1.")
    assert " does not load the engine: " in message
    assert "cudaError 35" in message
    assert hint == "give this process a GPU and a driver for its CUDA; `nvidia-smi` shows both"


@pytest.fixture(scope="module")
def lean() -> Path:
    """Return a folder with TensorRT 11.4's lean runtime, downloaded once; 44 MB."""
    if sys.version_info[:2] != (3, 11):
        pytest.skip("the package is for CPython 3.11")
    folder = ROOT / ".cache" / "tests" / LEAN[0].replace("==", "-")
    if not (folder / "tensorrt_lean_bindings").is_dir():
        done = subprocess.run(
            [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", folder,
             "--only-binary", ":all:", *LEAN],
            capture_output=True, text=True, check=False, timeout=280,
        )  # fmt: skip
        if done.returncode != 0:
            pytest.skip(f"{LEAN[0]} cannot be installed: {done.stderr[-200:]}")
    return folder


@pytest.mark.slow
@pytest.mark.network
def test_tensorrt_11_has_all_that_the_adapter_asks_for_and_is_not_let_crash(
    lean: Path, tmp_path: Path
):
    plan = tmp_path / "engine"
    plan.write_bytes(bytes(4096))
    said = told_by("tensorrt_lean_bindings", "tensorrt_lean", "USED", plan, lean)
    assert said[0] == "[]"
    if has_driver():
        pytest.skip("this machine has an NVIDIA driver")
    # deserializing would end the process: this release dereferences what it could not set up
    assert said[1].startswith("TensorRT's lean runtime 11.4.0.106 does not start: ")
    assert "CUDA initialization failure with error: 35" in said[1]
