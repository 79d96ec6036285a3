"""A bundle decodes what its recipe gives a meaning to, with what it carries, and nothing else."""

from __future__ import annotations

import json
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from packager.artifact import Artifact
from packager.bundle.assemble import assemble
from packager.bundle.bodies import body_fields, body_modules, takes_photos
from packager.bundle.golden import make_golden
from packager.bundle.image_library import CarriedImageLibrary, image_libraries
from packager.bundle.library import FetchedLibrary
from packager.bundle.local import predict
from packager.model import Dim, Model, Provenance, Signature, TensorSpec
from packager.recipe import AudioInput, ColumnsInput, ImageInput, Recipe, TextInput
from packager.resources import data_dir
from runtime.archive import verify_bundle
from runtime.errors import IntegrityFault
from runtime.manifest import parse_manifest
from tests.unit.conftest import this_target
from tests.unit.runtime.bodies import photos, sounds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from packager.bundle.assemble import Bundle

ROWS = Dim(name="n", min=1, max=8, opt=1)
SIDES = (Dim(name="height", min=4, max=64, opt=8), Dim(name="width", min=4, max=64, opt=8))


def signature(dtype: str, *dims: Dim, name: str = "x") -> Signature:
    out = TensorSpec(name="y", dtype="float32", shape=(ROWS, Dim(size=3)))
    return Signature(inputs=(TensorSpec(name=name, dtype=dtype, shape=(ROWS, *dims)),),
                     outputs=(out,))  # fmt: skip


PHOTO = signature("uint8", *SIDES, Dim(size=3))
SOUND = signature("float32", Dim(name="samples", min=3, max=3, opt=3))
FLAT = signature("float32", Dim(size=3))
IMAGES = {"images": {"x": ImageInput(size=(8, 8))}}
AUDIO = {"audio": {"x": AudioInput(sample_rate=16000)}}


def recipe(**parts: Any) -> Recipe:
    return Recipe(model="model.onnx", name="small", version="1.0.0", **parts)


def carried(arch: str = "x86_64") -> list[CarriedImageLibrary]:
    path = data_dir("targets") / "vendor" / "image-libraries.toml"
    fetched = FetchedLibrary(path=path, xz_path=path, licenses={}, sha256="", size=1)
    return [CarriedImageLibrary(wanted=wanted, fetched=fetched, licenses={"LICENSE": path})
            for wanted in image_libraries(arch)]  # fmt: skip


def kinds(found: dict[str, Any]) -> list[str]:
    return sorted(found.get("bodies", {}))


def test_photos_are_served_in_the_kinds_whose_library_is_carried() -> None:
    both = body_fields(recipe(**IMAGES), PHOTO, carried())
    assert kinds(both) == ["image/jpeg", "image/png"]
    assert both["bodies"]["image/png"] == {
        "library": "lib/libpng16.so", "name": "libpng", "version": "1.6.58"
    }  # fmt: skip
    assert kinds(body_fields(recipe(**IMAGES), PHOTO, carried()[1:])) == ["image/png"]
    assert body_fields(recipe(**IMAGES), PHOTO, []) == {}


@pytest.mark.parametrize(
    ("changed", "wire"),
    [
        ({}, PHOTO),
        (IMAGES, signature("float32", *SIDES, Dim(size=3))),
        (IMAGES, signature("uint8", *SIDES, Dim(size=4))),
        (IMAGES, replace(PHOTO, inputs=(*PHOTO.inputs, *FLAT.inputs))),
    ],
)
def test_other_inputs_are_no_photos(changed: dict[str, Any], wire: Signature) -> None:
    assert not takes_photos(recipe(**changed), wire)
    assert not any(kind.startswith("image/")
                   for kind in kinds(body_fields(recipe(**changed), wire, carried())))  # fmt: skip


