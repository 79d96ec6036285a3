"""A lock repeats choices only for the inputs they were made for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from packager.bundle.lock import read_lock, write_lock, write_record
from packager.errors import InputOutputError, UsageError

VALUES: dict[str, Any] = {
    "bundle_sha256": "ab" * 32,
    "target": "cpu-x86_64",
    "inputs": {"model": "1", "calibration": "2"},
    "tools": {"edgepack": "0.1.0", "onnx": "1.23.2"},
    "choices": {"precision": "int8-static", "exporter": "none"},
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_lock(tmp_path / "m.lock.json", **VALUES)
    return tmp_path / "m.lock.json"


def test_a_lock_is_read_as_it_was_written(path: Path) -> None:
    lock = read_lock(path)
    assert {key: getattr(lock, key) for key in VALUES} == VALUES
    lock.check(target="cpu-x86_64", inputs={"calibration": "2", "model": "1"})
    assert [p.name for p in path.parent.iterdir()] == ["m.lock.json"]


def test_equal_locks_are_equal_bytes(path: Path) -> None:
    before = path.read_bytes()
    write_lock(path, **dict(reversed(VALUES.items())))
    assert path.read_bytes() == before


def test_another_target_is_refused(path: Path) -> None:
    with pytest.raises(UsageError, match="is for target `cpu-x86_64`, not `cpu-arm64`") as caught:
        read_lock(path).check(target="cpu-arm64", inputs=VALUES["inputs"])
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("inputs", "named"),
    [({"model": "9", "calibration": "2"}, "model"), ({"model": "1"}, "calibration"),
     ({**VALUES["inputs"], "recipe": "3"}, "recipe")],
)  # fmt: skip
def test_inputs_that_differ_are_named(path: Path, inputs: dict[str, str], named: str) -> None:
    with pytest.raises(UsageError, match=f"made from other inputs: {named} changed"):
        read_lock(path).check(target="cpu-x86_64", inputs=inputs)


def test_changed_tools_are_told(path: Path) -> None:
    assert read_lock(path).changed_tools({"edgepack": "0.1.0", "numpy": "2"}) == [
        "numpy absent → 2", "onnx 1.23.2 → absent",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "words"),
    [({"format": 2}, "has format 2"), ({"more": 1}, "unknown key `more`"),
     ({"inputs": {"a": 1}}, "`inputs` must be"), ({"choices": []}, "`choices` must be"),
     ({"target": None}, "`target` must be"), ({"format": "x"}, "is no lock")],
)  # fmt: skip
def test_a_file_that_is_no_lock_is_refused(path: Path, change: dict[str, Any], words: str) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UsageError, match=words):
        read_lock(path)


@pytest.mark.parametrize("text", ["", "hello", "[]", "1"])
def test_a_text_that_is_no_object_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "x").write_text(text)
    with pytest.raises(UsageError, match="is no lock"):
        read_lock(tmp_path / "x")


def test_a_missing_lock_and_an_unwritable_folder_are_input_output_errors(tmp_path: Path) -> None:
    with pytest.raises(InputOutputError) as caught:
        read_lock(tmp_path / "nothing")
    assert caught.value.exit_code == 10
    with pytest.raises(InputOutputError):
        write_record(tmp_path / "nowhere" / "x", {})


def test_a_record_takes_what_is_measured(tmp_path: Path) -> None:
    path = tmp_path / "m.record.json"
    write_record(path, {"speed": np.float32(1.5), "runs": np.int64(3), "file": Path("/a/b.onnx"),
                        "pair": (1, 2)})  # fmt: skip
    assert json.loads(path.read_text()) == {
        "speed": 1.5, "runs": 3, "file": "b.onnx", "pair": [1, 2],
    }  # fmt: skip
