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


_JETSON = """
inherits = "cpu-arm64"
{more}

[tensorrt]
module = "tensorrt"
compute_capability = "8.7"
memory = "shared"
gpu_memory_mib = 1024
uncertain = ["a doubt of the module"]
{tensorrt}

[jetpack."6.10"]
python = "3.10"

[jetpack."6.10".tensorrt]
version = "10.3.0.30"
cuda = "12.6"
max_opset = 20
max_ir_version = 10

[jetpack."6.9".tensorrt]
version = "8.6.2.3"
cuda = "12.2"
max_opset = 17
max_ir_version = 8
uncertain = ["a doubt of the JetPack"]
"""


def _jetson(folder: Path, *, more: str = 'default_jetpack = "6.10"', tensorrt: str = "") -> Path:
    return _add(folder, _JETSON.format(more=more, tensorrt=tensorrt))


def test_a_jetpack_overrides_what_the_module_says(folder: Path) -> None:
    newest, older = (read_target(_jetson(folder), jetpack=word) for word in (None, "6.9"))
    assert (newest.name, older.name) == ("mine@6.10", "mine@6.9")
    assert newest.module_name == older.module_name == "mine"
    assert (newest.python, older.python) == ("3.10", "3.8")
    assert (newest.jetpack, older.jetpack) == ("6.10", "6.9")
    assert newest.jetpacks == older.jetpacks == ("6.9", "6.10"), "as versions, not as words"
    assert newest.tensorrt is not None
    assert older.tensorrt is not None
    assert newest.tensorrt.strongly_typed
    assert not older.tensorrt.strongly_typed
    assert newest.tensorrt.compute_capabilities == ("8.7",)


def test_doubts_about_the_module_and_about_the_jetpack_both_stay(folder: Path) -> None:
    newest, older = (read_target(_jetson(folder), jetpack=word) for word in (None, "6.9"))
    assert newest.tensorrt is not None
    assert older.tensorrt is not None
    assert newest.tensorrt.uncertain == ("a doubt of the module",)
    assert older.tensorrt.uncertain == ("a doubt of the module", "a doubt of the JetPack")


def test_a_child_inherits_the_jetpacks_and_may_offer_fewer(folder: Path) -> None:
    nano, agx = find_target("jetson-orin-nano-8gb@5.1"), find_target("jetson-agx-orin-64gb@5.1")
    assert nano.tensorrt is not None
    assert agx.tensorrt is not None
    assert nano.tensorrt.version == agx.tensorrt.version
    assert (nano.tensorrt.dla_cores, agx.tensorrt.dla_cores) == (0, 2)
    fewer = _jetson(folder, more='default_jetpack = "6.10"\njetpacks = ["6.10"]')
    assert read_target(fewer).jetpacks == ("6.10",)
    with pytest.raises(TargetError, match=r"`mine` is not built for JetPack `6\.9`"):
        read_target(fewer, jetpack="6.9")


@pytest.mark.parametrize(
    ("more", "tensorrt", "words"),
    [
        ("", "", "`default_jetpack` is None"),
        ('default_jetpack = "7.2"', "", "`default_jetpack` is '7.2'"),
        ('default_jetpack = "6.9"\njetpacks = ["6.10"]', "", "`default_jetpack` is '6.9'"),
        ('default_jetpack = "6.9"\njetpacks = ["7.2"]', "", "must list tables of the file"),
        ('default_jetpack = "6.10"', "dla = 1", "unknown key `tensorrt.dla`"),
        (
            'default_jetpack = "6.10"',
            'compute_capabilities = ["8.6"]',
            "`tensorrt.compute_capabilities` lacks `8.7`",
        ),
        (
            'default_jetpack = "6.10"',
            'compute_capabilities = ["8.6", "8.7"]',
            "an engine of `tensorrt` is for one compute capability",
        ),
    ],
)
def test_a_jetson_file_that_cannot_be_is_refused(
    folder: Path, more: str, tensorrt: str, words: str
) -> None:
    with pytest.raises(TargetError) as caught:
        read_target(_jetson(folder, more=more, tensorrt=tensorrt))
    assert words in caught.value.message


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('module = "tensorrt"', 'module = "trt"', "`tensorrt.module` is `trt`"),
        ('memory = "shared"', 'memory = "unified"', "`tensorrt.memory` is `unified`"),
        ('version = "10.3.0.30"', 'version = "10"', "`tensorrt.version` is `10`"),
        ('cuda = "12.6"', "", "lacks the key `tensorrt.cuda`"),
        ("max_opset = 20", 'max_opset = "20"', "`tensorrt.max_opset` must be of type int"),
        ('[jetpack."6.9".tensorrt]', '[jetpack."6.9".engine]\nname = 3\n[more]', "key `more`"),
    ],
)
def test_a_tensorrt_table_that_cannot_be_is_refused(
    folder: Path, old: str, new: str, words: str
) -> None:
    path = _jetson(folder)
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(TargetError) as caught:
        read_target(path)
    assert words in caught.value.message


