"""Samples from folders, and from a signature and a seed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from packager.data import decode_image, load_samples, synthetic
from packager.errors import InputOutputError, UsageError
from packager.model import Dim, Signature, TensorSpec
from packager.recipe import DataSource, ImageInput, Recipe

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from packager.data import Samples

BATCH = Dim(name="batch", min=1, max=32, opt=1)


def spec(name: str, dtype: str, *shape: int | Dim) -> TensorSpec:
    dims = tuple(axis if isinstance(axis, Dim) else Dim(size=axis) for axis in shape)
    return TensorSpec(name=name, dtype=dtype, shape=dims)


def signature(*inputs: TensorSpec) -> Signature:
    return Signature(inputs=inputs, outputs=())


FLOATS = signature(spec("x", "float32", BATCH, 3))
PHOTOS = signature(spec("x", "float32", BATCH, 3, 8, 8))
IMAGES = {"x": ImageInput(size=(8, 8))}


def load(path: Path, wanted: Signature, images: Mapping[str, ImageInput] | None = None) -> Samples:
    recipe = Recipe(model="m.onnx", name="m", images=images or {})
    return load_samples(DataSource(word=str(path), path=path), wanted, recipe)


def save_photo(path: Path, shade: int = 90, size: tuple[int, int] = (12, 10)) -> None:
    Image.new("RGB", size, (shade, 10, 200)).save(path)


def test_photos_become_one_sample_each_in_the_order_of_their_paths(tmp_path: Path) -> None:
    (tmp_path / "cats").mkdir()
    save_photo(tmp_path / "b.png", 1)
    save_photo(tmp_path / "cats" / "a.webp", 2)
    Image.new("L", (5, 4), 77).save(tmp_path / "a.bmp")
    (tmp_path / ".hidden.png").write_bytes(b"not read")
    (tmp_path / "README.txt").write_text("not read")
    samples = load(tmp_path, PHOTOS, images=IMAGES)
    assert [sample["x"].shape for sample in samples] == [
        (1, 4, 5, 3),
        (1, 10, 12, 3),
        (1, 10, 12, 3),
    ]
    assert samples[0]["x"].dtype == np.uint8
    assert samples[0]["x"].max() == 77
    assert samples.origin == "3 photos"
    assert len(list(samples)) == len(list(samples)) == 3


def test_the_digest_follows_the_content_and_not_the_folder(tmp_path: Path) -> None:
    digests = []
    for folder, shade in (("one", 5), ("two", 5), ("three", 6)):
        (tmp_path / folder).mkdir()
        save_photo(tmp_path / folder / "a.png", shade)
        digests.append(load(tmp_path / folder, PHOTOS, images=IMAGES).digest)
    assert digests[0] == digests[1] != digests[2]


def test_a_split_is_deterministic_and_shares_nothing(tmp_path: Path) -> None:
    for index in range(10):
        np.savez(tmp_path / f"{index}.npz", x=np.full((1, 3), index, np.float32))
    samples = load(tmp_path, FLOATS)
    parts = [{float(sample["x"][0, 0]) for sample in part} for part in samples.split(0.3)]
    assert len(parts[0]) == 7
    assert len(parts[1]) == 3
    assert not parts[0] & parts[1]
    again = load(tmp_path, FLOATS).split(0.3)
    assert [{float(s["x"][0, 0]) for s in part} for part in again] == parts


def test_a_single_sample_goes_to_both_parts(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((1, 3), np.float32))
    calibration, comparison = load(tmp_path, FLOATS).split(0.5)
    assert len(calibration) == len(comparison) == 1


def test_safe_conversions_are_made_and_noted(tmp_path: Path) -> None:
    wanted = signature(spec("x", "float32", BATCH, 3), spec("ids", "int64", BATCH))
    np.savez(tmp_path / "a.npz", x=np.zeros((2, 3)), ids=np.ones(2, np.int32))
    samples = load(tmp_path, wanted)
    assert samples[0]["x"].dtype == np.float32
    assert samples[0]["ids"].dtype == np.int64
    assert samples.notes[:2] == (
        "`x` was converted from float64 to float32 in 1 of 1 files",
        "`ids` was converted from int32 to int64 in 1 of 1 files",
    )


def test_a_missing_batch_axis_is_added_and_noted(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros(3, np.float32))
    samples = load(tmp_path, FLOATS)
    assert samples[0]["x"].shape == (1, 3)
    assert samples.notes[0] == "a batch axis was added to `x` in 1 of 1 files"


def test_strings_are_read_from_both_string_dtypes(tmp_path: Path) -> None:
    text = signature(spec("text", "string", BATCH))
    np.savez(tmp_path / "a.npz", text=np.array(["grün", "b"]))
    np.savez(tmp_path / "b.npz", text=np.array(["grün".encode()]))
    samples = load(tmp_path, text)
    assert [sample["text"].tolist() for sample in samples] == [["grün", "b"], ["grün"]]


def test_an_npz_may_hold_photos_for_an_image_input(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((2, 30, 40, 3), np.uint8))
    np.savez(tmp_path / "b.npz", x=np.zeros((1, 3, 8, 8), np.float32))
    samples = load(tmp_path, PHOTOS, images=IMAGES)
    assert [(s["x"].dtype.name, s["x"].shape) for s in samples] == [
        ("uint8", (2, 30, 40, 3)),
        ("float32", (1, 3, 8, 8)),
    ]


@pytest.mark.parametrize(
    ("arrays", "message", "accepted"),
    [
        ({"y": np.zeros((1, 3), np.float32)}, "holds the arrays `y`", "one array per input: `x`"),
        ({"x": np.zeros((1, 4), np.float32)}, "has the shape [1, 4]", "x: float32[batch=1..32, 3]"),
        ({"x": np.zeros((40, 3), np.float32)}, "has the shape [40, 3]", "batch=1..32"),
        ({"x": np.zeros((1, 1, 1, 3), np.float32)}, "has the shape [1, 1, 1, 3]", "float32"),
        ({"x": np.full((1, 3), np.nan, np.float32)}, "holds NaN", "finite numbers"),
        ({"x": np.full((1, 3), np.inf, np.float32)}, "holds infinity", "finite numbers"),
        ({"x": np.full((1, 3), 1e300)}, "is float64", "float32"),
        ({"x": np.array([["a", "b", "c"]])}, "is <U1", "float32"),
        ({"x": np.zeros((1, 3), np.complex64)}, "is complex64", "float32"),
    ],
)
def test_an_npz_that_does_not_fit_is_refused_with_its_name(
    tmp_path: Path, arrays: dict[str, np.ndarray], message: str, accepted: str
) -> None:
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(UsageError) as caught:
        load(tmp_path, FLOATS)
    assert "bad.npz" in caught.value.message
    assert message in caught.value.message
    assert accepted in str(caught.value.accepted)


def test_numbers_that_lose_their_value_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "bad.npz", ids=np.array([2**40]))
    with pytest.raises(UsageError, match="is int64"):
        load(tmp_path, signature(spec("ids", "int32", BATCH)))


def test_inputs_that_disagree_on_a_named_dimension_are_refused(tmp_path: Path) -> None:
    both = signature(spec("a", "float32", BATCH), spec("b", "float32", BATCH))
    np.savez(tmp_path / "bad.npz", a=np.zeros(2, np.float32), b=np.zeros(3, np.float32))
    with pytest.raises(
        UsageError, match="has 3 for the dimension `batch`, and another input has 2"
    ):
        load(tmp_path, both)


def test_an_object_array_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "bad.npz", x=np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(UsageError, match="object array"):
        load(tmp_path, FLOATS)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"text"])
def test_a_file_that_is_no_npz_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.npz").write_bytes(content)
    with pytest.raises(UsageError, match=r"bad.npz` is not a readable `.npz` file"):
        load(tmp_path, FLOATS)


def test_a_truncated_npz_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "bad.npz", x=np.zeros((1, 3), np.float32))
    content = (tmp_path / "bad.npz").read_bytes()
    (tmp_path / "bad.npz").write_bytes(content[:-30])
    with pytest.raises(UsageError, match=r"bad.npz"):
        load(tmp_path, FLOATS)


def test_a_missing_folder_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputOutputError, match="does not exist"):
        load(tmp_path / "none", FLOATS)


def test_a_file_of_no_known_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    with pytest.raises(UsageError, match="is no source of samples"):
        load(tmp_path / "a", FLOATS)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds nothing"):
        load(tmp_path, FLOATS)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("1,2")
    with pytest.raises(UsageError, match="holds no samples, only 1 other file"):
        load(tmp_path, FLOATS)


def test_photos_mixed_with_npz_are_refused(tmp_path: Path) -> None:
    save_photo(tmp_path / "a.png")
    np.savez(tmp_path / "a.npz", x=np.zeros((1, 3), np.float32))
    with pytest.raises(UsageError, match=r"mixes 1 photo with 1 `\.npz` file"):
        load(tmp_path, PHOTOS, images=IMAGES)


def test_photos_for_a_model_without_an_image_input_say_what_to_declare(tmp_path: Path) -> None:
    save_photo(tmp_path / "a.png")
    with pytest.raises(UsageError) as caught:
        load(tmp_path, FLOATS)
    assert "[input.x.image]" in str(caught.value.hint)


def test_photos_cannot_fill_a_second_input(tmp_path: Path) -> None:
    save_photo(tmp_path / "a.png")
    two = signature(*PHOTOS.inputs, spec("age", "float32", BATCH))
    with pytest.raises(UsageError, match="nothing is given for `age`"):
        load(tmp_path, two, images=IMAGES)


def test_a_model_that_takes_photos_by_itself_checks_their_size(tmp_path: Path) -> None:
    own = signature(spec("x", "uint8", BATCH, 10, 12, 3))
    save_photo(tmp_path / "a.png")
    assert load(tmp_path, own)[0]["x"].shape == (1, 10, 12, 3)
    save_photo(tmp_path / "b.png", size=(7, 7))
    with pytest.raises(UsageError, match=r"b.png.*\[1, 7, 7, 3\]"):
        load(tmp_path, own)


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5])
def test_a_broken_photo_is_refused_with_its_name(tmp_path: Path, kept: float) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "bad.png")
    content = (tmp_path / "bad.png").read_bytes()
    (tmp_path / "bad.png").write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(UsageError, match=r"bad.png` is (not|a broken) (a )?photo"):
        load(tmp_path, PHOTOS, images=IMAGES)


def test_a_photo_with_16_bits_per_channel_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(UsageError, match="more than 8 bits per channel"):
        decode_image(tmp_path / "deep.png")


def test_a_photo_is_turned_upright(tmp_path: Path) -> None:
    photo = Image.new("RGB", (6, 4))
    exif = photo.getexif()
    exif[0x0112] = 6
    photo.save(tmp_path / "a.jpg", exif=exif)
    assert decode_image(tmp_path / "a.jpg").shape == (1, 6, 4, 3)


def test_synthetic_samples_depend_on_the_seed_alone() -> None:
    wide = signature(
        spec("x", "float32", BATCH, 4),
        spec("photo", "uint8", BATCH, 20, 20, 3),
        spec("text", "string", BATCH),
        spec("flag", "bool", BATCH),
        spec("input_ids", "int64", BATCH, 6),
        spec("attention_mask", "int64", BATCH, 6),
        spec("half", "float16", BATCH),
    )
    first, second = synthetic(wide, 4, 7), synthetic(wide, 4, 7)
    for a, b in zip(first, second, strict=True):
        assert all(np.array_equal(a[name], b[name]) for name in a)
    assert first.digest == second.digest != synthetic(wide, 4, 8).digest
    assert not np.array_equal(first[0]["x"], synthetic(wide, 4, 8)[0]["x"])
    assert [len(sample["x"]) for sample in first] == [1, 1, 32, 1]
    assert (first[0]["attention_mask"] == 1).all()
    assert first[0]["input_ids"].min() >= 0
    assert {name: array.dtype.kind for name, array in first[0].items()} == {
        "x": "f", "photo": "u", "text": "U", "flag": "b", "input_ids": "i", "attention_mask": "i",
        "half": "f",
    }  # fmt: skip


def test_synthetic_floats_are_nearly_normal_and_their_bytes_are_known() -> None:
    values = synthetic(signature(spec("x", "float32", 10_000)), 1, 0)[0]["x"]
    assert abs(float(values.mean())) < 0.05
    assert abs(float(values.std()) - 1) < 0.05
    known = [-0.6573684811592102, -0.3570293188095093, -1.6224232912063599]
    assert values[:3].tolist() == known


def test_a_huge_dimension_is_not_drawn_at_its_largest() -> None:
    tall = signature(spec("x", "float32", Dim(name="n", min=2, max=10**9, opt=3), 8))
    assert [len(sample["x"]) for sample in synthetic(tall, 3, 0)] == [3, 2, 3]


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int64", "bool", "string"])
def test_made_up_scalars_are_arrays_that_an_engine_takes(dtype: str) -> None:
    value = synthetic(signature(spec("x", dtype)), 1, 0)[0]["x"]
    assert isinstance(value, np.ndarray)
    assert value.shape == ()
    assert value.dtype.kind == "U" or value.dtype == dtype
