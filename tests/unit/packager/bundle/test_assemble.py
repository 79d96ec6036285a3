"""A bundle holds all a device needs and nothing of the host that built it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from packager.bundle.assemble import Bundle, assemble, measure_parts
from packager.bundle.bodies import body_modules
from packager.bundle.golden import make_golden
from packager.bundle.serving import runtime_packages
from packager.data import Samples
from packager.errors import InputOutputError, UsageError
from packager.manifest import canonical_json
from packager.recipe import ImageInput, Recipe
from packager.resources import data_dir
from packager.target import Target, all_targets, find_target
from runtime.archive import verify_bundle

if TYPE_CHECKING:
    from packager.artifact import Artifact
    from packager.bundle.golden import Golden
    from packager.bundle.library import FetchedLibrary


@pytest.fixture
def golden(small_artifact: Artifact, tmp_path: Path) -> Golden:
    return make_golden(
        small_artifact, samples=None, seed=0, min_cosine=0.99, workdir=tmp_path, cpu="avx2"
    )


def build(
    artifact: Artifact, golden: Golden, library: FetchedLibrary, out: Path, **changes: Any
) -> Bundle:
    values: dict[str, Any] = {
        "target": find_target("cpu-arm64"),
        "recipe": Recipe(model="/some/folder/model.onnx", name="small"),
        "golden": golden,
        "library": library,
        "out_dir": out,
        **changes,
    }
    out.mkdir(parents=True, exist_ok=True)
    return assemble(artifact, **values)


def read_manifest(bundle: Bundle) -> dict[str, Any]:
    with zipfile.ZipFile(bundle.path) as archive:
        data = archive.read("manifest.json")
    manifest: dict[str, Any] = json.loads(data)
    assert canonical_json(manifest) == data
    return manifest


def test_the_device_accepts_what_the_host_assembled(small_bundle: Bundle) -> None:
    manifest = verify_bundle(str(small_bundle.path))
    assert manifest.digest == small_bundle.digest
    assert small_bundle.path.name.startswith("small-1.2.0-cpu-")
    assert small_bundle.size_bytes == small_bundle.path.stat().st_size


def test_every_runtime_module_is_carried_that_the_manifest_asks_for(small_bundle: Bundle) -> None:
    manifest = read_manifest(small_bundle)
    folder = data_dir("runtime")
    packages = [f"{name}/*.py" for name in runtime_packages(manifest)]
    wanted = {path.relative_to(folder).as_posix()
              for glob in ("*.py", *packages) for path in folder.glob(glob)}  # fmt: skip
    wanted |= set(body_modules(manifest))
    assert not any(name.startswith("nvidia/") for name in wanted)
    with zipfile.ZipFile(small_bundle.path) as archive:
        carried = {name for name in archive.namelist() if name.startswith("runtime/")}
        for name in wanted:
            assert archive.read(f"runtime/{name}") == (folder / name).read_bytes()
    assert carried == {f"runtime/{name}" for name in wanted}


def test_the_same_arguments_give_the_same_bytes_in_two_folders_under_two_umasks(
    small_artifact: Artifact, golden: Golden, plain_library: FetchedLibrary, tmp_path: Path
) -> None:
    first = build(small_artifact, golden, plain_library, tmp_path / "a")
    moved = tmp_path / "elsewhere" / "model.onnx"
    moved.parent.mkdir()
    shutil.copy(small_artifact.path, moved)
    old = os.umask(0o077)
    try:
        second = build(
            replace(small_artifact, path=moved), golden, plain_library, tmp_path / "b" / "c"
        )
    finally:
        os.umask(old)
    assert first.path.read_bytes() == second.path.read_bytes()
    assert first.digest == second.digest


def test_nothing_of_this_host_is_inside(
    small_artifact: Artifact, golden: Golden, plain_library: FetchedLibrary, tmp_path: Path
) -> None:
    bundle = build(small_artifact, golden, plain_library, tmp_path / "out")
    with zipfile.ZipFile(bundle.path) as archive:
        for name in archive.namelist():
            if not name.startswith(("lib/", "licenses/")):
                content = archive.read(name)
                for trace in (str(tmp_path), str(Path.home()) + "/", str(Path.cwd())):
                    assert trace.encode() not in content, f"{trace} in {name}"


def test_the_manifest_names_everything(
    small_artifact: Artifact, golden: Golden, plain_library: FetchedLibrary, tmp_path: Path
) -> None:
    bundle = build(small_artifact, golden, plain_library, tmp_path / "out", sequence=7)
    manifest = read_manifest(bundle)
    assert (manifest["format"], manifest["requires"], manifest["sequence"]) == (1, ["xz"], 7)
    assert manifest["target"] == {
        "name": "cpu-arm64", "family": "cpu", "arch": "aarch64", "os": "linux",
        "libc": "glibc 2.28", "python": "3.8", "cpu_features_all": ["asimd"],
        "cpu_features_any": [], "memory_mib": 1024, "board": None,
    }  # fmt: skip
    assert manifest["engine"]["artifact"] == "model/model.onnx"
    assert manifest["model"]["signature"] == small_artifact.signature.to_json()
    assert manifest["golden"] == golden.table
    paths = {record["path"] for record in manifest["files"]}
    assert {
        "__main__.py", "server/app.py", "server/openapi.json", "lib/libonnxruntime.so",
        "licenses/edgepack/LICENSE", "licenses/onnxruntime/LICENSE",
    } <= paths  # fmt: skip


def test_the_manifest_tells_what_was_calibrated_on(
    small_artifact: Artifact, golden: Golden, plain_library: FetchedLibrary, tmp_path: Path
) -> None:
    shown = Samples([dict] * 3, digest="0", origin="3 random inputs", kind="random")
    random = build(small_artifact, golden, plain_library, tmp_path / "a", calibration=shown)
    assert read_manifest(random)["model"]["calibration"] == {"kind": "random", "samples": 3}
    none = build(small_artifact, golden, plain_library, tmp_path / "b")
    assert read_manifest(none)["model"]["calibration"] is None


def test_the_sequence_follows_the_version(
    small_artifact: Artifact, golden: Golden, plain_library: FetchedLibrary, tmp_path: Path
) -> None:
    recipe = Recipe(model="m", name="small", version="2.3.4")
    bundle = build(small_artifact, golden, plain_library, tmp_path, recipe=recipe)
    assert read_manifest(bundle)["sequence"] == 2_003_004
    assert bundle.path.name == "small-2.3.4-cpu-arm64.edgepack"


def test_the_parts_add_up_to_the_size(small_bundle: Bundle) -> None:
    assert sum(small_bundle.parts.values()) == small_bundle.size_bytes
    assert small_bundle.parts == measure_parts(small_bundle.path)
    assert min(small_bundle.parts.values()) > 0


@pytest.mark.parametrize("target", all_targets(), ids=lambda t: t.name)
def test_every_target_assembles(
    small_artifact: Artifact, golden: Golden, plain_library: FetchedLibrary, tmp_path: Path,
    target: Target,
) -> None:  # fmt: skip
    bundle = build(small_artifact, golden, plain_library, tmp_path, target=target)
    assert verify_bundle(str(bundle.path)).fields["target"]["name"] == target.name


def test_labels_must_be_as_many_as_the_classes(
    small_artifact: Artifact, golden: Golden, plain_library: FetchedLibrary, tmp_path: Path
) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("one\ntwo\n")
    recipe = Recipe(model="m", name="s", images={"x": ImageInput(size=(1, 1), labels=labels)})
    with pytest.raises(UsageError, match="has 2 lines for 4 classes of `y`"):
        build(small_artifact, golden, plain_library, tmp_path / "out", recipe=recipe)
    labels.unlink()
    with pytest.raises(InputOutputError, match="cannot be read as text"):
        build(small_artifact, golden, plain_library, tmp_path / "out", recipe=recipe)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_bundle_verifies_predicts_and_unpacks_on_every_python_with_nothing_installed(
    small_bundle: Bundle, old_python: Path, tmp_path: Path
) -> None:
    np.savez(tmp_path / "in.npz", x=np.ones((2, 8), np.float32))
    environment = {"HOME": str(tmp_path / "home")}

    def run(root: Path, *arguments: str | Path) -> str:
        done = subprocess.run(
            [old_python, "-S", root, *arguments],
            capture_output=True, text=True, check=False, env=environment, cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        return done.stdout

    result = json.loads(run(small_bundle.path, "verify", "--json"))
    assert result["integrity"].startswith("verified")
    assert result["self_test"] == "passed, 4 golden samples"
    run(small_bundle.path, "predict", "-i", "in.npz", "-o", "out.npz")
    with np.load(tmp_path / "out.npz") as out:
        assert out["y"].shape == (2, 4)
    run(small_bundle.path, "unpack", "release")
    run(tmp_path / "release", "verify")
    assert "west wind" in run(tmp_path / "release", "predict", "-i", "in.npz", "--top", "4")
    run(tmp_path / "release", "verify")
    assert not list((tmp_path / "release").rglob("__pycache__"))
