"""What a bundle's engine depends on and where its operators run is told, or why it cannot be."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from packager.artifact import Parts, Prebuilt
from packager.bundle.assemble import assemble
from packager.bundle.golden import make_golden
from packager.bundle.inspection import bundle_layers, engine_facts, layers_json
from packager.bundle.local import read_manifest
from packager.cli.inspect import command
from packager.errors import IntegrityError, ModelUnsupported, UsageError
from packager.recipe import Recipe
from packager.target import find_target

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from packager.artifact import Artifact
    from packager.bundle.assemble import Bundle
    from packager.bundle.library import FetchedLibrary

FINGERPRINT = "ab" * 32
TABLE: dict[str, Any] = {
    "module": "tensorrt", "version": "10.3.0.30", "cuda": "12.6", "compute_capabilities": ["8.7"],
    "platform": "linux-aarch64", "artifact": "model/model.onnx", "artifact_sha256": "0" * 64,
    "precision": "fp16", "strongly_typed": True, "flags": [], "profiles": [{}],
    "workspace_mib": 1024, "sparse": False, "dla_core": None, "gpu_fallback": True,
    "version_compatible": False, "needs": ["TensorRT 10.3 (python3-libnvinfer)"], "engines": [],
}  # fmt: skip


def save(
    path: Path, operator: str, kinds: tuple[int, int], names: tuple[str, str], **more: Any
) -> Path:
    """Write one operator and a large constant, so that the file is stored compressed."""
    source, made = names
    large = numpy_helper.from_array(np.zeros(40_000, np.float32), "large")
    graph = helper.make_graph(
        [helper.make_node(operator, [source], [made], name=f"n_{made}", **more)],
        "g",
        [helper.make_tensor_value_info(source, kinds[0], [1, 8, 4, 4])],
        [helper.make_tensor_value_info(made, kinds[1], [1, 8, 4, 4])],
        [large],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path
    )
    return path


@pytest.fixture
def make_bundle(
    small_artifact: Artifact, plain_library: FetchedLibrary, tmp_path: Path
) -> Callable[..., Bundle]:
    """Make a bundle for a TensorRT target: head and tail on the CPU, one operator between."""

    def make(table: dict[str, Any] | None = None, *, ahead: bool = False) -> Bundle:
        half, single = TensorProto.FLOAT16, TensorProto.FLOAT
        parts = Parts(
            head=save(tmp_path / "h.onnx", "Cast", (single, half), ("x", "a"), to=half),
            core=save(tmp_path / "c.onnx", "Relu", (half, half), ("a", "b")),
            tail=save(tmp_path / "t.onnx", "Cast", (half, single), ("b", "y"), to=single),
        )
        (tmp_path / "engine").write_bytes(b"an engine")
        engines = (Prebuilt(path=tmp_path / "engine", fingerprint=FINGERPRINT, facts={}),)
        golden = make_golden(
            small_artifact, samples=None, seed=0, min_cosine=0.99, workdir=tmp_path
        )
        return assemble(
            dataclasses.replace(
                small_artifact,
                parts=parts,
                tensorrt={**TABLE, **(table or {})},
                engines=engines if ahead else (),
            ),
            target=find_target("cpu-arm64"),
            recipe=Recipe(model="model.onnx", name="small"),
            golden=golden,
            library=plain_library,
            out_dir=tmp_path,
        )

    return make


@pytest.fixture
def inspect(tmp_path: Path) -> Callable[..., str]:
    def run(*arguments: Any) -> str:
        words = [*map(str, arguments), "--cache-dir", str(tmp_path / "cache")]
        return CliRunner().invoke(command, words, catch_exceptions=False).stdout

    return run


def test_inspect_tells_where_each_operator_runs_and_what_the_engine_needs(
    make_bundle: Callable[..., Bundle], inspect: Callable[..., str]
) -> None:
    bundle = make_bundle()
    lines = inspect(bundle.path).splitlines()
    assert "tensorrt: 10.3.0.30, CUDA 12.6, compute capability 8.7, linux-aarch64" in lines
    assert "  fp16, precision as the graph is typed, 1 profile" in lines
    assert "  needs: TensorRT 10.3 (python3-libnvinfer)" in lines
    assert "  built ahead: none, the device builds its engine" in lines
    assert "3 operators: 2 fp16, 1 fp32" in lines
    assert ["CPU", "(head)", "Cast", "fp16", "1"] in [line.split() for line in lines]
    assert ["GPU", "Relu", "fp16", "1"] in [line.split() for line in lines]
    assert ["CPU", "(tail)", "Cast", "fp32", "1"] in [line.split() for line in lines]
    assert not any("n_b" in line for line in lines)
    every = [line.split() for line in inspect(bundle.path, "--layers").splitlines()]
    assert ["n_b", "Relu", "GPU", "fp16"] in every


def test_a_device_with_a_dla_tells_what_could_run_on_it(
    make_bundle: Callable[..., Bundle], tmp_path: Path
) -> None:
    bundle = make_bundle()
    manifest = read_manifest(bundle.path)
    (tmp_path / "work").mkdir()
    for target, told in (
        ("jetson-agx-orin-64gb@6.2", ""),
        ("jetson-orin-nano-8gb@6.2", None),
        ("one-that-nobody-knows", None),
    ):
        manifest["target"]["name"] = target
        rows = bundle_layers(bundle.path, manifest, workdir=tmp_path / "work")
        assert [row.dla for row in rows] == [None, told, None]
        assert rows[1].runs_on == "GPU"


def test_engines_built_ahead_are_told_with_their_fingerprints(
    make_bundle: Callable[..., Bundle], inspect: Callable[..., str]
) -> None:
    bundle = make_bundle(
        {"strongly_typed": False, "flags": ["fp16"], "version_compatible": True,
         "compute_capabilities": ["8.6", "8.9"], "profiles": [{}, {}], "dla_core": 0},
        ahead=True,
    )  # fmt: skip
    text = inspect(bundle.path)
    assert f"  built ahead: engines/{FINGERPRINT}.engine, fingerprint {FINGERPRINT}" in text
    assert "on a device with another fingerprint the engine is built there" in text
    assert "compute capability 8.6, 8.9" in text
    assert "weakly typed: TensorRT may compute in fp16 as well" in text
    assert "2 profiles, version-compatible, DLA core 0" in text
    assert ["DLA", "Relu", "fp16", "1"] in [line.split() for line in text.splitlines()]


def test_the_wire_form_has_the_manifest_and_what_was_found(
    make_bundle: Callable[..., Bundle], inspect: Callable[..., str]
) -> None:
    bundle = make_bundle()
    data = json.loads(inspect(bundle.path, "--json"))
    assert data.pop("inspection") == {
        "places": {"CPU head": {"Cast": 1}, "GPU core": {"Relu": 1}, "CPU tail": {"Cast": 1}},
        "precisions": {"fp16": 2, "fp32": 1},
    }
    assert data == read_manifest(bundle.path)
    found = json.loads(inspect(bundle.path, "--json", "--layers"))["inspection"]["layers"]
    assert [row["node"] for row in found] == ["n_a", "n_b", "n_y"]


def test_a_plain_bundle_tells_its_operators_only_when_asked(
    small_bundle: Bundle, inspect: Callable[..., str]
) -> None:
    assert "operators:" not in inspect(small_bundle.path)
    assert "inspection" not in json.loads(inspect(small_bundle.path, "--json"))
    told = inspect(small_bundle.path, "--layers")
    assert "operators: " in told
    assert "CPU" in told
    assert "tensorrt" not in told


def test_layers_of_a_model_are_refused(inspect: Callable[..., str], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="`--layers` tells of bundles"):
        inspect(tmp_path / "model.onnx", "--layers")


def test_an_unpacked_release_tells_the_same(
    make_bundle: Callable[..., Bundle], tmp_path: Path
) -> None:
    from runtime.release import unpack

    bundle = make_bundle()
    unpack(str(bundle.path), str(tmp_path / "release"))
    manifest = read_manifest(bundle.path)
    (tmp_path / "work").mkdir()
    packed = bundle_layers(bundle.path, manifest, workdir=tmp_path / "work")
    assert bundle_layers(tmp_path / "release", manifest, workdir=tmp_path / "none") == packed
    assert layers_json(packed, every=False)["precisions"] == {"fp16": 2, "fp32": 1}


@pytest.mark.parametrize(
    ("key", "value"),
    [("module", ...), ("version", 10.3), ("needs", "x"), ("needs", [1]), ("engines", {}),
     ("engines", [{"path": "x"}]), ("engines", ["x"]), ("profiles", None), ("strongly_typed", 1),
     ("dla_core", True), ("dla_core", "0"), ("compute_capabilities", "8.7")],
)  # fmt: skip
def test_a_table_that_cannot_be_read_is_refused(key: str, value: Any) -> None:
    table = {**TABLE, key: value}
    if value is ...:
        del table[key]
    with pytest.raises(IntegrityError, match="`tensorrt` in the manifest cannot be read"):
        engine_facts({"tensorrt": table})


def test_a_table_of_another_kind_is_refused_and_none_is_none() -> None:
    assert engine_facts({}) is None
    for table in ("x", 1, []):
        with pytest.raises(IntegrityError, match="`tensorrt` in the manifest cannot be read"):
            engine_facts({"tensorrt": table})


def test_a_graph_that_is_not_as_promised_is_refused(
    make_bundle: Callable[..., Bundle], tmp_path: Path
) -> None:
    bundle = make_bundle()
    manifest = read_manifest(bundle.path)
    work = tmp_path / "work"
    work.mkdir()
    core = next(file for file in manifest["files"] if file["path"] == "model/model.onnx")
    assert core["encoding"] == "xz"
    for key, value in (
        ("size", core["size"] - 1),
        ("size", core["size"] + 1),
        ("sha256", "0" * 64),
    ):
        right = core[key]
        core[key] = value
        with pytest.raises(IntegrityError, match=r"`model/model\.onnx` is not what the manifest"):
            bundle_layers(bundle.path, manifest, workdir=work)
        core[key] = right
    bundle_layers(bundle.path, manifest, workdir=work)
    manifest["tensorrt"]["artifact"] = "model/absent.onnx"
    with pytest.raises(
        IntegrityError, match=r"names `model/absent\.onnx`, which is not in `files`"
    ):
        bundle_layers(bundle.path, manifest, workdir=work)


@pytest.mark.parametrize("content", [b"", b"no stream", b"\xfd7zXZ\x00cut off"])
def test_a_stream_that_cannot_be_unpacked_is_refused(content: bytes, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "b.edgepack", "w") as archive:
        archive.writestr("model/model.onnx.xz", content)
    record = {"path": "model/model.onnx", "size": 9, "sha256": "0" * 64, "encoding": "xz"}
    manifest = {"engine": {"artifact": "model/model.onnx"}, "files": [record]}
    with pytest.raises(IntegrityError, match=r"`model/model\.onnx` cannot be unpacked"):
        bundle_layers(tmp_path / "b.edgepack", manifest, workdir=tmp_path)


def test_a_graph_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.onnx").write_text("only words, and no graph among them" * 9)
    manifest = {"engine": {"artifact": "model/model.onnx"}, "files": [{"path": "model/model.onnx"}]}
    with pytest.raises(ModelUnsupported):
        bundle_layers(tmp_path, manifest, workdir=tmp_path)