def test_sounds_texts_and_rows_are_served_where_the_recipe_or_the_input_says_so() -> None:
    assert kinds(body_fields(recipe(**AUDIO), SOUND, [])) == ["audio/wav"]
    ids = signature("int64", Dim(name="tokens", min=1, max=9, opt=1), name="ids")
    text = TextInput(tokenizer=Path("vocab.txt"), ids="ids")
    assert kinds(body_fields(recipe(text=text), ids, [])) == ["text/plain"]
    assert kinds(body_fields(recipe(), FLAT, [])) == ["text/csv"]
    free = signature("float32", Dim(name="k", min=1, max=9, opt=1))
    assert body_fields(recipe(), free, []) == {}
    named = {"columns": {"x": ColumnsInput(names=("a", "b"))}}
    assert kinds(body_fields(recipe(**named), free, [])) == ["text/csv"]
    assert body_fields(recipe(), signature("float32", Dim(size=4097)), []) == {}


def test_only_the_modules_of_the_kinds_are_carried() -> None:
    assert body_modules({}) == ()
    assert body_modules({"bodies": {"text/csv": {}}}) == (
        "bodies/__init__.py", "bodies/csvrows.py", "bodies/texts.py",
    )  # fmt: skip
    names = ("image/jpeg", "image/png", "audio/wav", "text/csv", "text/plain")
    every = {"bodies": {name: {} for name in names}}
    folder = data_dir("runtime") / "bodies"
    assert {f"bodies/{path.name}" for path in folder.glob("*.py")} == set(body_modules(every))


def artifact(
    folder: Path, wire: Signature, nodes: Sequence[Any], kind: int, *dims: Any
) -> Artifact:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        list(nodes), "g", [value("x", kind, ["n", *dims])],
        [value("y", TensorProto.FLOAT, ["n", 3])], [],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    path = folder / "model.onnx"
    onnx.save(model, path)
    source = Provenance(kind="onnx", source="model.onnx", source_sha256="0" * 64)
    return Artifact(
        path=path,
        model=Model(path=path, name="small", signature=wire, opset=18, ir_version=8,
                    provenance=source),
        signature=wire, precision="fp32", scheme="", opset=18, ir_version=8, candidates=(),
        facts={},
    )  # fmt: skip


@pytest.fixture(scope="module")
def photo_bundle(tmp_path_factory: pytest.TempPathFactory, plain_library: FetchedLibrary) -> Bundle:
    """Return a bundle of the mean colour of a photo, with the libraries that decode photos."""
    folder = tmp_path_factory.mktemp("photos")
    nodes = [
        helper.make_node("Constant", [], ["axes"], value_ints=[1, 2]),
        helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["f", "axes"], ["y"], keepdims=0),
    ]
    made = artifact(folder, PHOTO, nodes, TensorProto.UINT8, "height", "width", 3)
    notice = folder / "LICENSE"
    notice.write_text("a licence\n")
    libraries = []
    for wanted in image_libraries(this_target().arch):
        path = photos.library(wanted.kind)
        found = FetchedLibrary(path=path, xz_path=path, licenses={},
                               sha256=wanted.library.member_sha256, size=1)  # fmt: skip
        libraries.append(
            CarriedImageLibrary(wanted=wanted, fetched=found, licenses={"LICENSE": notice})
        )
    return bundle_of(made, recipe(**IMAGES), plain_library, folder, image_libraries=libraries)


def bundle_of(
    made: Artifact, wanted: Recipe, library: FetchedLibrary, folder: Path, **more: Any
) -> Bundle:
    golden = make_golden(made, samples=None, seed=0, min_cosine=0.99, workdir=folder)
    return assemble(made, target=this_target(), recipe=wanted, golden=golden, library=library,
                    out_dir=folder, **more)  # fmt: skip


def test_libraries_and_their_licences_lie_in_the_bundle(photo_bundle: Bundle) -> None:
    manifest = verify_bundle(str(photo_bundle.path))
    paths = {record.path for record in manifest.files}
    assert {"lib/libturbojpeg.so", "lib/libpng16.so", "licenses/libjpeg-turbo/LICENSE",
            "licenses/libpng/LICENSE", "runtime/bodies/png.py"} <= paths  # fmt: skip
    assert "runtime/bodies/wav.py" not in paths
    assert "image/jpeg" in manifest.fields["bodies"]


