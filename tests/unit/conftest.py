"""A small artifact and bundles of it, without a download or a long compression."""

from __future__ import annotations

import hashlib
import platform
import shutil
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from packager.artifact import Artifact
from packager.bundle.assemble import Bundle, assemble
from packager.bundle.golden import make_golden
from packager.bundle.library import FetchedLibrary
from packager.model import Dim, Model, Provenance, Signature, TensorSpec
from packager.recipe import ImageInput, Recipe
from packager.target import Target, find_target

if TYPE_CHECKING:
    from pathlib import Path


def make_artifact(folder: Path) -> Artifact:
    """Return float32 x [n, 8] → y [n, 4], tanh of a product."""
    weights = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Tanh", ["h"], ["y"])],
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(weights, "w")],
    )
    path = folder / "model.onnx"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    rows = Dim(name="n", min=1, max=32, opt=1)
    signature = Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=(rows, Dim(size=8))),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=(rows, Dim(size=4))),),
    )
    source = Provenance(kind="onnx", source="model.onnx", source_sha256="0" * 64)
    return Artifact(
        path=path,
        model=Model(path=path, name="small", signature=signature, opset=17, ir_version=8,
                    provenance=source),
        signature=signature, precision="fp32", scheme="", opset=17, ir_version=8,
        candidates=(), facts={},
    )  # fmt: skip


@pytest.fixture(scope="session")
def small_artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Return x [n, 8] → y [n, 4] in float32."""
    return make_artifact(tmp_path_factory.mktemp("artifact"))


@pytest.fixture(scope="session")
def plain_library(engine_library: Path, tmp_path_factory: pytest.TempPathFactory) -> FetchedLibrary:
    """Return the installed engine; its xz form is no smaller, so that it is stored as it is."""
    folder = tmp_path_factory.mktemp("library")
    path = folder / "library.so"
    shutil.copyfile(engine_library, path)
    notice = folder / "LICENSE"
    notice.write_text("the engine's licence\n")
    return FetchedLibrary(
        path=path,
        xz_path=path,
        licenses={"LICENSE": notice},
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        size=path.stat().st_size,
    )


@pytest.fixture(scope="session")
def small_bundle(
    small_artifact: Artifact,
    plain_library: FetchedLibrary,
    tmp_path_factory: pytest.TempPathFactory,
) -> Bundle:
    """Return a bundle for this machine, with a label for each of the four classes."""
    folder = tmp_path_factory.mktemp("bundle")
    (folder / "labels.txt").write_text("north\neast\nsouth\nwest wind\n")
    image = ImageInput(size=(1, 1), labels=folder / "labels.txt")
    return assemble(
        small_artifact,
        target=this_target(),
        recipe=Recipe(model="model.onnx", name="small", version="1.2.0", images={"x": image}),
        golden=make_golden(small_artifact, samples=None, seed=0, min_cosine=0.99, workdir=folder),
        library=plain_library,
        out_dir=folder,
    )


def this_target() -> Target:
    """Return the plain CPU target of this machine's architecture."""
    return find_target({"x86_64": "cpu-x86_64", "aarch64": "cpu-arm64"}[platform.machine()])
