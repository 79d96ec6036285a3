"""Recipes: every key read, every mistake named."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from packager.errors import InputOutputError, UsageError
from packager.recipe import (
    DimRange,
    Privacy,
    check_name,
    check_version,
    default_sequence,
    parse_dim,
    parse_shape,
    read_recipe,
)

if TYPE_CHECKING:
    from pathlib import Path

WHOLE = """
model = "net.py:make_model"
name = "doorbell"
version = "1.4.0"
sequence = 7
targets = ["cpu-arm64"]
calibration = "photos"
seed = 3
[shape]
sound = "batch,time,1"
[dim]
time = "1600..160000,opt=16000"
[input.image.image]
size = [224, 200]
resize = 256
interpolation = "bicubic"
scale = false
mean = [127, 127, 127]
std = [128, 128.5, 128]
labels = "classes.txt"
transform = "net.py:transform"
[compress]
precision = "int8"
min_cosine = 0.98
[server]
threads = 2
plain = false
"""


def _written(folder: Path, text: str) -> Path:
    path = folder / "net.toml"
    path.write_text(text)
    return path


def test_a_whole_recipe_is_read_with_paths_relative_to_its_file(tmp_path: Path) -> None:
    values = read_recipe(_written(tmp_path, WHOLE))
    assert values["model"] == f"{tmp_path / 'net.py'}:make_model"
    assert values["calibration"].path == tmp_path / "photos"
    assert values["shapes"] == {"sound": ("batch", "time", 1)}
    assert values["dims"] == {"time": DimRange(min=1600, max=160000, opt=16000)}
    image = values["images"]["image"]
    assert image.size == (224, 200)
    assert image.std == (128, 128.5, 128)
    assert image.labels == tmp_path / "classes.txt"
    assert image.transform == f"{tmp_path / 'net.py'}:transform"
    assert values["compress"].min_cosine == 0.98
    assert values["server"].threads == 2
    assert values["server"].plain is False


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model = ", ["not valid TOML"]),
        ("nam = 'x'", ["unknown key `nam`"]),
        ("name = 3", ["`name` must be a string"]),
        ("targets = 'cpu-arm64'", ["`targets` must be a list"]),
        ("[compress]\nprecison = 'int8'", ["unknown key `compress.precison`"]),
        ("[compress]\nmin_cosine = true", ["`compress.min_cosine` must be a number"]),
        ("[server]\nthreads = 'two'", ["`server.threads` must be an integer"]),
        ("[sequences]\nidle = '5s'", ["`sequences.state` names no state"]),
        (
            "[sequences]\nstate = {h = 'o'}\nmax_sequences = 0",
            ["max_sequences` must be at least 1"],
        ),
        ("[sequences]\nstate = {h = 'o'}\nidle = 'soon'", ["`soon` is no time"]),
        ("[sequences]\nstate = {h = 'o'}\naxis = 1", ["`sequences.chunk` need each other"]),
        ("[sequences]\nstate = {h = 'o'}\nchunk = 4", ["`sequences.chunk` need each other"]),
        ("[sequences]\nstate = {h = 'o'}\naxis = -1\nchunk = 4", ["`sequences.axis` counts from"]),
        ("[sequences]\nstate = {h = 3}", ["`sequences.state.h` must be a string"]),
        ("[privacy]\ncapture = 1.5", ["`privacy.capture` is a share of requests, 0 to 1"]),
        ("[privacy]\ncapture = nan", ["`privacy.capture` is a share of requests"]),
        ("[privacy]\ncapture = 'all'", ["`privacy.capture` must be a number"]),
        ("[privacy]\nkeep = 'for ever'", ["`for ever` is no time"]),
        ("[privacy]\nkeep = '30s'", ["`privacy.keep` must be at least a minute"]),
        ("[privacy]\nmask = ['x', 'x']", ["`privacy.mask` names an input twice"]),
        ("[privacy]\nmask = 'x'", ["`privacy.mask` must be a list"]),
        ("[privacy]\nkey = 'secret'", ["unknown key `privacy.key`"]),
        ("[input.x]\nvideo = 1", ["unknown key `input.x.video`"]),
        ("input = 3", ["`input` must be a table"]),
        ("[input.x.image]\nmean = [0, 0, 0]", ["lacks the key `input.x.image.size`"]),
        ("[input.x.image]\nsize = [0, 4]", ["[height, width]"]),
        ("[input.x.image]\nsize = [4, 4]\nstd = [1, 0, 1]", ["std not 0"]),
        ("[input.x.image]\nsize = [4, 4]\nresize = 2", ["smaller than the crop"]),
        ("[input.x.image]\nsize = [4, 4]\nlayout = 'chw'", ["layout", "chw"]),
        ("[dim]\nbatch = '0..4'", ["0..4"]),
        ("[dim]\nbatch = 4", ["`dim.batch` must be a string"]),
        ("[shape]\nx = 'batch,-1'", ["`-1`"]),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(tmp_path: Path, text: str, words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        read_recipe(_written(tmp_path, text))
    for word in words:
        assert word in caught.value.message


def test_an_unknown_key_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        read_recipe(_written(tmp_path, "calibraton = 'x'"))
    assert caught.value.hint == "did you mean `calibration`?"


def test_a_missing_recipe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputOutputError, match="cannot be read"):
        read_recipe(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1..32,opt=8", (1, 32, 8)), ("1..32", (1, 32, 1)), ("8", (8, 8, 8)), ("2 .. 4", (2, 4, 2))],
)
def test_ranges_are_read(text: str, expected: tuple[int, int, int]) -> None:
    low, high, opt = expected
    assert parse_dim(text, name="n") == DimRange(min=low, max=high, opt=opt)


@pytest.mark.parametrize("text", ["", "4..2", "1..4,opt=5", "a..b", "0", "1..", "-1..3"])
def test_ranges_that_cannot_be_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="dimension `n`"):
        parse_dim(text, name="n")


def test_shapes_are_read() -> None:
    assert parse_shape("batch, 3,224", name="x") == ("batch", 3, 224)
    assert parse_shape("", name="x") == ()


@pytest.mark.parametrize("name", ["", "A", "../up", "a b", "-a", "a" * 64, "a/b"])
def test_a_name_that_is_no_safe_file_name_is_refused(name: str) -> None:
    with pytest.raises(UsageError):
        check_name(name)


@pytest.mark.parametrize("version", ["", "1.", "v1", "01.2", "1.2.3.4.5", "1.0-rc1"])
def test_a_version_that_is_none_is_refused(version: str) -> None:
    with pytest.raises(UsageError):
        check_version(version)


def test_nothing_is_kept_unless_the_recipe_says_so(tmp_path: Path) -> None:
    file = tmp_path / "edgepack.toml"
    file.write_text("[server]\nthreads = 1\n")
    assert "privacy" not in read_recipe(file)
    file.write_text("[privacy]\n")
    assert read_recipe(file)["privacy"] == Privacy(
        mask=(), capture=0.0, keep_s=604_800.0, drift=False
    )
    file.write_text("[privacy]\nmask = ['face']\ncapture = 0.25\nkeep = '2d'\ndrift = true\n")
    assert read_recipe(file)["privacy"] == Privacy(
        mask=("face",), capture=0.25, keep_s=172_800.0, drift=True
    )


def test_later_versions_have_higher_sequences() -> None:
    versions = ["0.0.1", "0.1", "0.9.9", "1", "1.0.1", "1.4.0", "2.0"]
    numbers = [default_sequence(version) for version in versions]
    assert numbers == sorted(set(numbers))
    assert default_sequence("1.4.0") == 1_004_000
