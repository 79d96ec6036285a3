"""A bundle used here takes the kinds of files that samples come from."""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from packager.bundle import local
from packager.errors import InputOutputError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from packager.bundle.assemble import Bundle


@pytest.fixture
def predict(small_bundle: Bundle, tmp_path: Path) -> Callable[[Path], dict[str, Any]]:
    def run(path: Path) -> dict[str, Any]:
        out = tmp_path / "out.npz"
        options: dict[str, Any] = {"top": 1, "cache_dir": tmp_path / "cache", "as_json": False}
        local.predict(small_bundle.path, [path], output=out, **options)
        with np.load(out) as arrays:
            return dict(arrays)

    return run


def test_a_table_is_answered_as_its_rows_are(
    small_bundle: Bundle, tmp_path: Path, predict: Callable[[Path], dict[str, Any]]
) -> None:
    (spec,) = local.read_manifest(small_bundle.path)["model"]["signature"]["inputs"]
    width = spec["shape"][1]
    rows = np.arange(2 * width, dtype=np.float32).reshape(2, width) / 8
    np.savez(tmp_path / "rows.npz", **{spec["name"]: rows})
    header = ",".join(f"{spec['name']}.{index}" for index in range(width))
    lines = [",".join(map(str, row)) for row in rows.tolist()]
    (tmp_path / "rows.csv").write_text("\n".join([header, *lines]) + "\n")
    wanted, found = predict(tmp_path / "rows.npz"), predict(tmp_path / "rows.csv")
    assert wanted.keys() == found.keys()
    for name, array in wanted.items():
        np.testing.assert_array_equal(array, found[name])


def test_a_file_that_the_model_does_not_take_is_refused(
    tmp_path: Path, predict: Callable[[Path], dict[str, Any]]
) -> None:
    (tmp_path / "a.pdf").write_bytes(b"%PDF")
    with pytest.raises(UsageError, match="no kind of file that holds a request"):
        predict(tmp_path / "a.pdf")
    with pytest.raises(InputOutputError, match="does not exist"):
        predict(tmp_path / "none.csv")


def test_sound_is_decoded_as_the_manifest_says(tmp_path: Path) -> None:
    axis = {"name": "batch", "min": 1, "max": 8, "opt": 1}
    sound = {"name": "sound", "dtype": "float32", "shape": [axis, 50]}
    model = {
        "source": "m.onnx",
        "signature": {"inputs": [sound], "outputs": []},
        "audio": {"sound": {"sample_rate": 8000, "window": 50}},
    }
    (tmp_path / "manifest.json").write_text(json.dumps({"model": model}))
    data = np.arange(120, dtype="<i2").tobytes()
    head = b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, 8000, 16000, 2, 16)
    body = head + b"data" + struct.pack("<I", len(data)) + data
    (tmp_path / "a.wav").write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
    file = local._tensor_file(tmp_path, tmp_path / "a.wav", tmp_path / "made")
    with np.load(file) as arrays:
        assert arrays["sound"].shape == (2, 50)
        assert arrays["sound"][1, 0] * 32768 == 50


def test_an_answer_names_the_files_as_they_were_given(small_bundle: Bundle, tmp_path: Path) -> None:
    (spec,) = local.read_manifest(small_bundle.path)["model"]["signature"]["inputs"]
    names = [f"{spec['name']}.{index}" for index in range(spec["shape"][1])]
    table = tmp_path / "rows.csv"
    table.write_text(",".join(names) + "\n" + ",".join("1" for _ in names) + "\n")
    for as_json in (False, True):
        shown = local.predict(
            small_bundle.path, [table, table], output=None, top=5,
            cache_dir=tmp_path / "cache", as_json=as_json,
        )  # fmt: skip
        named = '"input": "rows.csv"' if as_json else "rows.csv:"
        assert shown.count(named) == 2
        assert "npz" not in shown
