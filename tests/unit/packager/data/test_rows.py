"""Files of arrays whose first axis counts the samples, and folders of `.npy` files."""

from __future__ import annotations

import io
import tracemalloc
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from packager.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def test_each_row_of_a_npy_file_is_a_sample_and_labels_lie_beside(
    tmp_path: Path, load: Callable, make_spec: Callable
) -> None:
    rows = np.arange(12, dtype=np.float32).reshape(4, 3)
    np.save(tmp_path / "x.npy", rows)
    np.save(tmp_path / "labels.npy", np.array([0, 1, 2, 1]))
    samples = load(tmp_path / "x.npy", make_spec("x", "float32", 3), labelled=True)
    assert [s["x"].tolist() for s in samples] == [[row] for row in rows.tolist()]
    assert [label.tolist() for label in samples.labels] == [[0], [1], [2], [1]]
    assert samples.names == ("row 0", "row 1", "row 2", "row 3")
    assert (samples.kind, samples.origin) == ("npy", "4 rows of a `.npy` file")
    assert samples.notes == ()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_each_row_of_a_npz_file_is_a_sample_of_every_input(
    tmp_path: Path, load: Callable, make_spec: Callable, save: Any
) -> None:
    words = np.array(["a", "grün", "c"])
    wide = np.asfortranarray(np.arange(6.0).reshape(3, 2))
    save(tmp_path / "a.npz", x=wide, word=words, label=np.array([2, 0, 1]))
    inputs = make_spec("x", "float32", 2), make_spec("word", "string")
    samples = load(tmp_path / "a.npz", *inputs, labelled=True)
    assert samples[1]["x"].tolist() == [[2.0, 3.0]]
    assert samples[1]["word"].tolist() == ["grün"]
    assert [label.item() for label in samples.labels] == [2, 0, 1]
    assert samples.notes == ("`x` was converted from float64 to float32 in 3 of 3 rows",)


def test_the_digest_does_not_depend_on_the_kind_of_file(
    tmp_path: Path, load: Callable, make_spec: Callable
) -> None:
    rows = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.save(tmp_path / "x.npy", rows)
    np.savez(tmp_path / "x.npz", x=rows)
    (tmp_path / "x.csv").write_text("x.0,x.1,x.2\n0,1,2\n3,4,5\n")
    found = [
        load(tmp_path / f"x.{kind}", make_spec("x", "float32", 3)) for kind in ("npy", "npz", "csv")
    ]
    assert len({samples.digest for samples in found}) == 1


@pytest.mark.parametrize("kind", ["npy", "npz"])
def test_the_rows_stay_on_disk(
    tmp_path: Path, load: Callable, make_spec: Callable, kind: str
) -> None:
    rows = np.zeros((64, 1 << 16), np.float32)
    rows[:, 0] = np.arange(64)
    if kind == "npy":
        np.save(tmp_path / "x.npy", rows)
    else:
        np.savez(tmp_path / "x.npz", x=rows)
    del rows
    tracemalloc.start()
    samples = load(tmp_path / f"x.{kind}", make_spec("x", "float32", 1 << 16))
    assert samples[63]["x"][0, 0] == 63
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 4 << 20, "the file has 16 MiB"


def test_a_bad_row_is_named(tmp_path: Path, load: Callable, make_spec: Callable) -> None:
    rows = np.zeros((5, 3), np.float32)
    rows[3, 1] = np.inf
    np.save(tmp_path / "x.npy", rows)
    with pytest.raises(UsageError, match=r"x.npy`, row 3: `x` holds infinity"):
        load(tmp_path / "x.npy", make_spec("x", "float32", 3))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros((2, 3)), "y": np.zeros((3, 1))}, "arrays of different lengths: `x` 2, `y`"),
        ({"x": np.zeros((2, 3))}, "row 0 holds the arrays `x`"),
        ({"x": np.zeros((2, 3)), "y": np.float32(1)}, "`y` is one number"),
        ({"x": np.zeros((2, 3)), "y": np.zeros((2, 1)), "label": np.zeros(3)}, "2 rows, and label"),
        ({"x": np.zeros((0, 3)), "y": np.zeros((0, 1))}, "holds no samples"),
        ({"x": np.zeros((2, 3)), "y": np.zeros((2, 1)), "label.boxes": np.zeros(4)}, "boxes for r"),
        ({"x": np.zeros((2, 3)), "y": np.array([[{}], [{}]])}, "object array"),
    ],
)
def test_a_file_of_rows_that_does_not_fit_is_refused(
    tmp_path: Path, load: Callable, make_spec: Callable, arrays: dict[str, Any], message: str
) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UsageError, match=message):
        load(tmp_path / "a.npz", make_spec("x", "float32", 3), make_spec("y", "float32", 1))


