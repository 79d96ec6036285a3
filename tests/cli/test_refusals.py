"""Every wrong input: one clear error, an exit code, a way out, and nothing left behind."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

BUILD = ("build", "-t", "cpu-x86_64")


def _model(folder: Path, name: str = "small.onnx", size: int = 4) -> Path:
    from onnx import TensorProto, helper, numpy_helper, save

    weights = np.ones((size, 2), np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
        [numpy_helper.from_array(weights, "w")],
    )
    opsets = [helper.make_opsetid("", 17)]
    save(helper.make_model(graph, opset_imports=opsets, ir_version=8), folder / name)
    return folder / name


def _refused(done: Any, code: int, *words: str, out: Path | None = None) -> None:
    assert done.returncode == code, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    assert done.stderr.count("error: ") == 1
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr
    message = done.stderr[done.stderr.index("error: ") :].splitlines()[0]
    assert not message.endswith(".")
    assert done.stdout == ""
    if out is not None:
        assert not out.exists()


@pytest.mark.parametrize(
    ("name", "content", "code", "words"),
    [
        ("missing.onnx", None, 2, ["missing.onnx"]),
        ("empty.onnx", b"", 5, ["empty"]),
        ("text.onnx", b"this is no model at all, only words\n" * 9, 5, ["text.onnx"]),
        ("weights.pth", b"\x80\x02}q\x00.", 5, ["pickle", "weights_only=True"]),
        ("model.tflite", b"x" * 99, 2, [".onnx"]),
        ("model.py", b"", 2, ["make_model"]),
    ],
)
def test_a_file_that_is_no_model_is_refused(  # noqa: PLR0917 - one row of the table
    edgepack: Any, tmp_path: Path, name: str, content: bytes | None, code: int, words: list[str]
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    done = edgepack(*BUILD, tmp_path / name, "-o", tmp_path / "dist")
    _refused(done, code, *words, out=tmp_path / "dist")


def test_a_truncated_model_is_refused(edgepack: Any, tmp_path: Path) -> None:
    model = _model(tmp_path, size=400)
    model.write_bytes(model.read_bytes()[:-1000])
    done = edgepack(*BUILD, model, "-o", tmp_path / "dist")
    _refused(done, 5, "small.onnx", out=tmp_path / "dist")


@pytest.mark.torch
def test_a_factory_that_raises_shows_the_users_line(edgepack: Any, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("def make_model():\n    raise ValueError('no weights here')\n")
    done = edgepack(*BUILD, f"{tmp_path / 'net.py'}:make_model", "-o", tmp_path / "dist")
    _refused(done, 5, "no weights here", "net.py:2", out=tmp_path / "dist")


def test_an_unknown_target_names_the_nearest(edgepack: Any, tmp_path: Path) -> None:
    done = edgepack("build", _model(tmp_path), "-t", "raspbery-pi-5")
    _refused(done, 3, "raspbery-pi-5", "did you mean `raspberry-pi-5`?")


def test_an_unknown_recipe_key_names_the_nearest(edgepack: Any, tmp_path: Path) -> None:
    (tmp_path / "edgepack.toml").write_text('model = "small.onnx"\ntarget = ["cpu-x86_64"]\n')
    done = edgepack("build", "-r", tmp_path / "edgepack.toml", "-t", "cpu-x86_64")
    _refused(done, 2, "unknown key `target`", "did you mean `targets`?")


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--dim", "n=9..2"], 2, ["9..2"]),
        (["--dim", "n"], 2, ["="]),
        (["--shape", "x=n,4x"], 2, ["4x"]),
        (["--name", "Not A Name"], 2, ["Not A Name"]),
        (["--version", "1.0-beta"], 2, ["1.0-beta"]),
        (["--precision", "int8-static"], 2, ["calibration", "-c"]),
        (["--precision", "int3"], 2, ["int3"]),
        (["-t", "cpu-x86_64"], 2, ["twice"]),
        (["--lock", "no.json"], 10, ["no.json"]),
        (["--wheelhouse", "nowhere"], 10, ["nowhere"]),
        (["--what"], 2, ["--what"]),
    ],
)
def test_options_that_cannot_be_are_refused(
    edgepack: Any, tmp_path: Path, options: list[str], code: int, words: list[str]
) -> None:
    done = edgepack(*BUILD, _model(tmp_path), *options, "-o", tmp_path / "dist")
    _refused(done, code, *words, out=tmp_path / "dist")


def test_contradictory_options_are_refused(edgepack: Any, tmp_path: Path) -> None:
    (tmp_path / "x.lock.json").write_text("{}")
    done = edgepack(
        *BUILD, _model(tmp_path), "--lock", tmp_path / "x.lock.json", "--precision", "fp32"
    )
    _refused(done, 2, "`--precision` and `--lock`")


def test_a_lock_that_is_none_is_refused(edgepack: Any, tmp_path: Path) -> None:
    (tmp_path / "x.lock.json").write_text("{}")
    done = edgepack(*BUILD, _model(tmp_path), "--lock", tmp_path / "x.lock.json")
    _refused(done, 2, "x.lock.json")


@pytest.mark.parametrize(
    ("files", "code", "words"),
    [
        ({}, 2, ["nothing"]),
        ({"a.txt": b"words"}, 2, ["no samples"]),
        ({"a.npz": b"words"}, 2, ["a.npz"]),
        ({"a.png": b"\x89PNG\r\n\x1a\n"}, 2, ["image input", "[input.x.image]"]),
    ],
)
def test_a_calibration_folder_without_samples_is_refused(
    edgepack: Any, tmp_path: Path, files: dict[str, bytes], code: int, words: list[str]
) -> None:
    folder = tmp_path / "calibration"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    done = edgepack(*BUILD, _model(tmp_path), "-c", folder, "-o", tmp_path / "dist")
    _refused(done, code, *words, out=tmp_path / "dist")


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.ones((1, 5), np.float32), ["[1, 5]"]),
        (np.array([["a"] * 4]), ["float32"]),
        (np.full((1, 4), np.nan, np.float32), ["NaN"]),
    ],
)
def test_calibration_of_the_wrong_shape_or_kind_is_refused(
    edgepack: Any, tmp_path: Path, array: Any, words: list[str]
) -> None:
    folder = tmp_path / "calibration"
    folder.mkdir()
    np.savez(folder / "a.npz", x=array)
    done = edgepack(*BUILD, _model(tmp_path), "-c", folder, "-o", tmp_path / "dist")
    _refused(done, 2, "a.npz", *words, out=tmp_path / "dist")


def test_a_missing_calibration_folder_is_refused(edgepack: Any, tmp_path: Path) -> None:
    done = edgepack(*BUILD, _model(tmp_path), "-c", tmp_path / "none", "-o", tmp_path / "dist")
    _refused(done, 10, "does not exist", out=tmp_path / "dist")


def test_an_output_folder_that_is_a_file_is_refused(edgepack: Any, tmp_path: Path) -> None:
    (tmp_path / "dist").write_text("a file")
    done = edgepack(*BUILD, _model(tmp_path), "-o", tmp_path / "dist")
    _refused(done, 10, "dist", "-o DIR")


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Return a function that mounts a small file system with the given options."""
    import subprocess

    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    folders: list[Path] = []

    def mount(options: str) -> Path:
        folder = tmp_path / f"mounted-{len(folders)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        if subprocess.run(command, check=False).returncode != 0:
            pytest.skip("tmpfs cannot be mounted here")
        folders.append(folder)
        return folder

    yield mount
    for folder in folders:
        subprocess.run(["umount", str(folder)], check=True)