@pytest.mark.parametrize("text", ['default_jetpack = "6.2"', 'jetpacks = ["6.2"]'])
def test_a_choice_of_jetpack_without_its_tables_is_refused(folder: Path, text: str) -> None:
    with pytest.raises(TargetError, match=r"has `\w+` and no `\[jetpack"):
        read_target(_add(folder, f'inherits = "cpu-arm64"\n{text}\n'))


@pytest.mark.parametrize("text", ["jetpack = 3", 'jetpack = {"6.2" = 3}'])
def test_a_jetpack_that_is_no_table_is_refused(folder: Path, text: str) -> None:
    with pytest.raises(TargetError, match="one table for each JetPack"):
        read_target(_add(folder, f'inherits = "cpu-arm64"\n{text}\n'))


@pytest.mark.parametrize(
    ("name", "message", "accepted", "hint"),
    [
        (
            "jetson-orin-nano-8gb@9", "`jetson-orin-nano-8gb` is not built for JetPack `9`",
            "one of 5.1, 6.0, 6.1, 6.2, 7.2", "did you mean `jetson-orin-nano-8gb@6.2`?",
        ),
        (
            "jetson-agx-orin-32gb@5.1.2",
            "`jetson-agx-orin-32gb` is not built for JetPack `5.1.2`",
            "one of 5.1, 6.0, 6.1, 6.2, 7.2", "did you mean `jetson-agx-orin-32gb@5.1`?",
        ),
        (
            "jetson-thor-t4000@", "`jetson-thor-t4000@` names no JetPack",
            "one of 7.1, 7.2", "did you mean `jetson-thor-t4000@7.2`?",
        ),
        (
            "server-l4@6.2", "`server-l4` has no JetPacks", "`server-l4`",
            "did you mean `server-l4`?",
        ),
        (
            "jetson-orin-nano-8b@6.0", "there is no target `jetson-orin-nano-8b@6.0`",
            "one of cpu-arm64", "did you mean `jetson-orin-nano-8gb@6.0`?",
        ),
    ],
)  # fmt: skip
def test_a_jetpack_that_is_not_offered_is_refused_with_those_that_are(
    name: str, message: str, accepted: str, hint: str
) -> None:
    with pytest.raises(TargetError) as caught:
        find_target(name)
    assert caught.value.message == message
    assert caught.value.accepted is not None
    assert caught.value.accepted.startswith(accepted)
    assert caught.value.hint == hint


def test_an_engine_of_rtx_may_be_for_several_gpus(folder: Path) -> None:
    path = folder / "rtx-ada.toml"
    text = path.read_text().replace(
        'compute_capability = "8.9"',
        'compute_capability = "8.9"\ncompute_capabilities = ["8.6", "8.9"]',
    )
    path.write_text(text)
    tensorrt = read_target(path).tensorrt
    assert tensorrt is not None
    assert tensorrt.compute_capabilities == ("8.6", "8.9")
    assert tensorrt.strongly_typed


def test_an_unknown_target_names_the_nearest() -> None:
    with pytest.raises(TargetError) as caught:
        find_target("raspberypi-4")
    assert caught.value.hint == "did you mean `raspberry-pi-4`?"
