"""A bundle of a TensorRT target says at its start which engine answers, and why not TensorRT."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import zipfile
from typing import TYPE_CHECKING, Any

import pytest

from packager.bundle.assemble import assemble
from packager.bundle.golden import make_golden
from packager.recipe import Recipe
from tests.unit.conftest import this_target

if TYPE_CHECKING:
    from pathlib import Path

    from packager.artifact import Artifact
    from packager.bundle.assemble import Bundle
    from packager.bundle.library import FetchedLibrary

RECIPE: dict[str, Any] = {
    "module": "tensorrt", "version": "10.13.3.9", "cuda": "12.9", "l4t": "",
    "compute_capabilities": ["0.0"], "platform": "linux-" + os.uname().machine,
    "artifact": "model/model.onnx", "artifact_sha256": "0" * 64, "precision": "fp32",
    "strongly_typed": True, "flags": [], "profiles": [], "workspace_mib": 64, "sparse": False,
    "dla_core": None, "gpu_fallback": True, "version_compatible": False,
    "needs": ["a GPU that no one makes"], "engines": [],
}  # fmt: skip


@pytest.fixture(scope="module")
def gpu_bundle(
    small_artifact: Artifact, plain_library: FetchedLibrary, tmp_path_factory: Any
) -> Bundle:
    """Return a bundle for this machine that would rather run on a GPU which no one has."""
    folder = tmp_path_factory.mktemp("gpu-bundle")
    return assemble(
        dataclasses.replace(small_artifact, tensorrt=RECIPE),
        target=this_target(),
        recipe=Recipe(model="model.onnx", name="small", version="1.0.0"),
        golden=make_golden(small_artifact, samples=None, seed=0, min_cosine=0.99, workdir=folder),
        library=plain_library,
        out_dir=folder,
    )


def start(bundle: Bundle, tmp_path: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-I", "-B", bundle.path, *arguments], text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
    )  # fmt: skip


def test_detect_tells_what_is_against_the_engine_and_what_it_needs(
    gpu_bundle: Bundle, tmp_path: Path
) -> None:
    found, _ = start(gpu_bundle, tmp_path, "detect", "--json").communicate(timeout=60)
    told = json.loads(found)["tensorrt"]
    assert told["needs"] == ["a GPU that no one makes"]
    assert told["reasons"]
    assert told["engine"].startswith("onnxruntime 1.32.0 on the CPU, not TensorRT 10.13.3.9: ")
    text, _ = start(gpu_bundle, tmp_path, "detect").communicate(timeout=60)
    assert "\nengine        onnxruntime 1.32.0 on the CPU, not TensorRT" in text
    assert "\nneeds         a GPU that no one makes\n" in text


def test_an_unpacked_release_tells_the_same(gpu_bundle: Bundle, tmp_path: Path) -> None:
    start(gpu_bundle, tmp_path, "unpack", str(tmp_path / "release")).communicate(timeout=60)
    release = dataclasses.replace(gpu_bundle, path=tmp_path / "release")
    whole, _ = start(gpu_bundle, tmp_path, "detect", "--json").communicate(timeout=60)
    unpacked, _ = start(release, tmp_path, "detect", "--json").communicate(timeout=60)
    assert json.loads(unpacked) == json.loads(whole)


def test_serving_begins_with_the_engine(gpu_bundle: Bundle, tmp_path: Path) -> None:
    server = start(gpu_bundle, tmp_path, "serve", "--port", "0")
    assert server.stderr is not None
    lines = []
    for line in server.stderr:
        lines.append(line)
        if line.startswith("ready on"):
            break
    server.send_signal(signal.SIGTERM)
    server.communicate(timeout=60)
    assert lines[0].startswith("engine: onnxruntime 1.32.0 on the CPU, not TensorRT 10.13.3.9: ")
    assert lines[-1].startswith("ready on")


def test_a_bundle_of_a_cpu_target_carries_and_says_nothing_of_it(
    small_bundle: Bundle, tmp_path: Path
) -> None:
    with zipfile.ZipFile(small_bundle.path) as archive:
        assert not [name for name in archive.namelist() if "nvidia" in name]
    found, _ = start(small_bundle, tmp_path, "detect", "--json").communicate(timeout=60)
    assert {"gpu", "tensorrt"}.isdisjoint(json.loads(found))