def test_an_output_folder_that_cannot_be_written_is_refused(
    edgepack: Any, tmp_path: Path, mounted: Callable[[str], Path]
) -> None:
    done = edgepack(*BUILD, _model(tmp_path), "-o", mounted("ro") / "dist")
    _refused(done, 10, "cannot be written", "-o DIR")


@pytest.mark.network
def test_no_space_left_is_refused_and_leaves_nothing(
    edgepack: Any, tmp_path: Path, mounted: Callable[[str], Path]
) -> None:
    """A file system of a few pages takes the place of a full disk."""
    small = mounted("size=64k")
    done = edgepack(*BUILD, _model(tmp_path), "-o", small / "dist")
    _refused(done, 10, "no space left", "hint: ", out=small / "dist")


@pytest.mark.parametrize("command", ["predict", "run", "verify", "inspect"])
def test_a_bundle_that_does_not_exist_is_refused(
    edgepack: Any, tmp_path: Path, command: str
) -> None:
    more = ["-i", "x.npz"] if command == "predict" else []
    done = edgepack(command, tmp_path / "none.edgepack", *more)
    _refused(done, 10, "none.edgepack")


@pytest.mark.parametrize("command", ["predict", "run", "verify", "inspect"])
def test_a_file_that_is_no_bundle_is_refused(edgepack: Any, tmp_path: Path, command: str) -> None:
    (tmp_path / "text.edgepack").write_text("only words, again and again" * 99)
    more = ["-i", "x.npz"] if command == "predict" else []
    done = edgepack(command, tmp_path / "text.edgepack", *more)
    _refused(done, 8, "text.edgepack")


def test_an_unknown_command_is_refused(edgepack: Any) -> None:
    done = edgepack("bulid")
    _refused(done, 2, "bulid")
