"""One request from a file of any kind, and random samples by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from packager.data import read_request, synthetic
from packager.errors import InputOutputError, UsageError
from packager.recipe import AudioInput, ColumnsInput, ImageInput, Recipe, TextInput

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def request_of(signature: Callable) -> Callable[..., dict[str, Any]]:
    def read(path: Path, *inputs: Any, **recipe: Any) -> dict[str, Any]:
        return read_request(path, signature(*inputs), Recipe(model="m", name="m", **recipe))[0]

    return read


def test_a_photo(
    tmp_path: Path, request_of: Callable, make_spec: Callable, save_photo: Callable
) -> None:
    save_photo(tmp_path / "a.JPG", size=(7, 5))
    images = {"x": ImageInput(size=(8, 8))}
    found = request_of(tmp_path / "a.JPG", make_spec("x", "float32", 3, 8, 8), images=images)
    assert found["x"].shape == (1, 5, 7, 3)


def test_arrays_with_a_label_that_is_passed_over(
    tmp_path: Path, request_of: Callable, make_spec: Callable
) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((2, 3), np.float32), label=np.zeros(2))
    np.save(tmp_path / "a.npy", np.zeros((2, 3), np.float32))
    for name in ("a.npz", "a.npy"):
        found = request_of(tmp_path / name, make_spec("x", "float32", 3))
        assert {key: array.shape for key, array in found.items()} == {"x": (2, 3)}


def test_a_sound_gives_a_row_per_window(
    tmp_path: Path, request_of: Callable, make_spec: Callable, save_wav: Callable
) -> None:
    save_wav(tmp_path / "a.wav", np.zeros(210))
    audio = {"x": AudioInput(sample_rate=16000, window=100)}
    found = request_of(tmp_path / "a.wav", make_spec("x", "float32", 100), audio=audio)
    assert found["x"].shape == (2, 100)


def test_a_table_gives_a_row_per_row(
    tmp_path: Path, request_of: Callable, make_spec: Callable
) -> None:
    (tmp_path / "a.csv").write_text("b,a,label\n1,2,x\n3,4,\n")
    columns = {"x": ColumnsInput(names=("a", "b"))}
    found = request_of(tmp_path / "a.csv", make_spec("x", "float32", 2), columns=columns)
    assert found["x"].tolist() == [[2, 1], [4, 3]]


def test_a_text_gives_a_row_per_line(
    tmp_path: Path, request_of: Callable, make_spec: Callable
) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo three\n")
    tokens = [make_spec(name, "int64", 8) for name in ("input_ids", "attention_mask")]
    text = TextInput(tokenizer=tmp_path / "vocab.txt")
    found = request_of(tmp_path / "a.txt", *tokens, text=text)
    assert found["text"].tolist() == ["one", "two three"]
    with pytest.raises(UsageError, match="holds text, and the model takes none"):
        request_of(tmp_path / "a.txt", make_spec("x", "float32"))


def test_more_rows_than_the_model_takes_are_refused(
    tmp_path: Path, request_of: Callable, make_spec: Callable
) -> None:
    (tmp_path / "a.csv").write_text("x\n" + "1\n" * 33)
    with pytest.raises(UsageError, match=r"a.csv`: `x` has the shape \[33\]"):
        request_of(tmp_path / "a.csv", make_spec("x", "float32"))


def test_another_kind_of_file_is_refused(
    tmp_path: Path, request_of: Callable, make_spec: Callable
) -> None:
    (tmp_path / "a.pdf").write_bytes(b"%PDF")
    with pytest.raises(UsageError, match="no kind of file that holds a request"):
        request_of(tmp_path / "a.pdf", make_spec("x", "float32"))
    with pytest.raises(InputOutputError, match="does not exist"):
        request_of(tmp_path / "b.npz", make_spec("x", "float32"))


def test_random_samples_come_only_by_name_and_say_so(load: Callable, make_spec: Callable) -> None:
    samples = load("random:5", make_spec("x", "float32", 3), seed=3)
    assert (len(samples), samples.kind) == (5, "random")
    assert samples.origin == "5 random inputs, seed 3"
    assert "random numbers stand in for data" in samples.notes[0]
    assert samples.digest != load("random:5", make_spec("x", "float32", 3), seed=4).digest
    with pytest.raises(UsageError, match="`random:5` has no labels"):
        load("random:5", make_spec("x", "float32", 3), labelled=True)


def test_random_columns_are_in_the_tables_unit(
    load: Callable, make_spec: Callable, signature: Callable
) -> None:
    x = make_spec("x", "float32", 2)
    columns = {"x": ColumnsInput(names=("a", "b"), mean=(100.0, 0.0), std=(10.0, 1.0))}
    plain = synthetic(signature(x), 3, 0)[1]["x"]
    made = load("random:3", x, columns=columns)[1]["x"]
    assert made.dtype == np.float32
    np.testing.assert_allclose(made, plain * [10, 1] + [100, 0], rtol=1e-6)