def test_a_npy_file_fills_only_a_model_with_one_input(
    tmp_path: Path, load: Callable, make_spec: Callable
) -> None:
    np.save(tmp_path / "x.npy", np.zeros((2, 3)))
    with pytest.raises(UsageError, match="holds one array, and the model has 2 inputs"):
        load(tmp_path / "x.npy", make_spec("x", "float32", 3), make_spec("y", "float32"))


@pytest.mark.parametrize("kept", [0, 5, 100, 140])
def test_a_npy_file_that_is_cut_short_is_refused(
    tmp_path: Path, load: Callable, make_spec: Callable, kept: int
) -> None:
    np.save(tmp_path / "x.npy", np.zeros((2, 3), np.float32))
    content = (tmp_path / "x.npy").read_bytes()
    (tmp_path / "x.npy").write_bytes(content[:kept])
    with pytest.raises(UsageError, match=r"x.npy` is not a readable `.npy` file"):
        load(tmp_path / "x.npy", make_spec("x", "float32", 3))


def test_a_folder_of_npy_files_has_one_sample_in_each(
    tmp_path: Path, load: Callable, make_spec: Callable
) -> None:
    for index in range(3):
        (tmp_path / str(index)).mkdir()
        np.save(tmp_path / str(index) / "a.npy", np.full((1, 3), index, np.float32))
    samples = load(tmp_path, make_spec("x", "float32", 3), labelled=True)
    assert [s["x"][0, 0] for s in samples] == [0, 1, 2]
    assert [label.item() for label in samples.labels] == [0, 1, 2]
    assert samples.origin == "3 `.npy` files"


def header(shape: tuple[int, ...]) -> bytes:
    """Return the header of a float64 array, without any data."""
    stream = io.BytesIO()
    wire = {"descr": "<f8", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, wire)
    return stream.getvalue()


def archive(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> None:
    with zipfile.ZipFile(path, "w", method) as file:
        for name, content in members.items():
            file.writestr(name, content)


@pytest.mark.parametrize("place", ["folder", "file"])
def test_a_zip_bomb_is_refused_before_it_is_unpacked(
    tmp_path: Path, load: Callable, make_spec: Callable, monkeypatch: Any, place: str
) -> None:
    from packager.data import _npz

    (tmp_path / "data").mkdir()
    zeros = header((1 << 20,)) + bytes(8 << 20)
    archive(tmp_path / "data" / "a.npz", {"x.npy": zeros})
    assert (tmp_path / "data" / "a.npz").stat().st_size < 20_000
    for name in ("read_arrays", "map_arrays"):
        monkeypatch.setitem(getattr(_npz, name).__kwdefaults__, "most", 1 << 20)
    source = tmp_path / "data" if place == "folder" else tmp_path / "data" / "a.npz"
    tracemalloc.start()
    with pytest.raises(UsageError, match=r"a.npz` unpacks to 8 MiB") as caught:
        load(source, make_spec("x", "float64", 1 << 20))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert caught.value.accepted == "up to 1 MiB"
    assert most < 1 << 20


def test_a_header_that_promises_more_than_there_is_takes_no_memory(
    tmp_path: Path, load: Callable, make_spec: Callable
) -> None:
    archive(tmp_path / "a.npz", {"x.npy": header((1 << 40,)) + bytes(64)})
    with pytest.raises(UsageError, match=r"a.npz` is not a readable `.npz` file: it is cut short"):
        load(tmp_path / "a.npz", make_spec("x", "float64"))


@pytest.mark.parametrize(
    "case",
    [
        ({"../x.npy": b"", "readme.txt": b""}, zipfile.ZIP_STORED, "`readme.txt`, which is no"),
        ({"x.npy": b"no array"}, zipfile.ZIP_STORED, "is not a readable"),
        ({"x.npy": header((2,)) + bytes(16)}, zipfile.ZIP_LZMA, "packed in a way that numpy does"),
    ],
)
def test_an_archive_that_numpy_does_not_write_is_refused(
    tmp_path: Path, load: Callable, make_spec: Callable, case: tuple[Any, int, str]
) -> None:
    members, method, message = case
    archive(tmp_path / "a.npz", members, method)
    with pytest.raises(UsageError, match=message):
        load(tmp_path / "a.npz", make_spec("x", "float64"))


def test_a_member_that_was_changed_is_refused(
    tmp_path: Path, load: Callable, make_spec: Callable
) -> None:
    (tmp_path / "data").mkdir()
    archive(tmp_path / "data/a.npz", {"x.npy": header((2,)) + b"A" * 16}, zipfile.ZIP_STORED)
    content = (tmp_path / "data/a.npz").read_bytes()
    (tmp_path / "data/a.npz").write_bytes(content.replace(b"A" * 16, b"B" * 16))
    for source in ("data", "data/a.npz"):
        with pytest.raises(UsageError, match="Bad CRC-32"):
            load(tmp_path / source, make_spec("x", "float64"))
