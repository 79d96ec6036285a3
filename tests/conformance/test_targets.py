"""Every CPU target: one network with a convolution and a matrix product becomes its bundle."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from packager.bundle.local import read_manifest
from packager.target import all_targets, find_target

pytestmark = pytest.mark.network
# What the tables of the others say is in test_gpu_targets.py; a bundle for each would take minutes.
TARGETS = [target.name for target in all_targets() if target.tensorrt is None]


def _write_network(folder: Path) -> Path:
    from onnx import TensorProto, helper, numpy_helper, save

    random = np.random.default_rng(0)
    tensors = {
        "kernel": random.normal(size=(8, 3, 3, 3)) / 5,
        "kernel_bias": random.normal(size=8) / 5,
        "weights": random.normal(size=(8, 5)) / 3,
    }
    nodes = [
        helper.make_node("Conv", ["x", "kernel", "kernel_bias"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "weights"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 12, 12])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 5])],
        [numpy_helper.from_array(a.astype(np.float32), name) for name, a in tensors.items()],
    )
    file = folder / "network.onnx"
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8), file)
    return file


@pytest.fixture(scope="module")
def built(
    edgepack_session: Any, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    """Build the network for every target in one call, as static int8."""
    folder = tmp_path_factory.mktemp("conformance")
    calibration = folder / "calibration"
    calibration.mkdir()
    random = np.random.default_rng(1)
    for index in range(12):
        x = random.normal(size=(1, 3, 12, 12)).astype(np.float32)
        np.savez(calibration / f"{index}.npz", x=x)
    words = [word for name in TARGETS for word in ("-t", name)]
    done = edgepack_session(
        "build", _write_network(folder), *words, "-c", calibration, "--precision", "int8-static",
        "-o", folder / "dist", "--json", check=True,
        env={"PATH": os.environ["PATH"]},  # with the real emulator
    )  # fmt: skip
    return {item["target"]: item for item in json.loads(done.stdout)}


@pytest.mark.parametrize("name", TARGETS)
def test_the_manifest_says_what_the_target_file_says(
    built: dict[str, dict[str, Any]], name: str
) -> None:
    target, manifest = find_target(name), read_manifest(Path(built[name]["path"]))
    assert manifest["target"]["name"] == name
    assert manifest["target"]["arch"] == target.arch
    assert tuple(manifest["target"]["cpu_features_any"]) == target.cpu_features_any
    assert manifest["engine"]["version"] == target.engine.version
    assert manifest["engine"]["precision"].startswith("int8-static")
    assert ("7-bit" in manifest["engine"]["scheme"]) == target.quantization.reduce_range
    (library,) = (f for f in manifest["files"] if f["path"] == manifest["engine"]["library"])
    assert library["sha256"] == target.engine.library.member_sha256


@pytest.mark.parametrize("name", TARGETS)
def test_the_bundle_verifies_and_says_where_it_could_not_be_run(
    built: dict[str, dict[str, Any]], edgepack_session: Any, name: str
) -> None:
    done = edgepack_session("verify", built[name]["path"], "--json", check=True)
    result = json.loads(done.stdout)
    assert result["integrity"].startswith("verified")
    checks = built[name]["checks"]
    if result["self_test"].startswith("passed"):
        assert checks["self-test"].startswith("passed here")
    else:
        assert checks["self-test"].startswith("not run here")
        assert all(c["latency"] is None for c in built[name]["candidates"])


@pytest.mark.emulator
def test_the_portable_x86_bundle_computes_the_same_on_an_emulated_haswell(
    built: dict[str, dict[str, Any]],
) -> None:
    checks = built["cpu-x86_64"]["checks"]
    if not checks["self-test"].startswith("passed here"):
        pytest.skip("this machine is no x86-64 with AVX2")
    words = checks["emulated Haswell"]
    assert words.startswith("passed (avx2)")
    assert float(words.rpartition("≥")[2]) > 0.99999


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_carried_beyond_the_model_stays_small(
    built: dict[str, dict[str, Any]], name: str
) -> None:
    limit = 14_000_000 if find_target(name).arch == "x86_64" else 11_000_000
    parts = built[name]["parts"]
    assert built[name]["size_bytes"] - parts["model"] - parts["golden"] <= limit