def test_a_manifest_whose_library_is_not_among_its_files_is_refused(photo_bundle: Bundle) -> None:
    with zipfile.ZipFile(photo_bundle.path) as archive:
        fields = json.loads(archive.read("manifest.json"))
    for bodies, message in (
        ({"image/png": {"library": "../libpng.so"}}, "not in `files`"),
        ({"image/png": {"library": 7}}, "not in `files`"),
        ({"image/png": []}, "`bodies` in `manifest.json` is of the wrong type"),
        ([], "`bodies` in `manifest.json` is of the wrong type"),
    ):
        text = json.dumps({**fields, "bodies": bodies}, sort_keys=True, separators=(",", ":"),
                          ensure_ascii=False)  # fmt: skip
        with pytest.raises(IntegrityFault, match=message):
            parse_manifest((text + "\n").encode())


@pytest.mark.parametrize("lowest", [True, False])
def test_device_and_host_give_photos_the_same_answers(
    photo_bundle: Bundle, old_pythons: dict[str, Path], tmp_path: Path, lowest: bool
) -> None:
    names = sorted(old_pythons, key=lambda name: int(name[2:]))
    paths = []
    for form in ("jpg", "png"):
        paths.append(tmp_path / f"photo.{form}")
        exif = photos.with_orientation(8)
        kind = {"jpg": "JPEG", "png": "PNG"}[form]
        paths[-1].write_bytes(photos.saved(photos.picture(width=30, height=20), kind, exif=exif))
    there = json.loads(device(old_pythons[names[0 if lowest else -1]], photo_bundle, paths,
                              tmp_path))  # fmt: skip
    here = json.loads(predict(photo_bundle.path, paths, output=None, top=5,
                              cache_dir=tmp_path / "host", as_json=True))  # fmt: skip
    assert there["results"] == here["results"]  # the files' names included


def device(
    python: Path, bundle: Bundle, paths: Sequence[Path], cache: Path, *, status: int = 0
) -> str:
    inputs = [word for path in paths for word in ("-i", str(path))]
    done = subprocess.run(
        [python, "-I", "-B", bundle.path, "predict", "--json", *inputs],
        capture_output=True, text=True, check=False, timeout=120,
        env={"XDG_CACHE_HOME": str(cache / "device"), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert done.returncode == status, done.stderr
    return done.stdout if status == 0 else done.stderr


def test_the_device_says_what_is_wrong_with_a_file(
    photo_bundle: Bundle, old_pythons: dict[str, Path], tmp_path: Path
) -> None:
    python = old_pythons[max(old_pythons)]
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(photos.saved(photos.picture(width=30, height=20), "JPEG")[:-40])
    told = device(python, photo_bundle, [photo], tmp_path, status=2)
    assert told.startswith(f"error: `{photo}`: the photo is cut short")
    for name in ("a.webp", "a.wav", "a.csv"):
        (tmp_path / name).write_bytes(b"")
        told = device(python, photo_bundle, [tmp_path / name], tmp_path, status=2)
        assert "is of no kind that this bundle decodes" in told
        assert "or `image/jpeg`, or `image/png`" in told


def test_device_and_host_give_sounds_and_tables_the_same_answers(
    plain_library: FetchedLibrary, old_pythons: dict[str, Path], tmp_path: Path
) -> None:
    python = old_pythons[min(old_pythons)]
    negated = [helper.make_node("Neg", ["x"], ["y"])]
    for wire, wanted, name, content in (
        (SOUND, recipe(**AUDIO), "a.wav",
         sounds.wav(sounds.encoded(np.array([0.5, -0.25, 1.0]), 1, 16))),
        (FLAT, recipe(columns={"x": ColumnsInput(names=("b", "a", "c"))}), "a.csv",
         b"a,b,c\n1,2,3\n4,5.5,6\n"),
    ):  # fmt: skip
        folder = tmp_path / name
        folder.mkdir()
        made = artifact(folder, wire, negated, TensorProto.FLOAT, 3)
        bundle = bundle_of(made, wanted, plain_library, folder)
        (folder / name).write_bytes(content)
        there = json.loads(device(python, bundle, [folder / name], folder))["results"]
        here = json.loads(predict(bundle.path, [folder / name], output=None, top=5,
                                  cache_dir=folder / "host", as_json=True))  # fmt: skip
        assert there == here["results"]
