"""What a folder may hold: no links out of it, nothing that blocks, nothing too large."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
import pytest

from packager.data import _files
from packager.errors import InputOutputError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    for index in range(2):
        np.save(tmp_path / "data" / f"{index}.npy", np.full((1, 3), index, np.float32))
    return tmp_path / "data"


def test_a_link_inside_the_source_is_followed(
    folder: Path, load: Callable, make_spec: Callable
) -> None:
    (folder / "2.npy").symlink_to("1.npy")
    samples = load(folder, make_spec("x", "float32", 3))
    assert len(samples) == 3
    assert samples.notes == ("1 of 3 samples are copies of others",)


def test_a_link_out_of_the_source_is_refused(
    folder: Path, load: Callable, make_spec: Callable
) -> None:
    np.save(folder.parent / "secret.npy", np.zeros((1, 3)))
    (folder / "2.npy").symlink_to("../secret.npy")
    with pytest.raises(UsageError, match=r"2.npy` is a link that leads out of the source"):
        load(folder, make_spec("x", "float32", 3))


def test_a_link_to_a_folder_is_refused_and_so_no_loop_is_walked(
    folder: Path, load: Callable, make_spec: Callable
) -> None:
    (folder / "again").symlink_to(folder)
    with pytest.raises(UsageError, match="again` is a link to a folder"):
        load(folder, make_spec("x", "float32", 3))


def test_a_link_that_leads_round_is_refused(
    folder: Path, load: Callable, make_spec: Callable
) -> None:
    (folder / "2.npy").symlink_to("3.npy")
    (folder / "3.npy").symlink_to("2.npy")
    with pytest.raises(InputOutputError, match=r"2.npy` cannot be read: Too many levels"):
        load(folder, make_spec("x", "float32", 3))


def test_a_link_to_nothing_is_an_input_error(
    folder: Path, load: Callable, make_spec: Callable
) -> None:
    (folder / "2.npy").symlink_to("gone.npy")
    with pytest.raises(InputOutputError, match=r"2.npy` cannot be read"):
        load(folder, make_spec("x", "float32", 3))


def test_a_pipe_is_refused_and_does_not_block(
    folder: Path, load: Callable, make_spec: Callable
) -> None:
    os.mkfifo(folder / "2.npy")
    with pytest.raises(UsageError, match=r"2.npy` is no ordinary file"):
        load(folder, make_spec("x", "float32", 3))


def test_hidden_files_and_folders_are_passed_over(
    folder: Path, load: Callable, make_spec: Callable
) -> None:
    (folder / ".cache").mkdir()
    (folder / ".cache" / "a.npy").write_bytes(b"broken")
    (folder / ".a.npy").write_bytes(b"broken")
    assert len(load(folder, make_spec("x", "float32", 3))) == 2


def test_a_file_above_the_limit_is_refused_unread(
    folder: Path, load: Callable, make_spec: Callable
) -> None:
    with (folder / "2.png").open("wb") as file:
        file.truncate(_files.PHOTO_BYTES + 1)
    for name in ("0.npy", "1.npy"):
        (folder / name).unlink()
    with pytest.raises(UsageError, match=r"2.png` has 256 MiB"):
        load(folder, make_spec("x", "uint8", 8, 8, 3))


def test_too_many_files_are_refused(
    folder: Path, load: Callable, make_spec: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_files, "MOST_SAMPLES", 1)
    with pytest.raises(UsageError, match="holds 2 files") as caught:
        load(folder, make_spec("x", "float32", 3))
    assert caught.value.accepted == "up to 1"


def test_a_missing_source_is_an_input_error(
    tmp_path: Path, load: Callable, make_spec: Callable
) -> None:
    with pytest.raises(InputOutputError, match=r"none.csv` does not exist") as caught:
        load(tmp_path / "none.csv", make_spec("x", "float32"))
    assert caught.value.exit_code == 10


def test_equal_samples_are_a_note(folder: Path, load: Callable, make_spec: Callable) -> None:
    np.save(folder / "1.npy", np.zeros((1, 3), np.float32))
    samples = load(folder, make_spec("x", "float32", 3))
    assert samples.notes == ("all 2 samples are equal: nothing varies to find ranges on",)
