"""Targets: data in files, checked when read."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from packager.errors import TargetError
from packager.resources import data_dir
from packager.target import all_targets, find_target, read_target

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Copy the shipped targets."""
    for path in data_dir("targets").glob("*.toml"):
        shutil.copy(path, tmp_path)
    return tmp_path


def _add(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(f'schema = 1\nname = "mine"\n{text}')
    return path


def test_every_shipped_target_reads_and_is_named_like_its_file() -> None:
    names = [target.module_name for target in all_targets()]
    assert names == sorted(path.stem for path in data_dir("targets").glob("*.toml"))


def test_a_child_takes_what_it_does_not_say_from_its_parent(folder: Path) -> None:
    vnni, plain = find_target("cpu-x86_64-vnni"), find_target("cpu-x86_64")
    assert vnni.engine == plain.engine
    assert plain.quantization.reduce_range
    assert not vnni.quantization.reduce_range
    path = _add(folder, 'inherits = "cpu-arm64"\ntitle = "mine"\n[quantization]\nwhy = "so"\n')
    mine = read_target(path)
    assert mine.quantization.why == "so"
    assert mine.quantization.weight == "int8"
    assert mine.arch == "aarch64"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('inherits = "cpu-arm64"\ncolour = "red"', ["unknown key `colour`"]),
        ('inherits = "cpu-arm64"\n[engine.library]\nsize = 3', ["`engine.library.size`"]),
        ('inherits = "cpu-arm64"\nthreads = "four"', ["`threads` must be of type int"]),
        ('inherits = "cpu-arm64"\nthreads = true', ["`threads` must be of type int"]),
        ('inherits = "cpu-arm64"\nprecisions = "int8"', ["list of strings"]),
        ('inherits = "cpu-arm64"\nengine = "onnxruntime"', ["`engine` must be a table"]),
        ('inherits = "nothing"', ["which does not exist"]),
        ('inherits = "cpu-x86_64-vnni"', ["inherits itself"]),
        ('title = "alone"', ["lacks the key `family`"]),
        ("= 3", ["not valid TOML"]),
    ],
)
def test_a_target_file_that_cannot_be_is_refused(folder: Path, text: str, words: list[str]) -> None:
    with pytest.raises(TargetError) as caught:
        read_target(_add(folder, text))
    for word in words:
        assert word in caught.value.message


def test_another_schema_is_refused(folder: Path) -> None:
    path = folder / "mine.toml"
    path.write_text('schema = 2\nname = "mine"\ninherits = "cpu-arm64"\n')
    with pytest.raises(TargetError, match="schema 2"):
        read_target(path)


def test_a_name_that_differs_from_the_file_is_refused(folder: Path) -> None:
    path = folder / "other.toml"
    path.write_text('schema = 1\nname = "mine"\ninherits = "cpu-arm64"\n')
    with pytest.raises(TargetError, match="is named `mine`, not `other`"):
        read_target(path)


def test_an_unknown_target_names_the_nearest() -> None:
    with pytest.raises(TargetError) as caught:
        find_target("raspberypi-4")
    assert caught.value.hint == "did you mean `raspberry-pi-4`?"
