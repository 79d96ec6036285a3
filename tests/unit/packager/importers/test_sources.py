"""The words that name a model: what is accepted, what is refused, and the digest of a source."""

from __future__ import annotations

import pickle
import sys
import zipfile
from typing import TYPE_CHECKING

import pytest

from packager.errors import InputOutputError, ModelUnsupported, UsageError
from packager.importers.load import FORMS, parse_source, source_digest
from packager.importers.request import ImportLimits
from packager.recipe import Recipe
from tests.unit.packager.importers.onnx_models import dense, externalise, save

if TYPE_CHECKING:
    from pathlib import Path

    from tests.unit.packager.importers.conftest import Importing


@pytest.mark.parametrize(
    "word", ["model", "model.h5", "net.tflite", "a/b:c d", "x:1", ":make", "http://host/m", ""]
)
def test_a_word_of_no_form_lists_the_forms(word: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse_source(word)
    assert refused.value.accepted == FORMS


def test_a_python_file_without_a_factory_says_what_to_add(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("")
    with pytest.raises(UsageError, match="no factory function") as refused:
        parse_source(str(tmp_path / "net.py"))
    assert (refused.value.hint or "").endswith("net.py:make_model`")


@pytest.mark.parametrize("name", ["gone.onnx", "gone.pt2", "gone.py:make_model"])
def test_a_missing_file_is_named(name: str) -> None:
    with pytest.raises(UsageError, match="there is no file `gone"):
        parse_source(name)


def test_a_folder_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        parse_source(str(tmp_path / "m.onnx"))


@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.bin", "w.ckpt", "w.pkl", "w.onnx", "w.pt2"])
def test_pickles_are_refused_under_every_name_with_the_way_out(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(pickle.dumps({"weights": [1.0, 2.0, 3.0]}))
    with pytest.raises(ModelUnsupported, match="pickled checkpoints are not executed") as refused:
        parse_source(str(path))
    assert "weights_only=True" in (refused.value.hint or "")


def test_a_torch_checkpoint_called_onnx_is_a_pickle(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.onnx", "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
    with pytest.raises(ModelUnsupported, match="pickled checkpoint"):
        parse_source(str(tmp_path / "w.onnx"))


def test_a_pickle_is_never_loaded(tmp_path: Path, importing: Importing) -> None:
    class Bomb:
        def __reduce__(self) -> object:
            return (open, (str(tmp_path / "executed"), "w"))

    (tmp_path / "w.pth").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ModelUnsupported):
        importing(tmp_path / "w.pth")
    assert not (tmp_path / "executed").exists()


def test_an_unreadable_file_is_an_input_output_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A name longer than any file system takes is refused for root as well.
    with pytest.raises(InputOutputError, match="cannot be read"):
        parse_source(str(tmp_path / ("n" * 300 + ".onnx")))


def test_nothing_in_the_models_folder_is_imported(
    tmp_path: Path, importing: Importing, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("onnx", "numpy", "json", "packager"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('executed')")
    monkeypatch.chdir(tmp_path)
    assert importing(str(save(dense(), tmp_path / "m.onnx").name)).opset == 17


def test_an_import_that_takes_too_long_is_ended_in_words(
    tmp_path: Path, importing: Importing
) -> None:
    path = save(dense(), tmp_path / "m.onnx")
    with pytest.raises(ModelUnsupported, match=r"took longer than 0\.05 s and was ended"):
        importing(path, limits=ImportLimits(onnx_wall_s=0.05))


def test_an_import_without_memory_is_refused_in_words(tmp_path: Path, importing: Importing) -> None:
    path = save(dense(), tmp_path / "m.onnx")
    with pytest.raises(ModelUnsupported, match=r"importing `m\.onnx`"):
        importing(path, limits=ImportLimits(memory_mib=64))


def test_a_work_folder_that_is_not_there_is_an_input_output_error(
    tmp_path: Path, workdir: Path, importing: Importing
) -> None:
    workdir.rmdir()
    with pytest.raises(InputOutputError, match="cannot be written"):
        importing(save(dense(), tmp_path / "m.onnx"))


def test_the_digest_of_an_onnx_file_covers_its_external_data(tmp_path: Path) -> None:
    proto = dense()
    data = externalise(proto, "W", location="w.bin")
    path = save(proto, tmp_path / "m.onnx")
    recipe = Recipe(model=str(path), name="tested")
    (tmp_path / "w.bin").write_bytes(data)
    (tmp_path / "unrelated.bin").write_bytes(b"1")
    first = source_digest(recipe)
    (tmp_path / "unrelated.bin").write_bytes(b"2")
    assert source_digest(recipe) == first
    (tmp_path / "w.bin").write_bytes(bytes(len(data)))
    assert source_digest(recipe) != first


def test_a_file_of_more_than_a_model_may_hold_is_not_read_for_its_digest(tmp_path: Path) -> None:
    proto = dense()
    externalise(proto, "W", location="w.bin")
    path = save(proto, tmp_path / "m.onnx")
    with (tmp_path / "w.bin").open("wb") as stream:
        stream.truncate(1 << 40)  # a hole: no disk is used
    assert source_digest(Recipe(model=str(path), name="tested")) is None


def test_a_factory_has_no_digest_before_it_runs() -> None:
    assert source_digest(Recipe(model="package.module:make", name="tested")) is None


def test_the_parent_process_never_loads_torch_or_onnx() -> None:
    import subprocess

    program = "import sys, packager.importers.load, packager.importers.inspect; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert not {"torch", "onnx", "onnxruntime", "numpy"} & set(done.stdout.split())
