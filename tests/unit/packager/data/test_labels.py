"""Where labels are found, what kind they are, and which of them are refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from packager.errors import UsageError
from packager.recipe import BoxOutputs, ImageInput, OutputSteps

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from packager.data import Samples

IMAGES = {"x": ImageInput(size=(8, 8))}


@pytest.fixture
def photos(tmp_path: Path, save_photo: Callable) -> Path:
    for shade, name in enumerate(("a.png", "b.png", "c.png")):
        save_photo(tmp_path / "photos" / name, shade)
    return tmp_path / "photos"


@pytest.fixture
def load_photos(load: Callable, make_spec: Callable) -> Callable[..., Samples]:
    def run(folder: Path, *, labelled: bool = True, **recipe: Any) -> Samples:
        recipe.setdefault("images", IMAGES)
        return load(folder, make_spec("x", "float32", 3, 8, 8), labelled=labelled, **recipe)

    return run


def items(samples: Samples) -> list[Any]:
    return [label.item() for label in samples.labels]


def test_labels_csv_names_the_files(photos: Path, load_photos: Callable) -> None:
    (photos / "labels.csv").write_text("label,file\n2,c.png\n0,./a.png\n1,b.png\n")
    samples = load_photos(photos)
    assert items(samples) == [0, 1, 2]
    assert samples.names == ("a.png", "b.png", "c.png")
    assert samples.kind == "photos"


def test_sub_folders_are_class_numbers(
    tmp_path: Path, save_photo: Callable, load_photos: Callable
) -> None:
    for shade, name in enumerate(("2/a.png", "0/deep/b.png", "1/c.png")):
        save_photo(tmp_path / name, shade)
    samples = load_photos(tmp_path)
    assert samples.names == ("0/deep/b.png", "1/c.png", "2/a.png")
    assert items(samples) == [0, 1, 2]


def test_sub_folders_are_lines_of_the_labels_file(
    tmp_path: Path, save_photo: Callable, load_photos: Callable
) -> None:
    (tmp_path / "names.txt").write_text("cat\ndog\ncow\n")
    for shade, name in enumerate(("dog/a.png", "cat/b.png")):
        save_photo(tmp_path / "photos" / name, shade)
    images = {"x": ImageInput(size=(8, 8), labels=tmp_path / "names.txt")}
    assert items(load_photos(tmp_path / "photos", images=images)) == [0, 1]
    save_photo(tmp_path / "photos" / "horse" / "a.png")
    with pytest.raises(UsageError, match=r"sub-folder `horse`.* names no class"):
        load_photos(tmp_path / "photos", images=images)
    # Where nobody reads them, labels that cannot be are a note.
    samples = load_photos(tmp_path / "photos", images=images, labelled=False)
    assert samples.labels is None
    assert "sub-folder `horse`" in samples.notes[0]


def test_class_names_stand_in_a_labels_csv_too(
    tmp_path: Path, photos: Path, load_photos: Callable
) -> None:
    (tmp_path / "names.txt").write_text("cat\ndog\ncrane\ncrane\n")
    images = {"x": ImageInput(size=(8, 8), labels=tmp_path / "names.txt")}
    (photos / "labels.csv").write_text("file,label\na.png,dog\nb.png,cat\nc.png,dog\n")
    assert items(load_photos(photos, images=images)) == [1, 0, 1]
    (photos / "labels.csv").write_text("file,label\na.png,crane\nb.png,cat\nc.png,dog\n")
    with pytest.raises(UsageError, match="`crane` names several lines"):
        load_photos(photos, images=images)
    (photos / "labels.csv").write_text("file,label\na.png,cow\nb.png,cat\nc.png,dog\n")
    with pytest.raises(UsageError, match=r"the label `cow` of `a.png` is no line of"):
        load_photos(photos, images=images)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("file,label\na.png,0\nb.png,1\n", r"`c.png` has no label"),
        ("file,label\na.png,0\nb.png,1\nc.png,2\nd.png,0\n", r"line 5: there is no sample `d.png`"),
        ("file,label\na.png,0\na.png,1\nb.png,1\nc.png,2\n", r"line 3: `a.png` has a label alre"),
        ("file,label\n../a.png,0\n", r"line 2: there is no sample `../a.png`"),
        ("file,label\na.png,0\nb.png,1\nc.png,3\n", r"label 3 of `c.png` is outside the model's 3"),
        ("file,label\na.png,0\nb.png,1\nc.png,-1\n", r"the label -1 of `c.png` is no class"),
        ("file,label\na.png,0\nb.png,cat\nc.png,1\n", r"`b.png` is a word, that of `a.png` is a"),
        ("file,label\na.png,0\nb.png,\nc.png,1\n", r"the label of `b.png` is empty"),
        ("file,label\na.png,0.5\nb.png,nan\nc.png,1\n", r"the label of `b.png` is `nan`"),
        ("file,label\na.png\n", r"line 2: 1 cells, and the header has 2"),
        ("name,label\na.png,0\n", r"has the columns `name`, `label`"),
        ("", r"has the columns "),
        ('file,label\n"a.png,0\n', r"labels.csv`, line 2: "),
    ],
)
def test_a_labels_csv_that_does_not_match_is_refused(
    photos: Path, load_photos: Callable, table: str, message: str
) -> None:
    (photos / "labels.csv").write_text(table)
    with pytest.raises(UsageError, match=message):
        load_photos(photos)


def test_labels_that_count_from_one_get_a_hint(photos: Path, load_photos: Callable) -> None:
    (photos / "labels.csv").write_text("file,label\na.png,1\nb.png,2\nc.png,3\n")
    with pytest.raises(UsageError) as caught:
        load_photos(photos)
    assert caught.value.accepted == "0 to 2"
    assert "shifted" in caught.value.hint


def test_photos_without_labels_are_refused_where_labels_are_read(
    photos: Path, load_photos: Callable
) -> None:
    with pytest.raises(UsageError, match="has no labels"):
        load_photos(photos)
    assert load_photos(photos, labelled=False).labels is None


def test_numbers_with_a_point_are_values(photos: Path, load_photos: Callable) -> None:
    (photos / "labels.csv").write_text("file,label\na.png,1\nb.png,2.5\nc.png,-3e2\n")
    samples = load_photos(photos)
    assert items(samples) == [1.0, 2.5, -300.0]
    assert {label.dtype for label in samples.labels} == {np.dtype(np.float64)}


def test_texts_beside_the_files_are_transcripts(photos: Path, load_photos: Callable) -> None:
    for name, text in (("a", "12"), ("b", "zwei drei"), ("c", "")):
        (photos / f"{name}.txt").write_text(f"{text}\n")
    ctc = {"scores": OutputSteps(ctc=True)}
    assert load_photos(photos, outputs=ctc).labels == (["12"], ["zwei drei"], [""])
    assert load_photos(photos, metric="cer").labels == (["12"], ["zwei drei"], [""])


def test_an_array_beside_the_files_follows_their_order(photos: Path, load_photos: Callable) -> None:
    np.save(photos / "labels.npy", np.array([2, 0, 1], np.int32))
    samples = load_photos(photos)
    assert items(samples) == [2, 0, 1]
    assert {label.dtype for label in samples.labels} == {np.dtype(np.int64)}
    np.save(photos / "labels.npy", np.array([2, 0], np.int32))
    with pytest.raises(UsageError, match=r"has the shape \[2\] for 3 samples"):
        load_photos(photos)


def test_boxes_come_from_several_lines_of_a_file(photos: Path, load_photos: Callable) -> None:
    (photos / "labels.csv").write_text(
        "file,x1,y1,x2,y2,label\na.png,1,2,3.5,4,1\na.png,0,0,9,9,0\nb.png,,,,,\nc.png,1,1,2,2,7\n"
    )
    samples = load_photos(photos, boxes=BoxOutputs(boxes="scores"))
    assert samples.labels[0]["boxes"].tolist() == [[1, 2, 3.5, 4], [0, 0, 9, 9]]
    assert samples.labels[0]["boxes"].dtype == np.float32
    assert samples.labels[0]["classes"].tolist() == [1, 0]
    assert samples.labels[1]["boxes"].shape == (0, 4)
    assert samples.labels[2]["classes"].tolist() == [7]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a.png,5,1,2,2,0", "a box of `a.png` ends before it begins"),
        ("a.png,5,1,x,2,0", "line 2: `5,1,x,2` is no box"),
        ("a.png,1,1,2,2,cat", "line 2: `cat` is no class"),
        ("a.png,nan,1,2,2,0", "the label of `a.png` holds NaN"),
    ],
)
def test_a_box_that_is_none_is_refused(
    photos: Path, load_photos: Callable, row: str, message: str
) -> None:
    (photos / "labels.csv").write_text(f"file,x1,y1,x2,y2,label\n{row}\nb.png,,,,,\nc.png,,,,,\n")
    with pytest.raises(UsageError, match=message):
        load_photos(photos, boxes=BoxOutputs(boxes="scores"))


def test_npz_files_carry_their_labels(tmp_path: Path, load: Callable, make_spec: Callable) -> None:
    x = make_spec("x", "float32", 3)
    for index in range(3):
        values = np.full((2, 3), index, np.float32)
        np.savez(tmp_path / f"{index}.npz", x=values, kind=np.array([index, 0], np.uint8))
    samples = load(tmp_path, x, labelled=True, label="kind")
    assert [label.tolist() for label in samples.labels] == [[0, 0], [1, 0], [2, 0]]
    assert set(samples[0]) == {"x"}
    np.savez(tmp_path / "3.npz", x=np.zeros((2, 3), np.float32), kind=np.array([1]))
    with pytest.raises(UsageError, match=r"`3.npz` has 1 labels for 2 rows"):
        load(tmp_path, x, labelled=True, label="kind")
    np.savez(tmp_path / "3.npz", x=np.zeros((2, 3), np.float32))
    with pytest.raises(UsageError, match=r"`3.npz` has no label"):
        load(tmp_path, x, labelled=True, label="kind")


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (np.array([1.5, np.nan]), "holds NaN"),
        (np.eye(2, 3, dtype=np.int64), r"has the shape \[2, 3\]"),
        (np.zeros(2, np.complex64), "is complex64"),
    ],
)
def test_an_array_that_is_no_label_is_refused(
    tmp_path: Path, load: Callable, make_spec: Callable, label: Any, message: str
) -> None:
    for name in ("a", "b"):
        np.savez(tmp_path / f"{name}.npz", x=np.zeros((2, 3), np.float32), label=label)
    with pytest.raises(UsageError, match=message):
        load(tmp_path, make_spec("x", "float32", 3), labelled=True)


def test_several_values_per_row_are_kept(
    tmp_path: Path, load: Callable, make_spec: Callable
) -> None:
    for name in ("a", "b"):
        np.savez(tmp_path / f"{name}.npz", x=np.ones((2, 3), np.float32), label=np.ones((2, 4)))
    samples = load(tmp_path, make_spec("x", "float32", 3), labelled=True)
    assert samples.labels[0].shape == (2, 4)


def test_boxes_in_npz_files_are_two_arrays(
    tmp_path: Path, load: Callable, make_spec: Callable
) -> None:
    boxes = {"label.boxes": np.ones((2, 4)), "label.classes": np.array([3, 1])}
    for name in ("a", "b"):
        np.savez(tmp_path / f"{name}.npz", x=np.zeros((1, 3), np.float32), **boxes)
    samples = load(tmp_path, make_spec("x", "float32", 3), labelled=True)
    assert samples.labels[0]["classes"].tolist() == [3, 1]
    del boxes["label.classes"]
    np.savez(tmp_path / "c.npz", x=np.zeros((1, 3), np.float32), **boxes)
    with pytest.raises(UsageError, match=r"the label of `c.npz` has no boxes with classes"):
        load(tmp_path, make_spec("x", "float32", 3), labelled=True)


def test_one_labelled_sample_is_no_evaluation_and_calibrates_with_a_note(
    tmp_path: Path, load: Callable, make_spec: Callable
) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((1, 3), np.float32), label=np.array([1]))
    x = make_spec("x", "float32", 3)
    with pytest.raises(UsageError, match="holds one single sample to evaluate"):
        load(tmp_path, x, labelled=True)
    assert "one single sample" in load(tmp_path, x).notes[-1]


def test_labels_follow_take_map_and_split(photos: Path, load_photos: Callable) -> None:
    (photos / "labels.csv").write_text("file,label\na.png,0\nb.png,1\nc.png,2\n")
    samples = load_photos(photos)
    taken = samples.take([2, 0]).map(lambda sample: sample)
    assert items(taken) == [2, 0]
    assert taken.names == ("c.png", "a.png")
    rest, held = samples.split(0.4)
    assert sorted(items(rest) + items(held)) == [0, 1, 2]
    assert [f"{'abc'[label]}.png" for label in items(rest)] == list(rest.names)


def test_the_digest_follows_the_labels(photos: Path, load_photos: Callable) -> None:
    digests = []
    for last in (2, 1):
        (photos / "labels.csv").write_text(f"file,label\na.png,0\nb.png,1\nc.png,{last}\n")
        digests.append(load_photos(photos).digest)
    assert digests[0] != digests[1]
