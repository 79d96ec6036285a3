"""Photos as inputs: the compiled pre-processing does what Pillow and torchvision do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

from packager.data import decode_image, load_samples
from packager.errors import ModelUnsupported, UsageError
from packager.passes.image import preprocess_session
from packager.passes.inputs import attach, prepare
from packager.passes.transform import check_transform
from packager.recipe import DataSource, ImageInput, Recipe

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def taking(images: dict[str, ImageInput]) -> Recipe:
    return Recipe(model="m.onnx", name="m", images=images)


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Return edges, slopes and grain: what shows a resize that is wrong anywhere."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    slopes = np.stack([x * 255 / width, y * 255 / height, (x + y) % 256], axis=-1)
    blocks = random.integers(0, 255, (height // 7 + 1, width // 7 + 1, 3))
    blocks = blocks.repeat(7, 0).repeat(7, 1)[:height, :width]
    grain = random.integers(-20, 20, (height, width, 3))
    return Image.fromarray(np.clip(slopes / 2 + blocks / 2 + grain, 0, 255).astype(np.uint8))


def torchvision_like(image: Image.Image, settings: ImageInput) -> np.ndarray:
    """Return what Resize(settings.resize) and CenterCrop(settings.size) give, channels last."""
    height, width = settings.size
    resample = FILTERS[settings.interpolation]
    if settings.resize is None:
        return np.asarray(image.resize((width, height), resample), np.float32)
    short, long = sorted(image.size)
    new_long = int(settings.resize * long / short)
    narrow = image.size[0] <= image.size[1]
    new = (settings.resize, new_long) if narrow else (new_long, settings.resize)
    resized = image.resize(new, resample)
    top, left = round((new[1] - height) / 2.0), round((new[0] - width) / 2.0)
    return np.asarray(resized.crop((left, top, left + width, top + height)), np.float32)


@pytest.mark.parametrize("size", [(640, 427), (427, 641), (100, 100), (57, 31), (333, 1000)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("resize", [None, 75])
def test_resizing_and_cropping_are_pillows_to_one_grey_level(
    size: tuple[int, int], interpolation: str, resize: int | None
) -> None:
    settings = ImageInput(size=(64, 56), resize=resize, interpolation=interpolation, scale=False)
    image = photo(*size)
    got = preprocess_session(settings)(np.asarray(image)[None])[0].transpose(1, 2, 0)
    assert np.abs(got - torchvision_like(image, settings)).max() <= 1


@pytest.mark.parametrize("side", range(40, 64))
def test_the_crop_is_rounded_to_the_even_side(side: int) -> None:
    settings = ImageInput(size=(33, 33), resize=33, scale=False)
    image = photo(33, side)
    got = preprocess_session(settings)(np.asarray(image)[None])[0].transpose(1, 2, 0)
    assert np.array_equal(got, torchvision_like(image, settings))


def test_values_are_scaled_and_normalized_per_channel() -> None:
    settings = ImageInput(size=(8, 8), mean=MEAN, std=STD)
    pixels = np.asarray(photo(8, 8))
    got = preprocess_session(settings)(pixels[None])[0]
    wanted = ((pixels / 255.0 - MEAN) / STD).transpose(2, 0, 1)
    assert np.allclose(got, wanted, atol=1e-6)


def test_layout_and_channels_follow_the_model() -> None:
    pixels = np.asarray(photo(8, 8))
    settings = ImageInput(
        size=(8, 8), mean=(1.0, 2.0, 3.0), scale=False, layout="nhwc", channels="bgr"
    )
    got = preprocess_session(settings)(pixels[None])[0]
    assert np.array_equal(got, pixels[:, :, ::-1] - np.float32([1, 2, 3]))


def test_a_batch_of_photos_is_prepared_like_each_alone() -> None:
    run = preprocess_session(ImageInput(size=(8, 8), resize=9))
    pixels = np.stack([np.asarray(photo(30, 20, seed)) for seed in range(3)])
    assert np.array_equal(run(pixels), np.concatenate([run(p[None]) for p in pixels]))


@pytest.mark.parametrize("opset", [13, 17, 18])
def test_the_attached_model_answers_photos_as_the_parts_do(
    opset: int, make_cnn: Callable, tmp_path: Path
) -> None:
    model = make_cnn(opset=opset)
    images = {"image": ImageInput(size=(16, 16), resize=20, mean=MEAN, std=STD)}
    out = tmp_path / "out.onnx"
    signature = attach(model.path, model.signature, taking(images), out)
    assert str(signature.inputs[0]) == "image: uint8[batch=1..8, height=4..8192, width=4..8192, 3]"
    assert signature.outputs == model.signature.outputs
    assert onnx.load(out).opset_import[0].version == 18
    pixels = np.stack([np.asarray(photo(50, 40, seed)) for seed in range(2)])
    got = run(out, pixels)
    wanted = run(model.path, preprocess_session(images["image"])(pixels))
    assert np.allclose(got, wanted, atol=1e-5)


def run(path: Path, array: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: array})[0]


def test_two_image_inputs_have_sizes_of_their_own(
    drawing: Any, make_spec: Callable, batch: Any, tmp_path: Path
) -> None:
    d = drawing(opset=18)
    d.add("Add", "left", "right", out="y")
    specs = [make_spec(name, "float32", batch, 3, 8, 8) for name in ("left", "right", "y")]
    model = d.save(tmp_path / "two.onnx", tuple(specs[:2]), specs[2])
    images = {name: ImageInput(size=(8, 8)) for name in ("left", "right")}
    signature = attach(model.path, model.signature, taking(images), tmp_path / "out.onnx")
    assert list(signature.dims()) == [
        "batch", "left_height", "left_width", "right_height", "right_width",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("photo", {}, "the model has no input `photo`"),
        ("image", {"size": (24, 24)}, "makes [batch, 3, 24, 24]"),
        ("image", {"layout": "nhwc"}, "makes [batch, 16, 16, 3]"),
    ],
)
def test_a_recipe_that_does_not_fit_the_model_is_refused(
    name: str, settings: dict[str, Any], message: str, make_cnn: Callable, tmp_path: Path
) -> None:
    model = make_cnn()
    images = {name: ImageInput(**{"size": (16, 16), **settings})}
    with pytest.raises(UsageError) as caught:
        attach(model.path, model.signature, taking(images), tmp_path / "out.onnx")
    assert message in caught.value.message
    assert (caught.value.hint == 'set `layout = "nchw"`') == ("layout" in settings)
    assert not (tmp_path / "out.onnx").exists()


def test_an_opset_that_is_raised_to_a_broken_model_says_what_to_export(
    drawing: Any, make_spec: Callable, batch: Any, tmp_path: Path
) -> None:
    d = drawing(opset=8)
    # The scan of opset 8 has a batch axis; the converter lets it pass as if it had none.
    row = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [8, 8]) for name in "ab"
    ]
    body = onnx.helper.make_graph(
        [onnx.helper.make_node("Neg", ["a"], ["b"])], "body", row[:1], row[1:]
    )
    d.add("Scan", "", "x", out="y", body=body, num_scan_inputs=1)
    shape = (batch, 3, 8, 8)
    model = d.save(
        tmp_path / "old.onnx",
        (make_spec("x", "float32", *shape),),
        make_spec("y", "float32", *shape),
    )
    with pytest.raises(
        ModelUnsupported, match="does not run with its pre- and post-processing"
    ) as caught:
        attach(
            model.path,
            model.signature,
            taking({"x": ImageInput(size=(8, 8))}),
            tmp_path / "out.onnx",
        )
    assert caught.value.hint == "export the model with opset 18 or later"


def test_prepared_samples_are_what_the_model_takes(tmp_path: Path, make_cnn: Callable) -> None:
    model = make_cnn()
    folder = tmp_path / "photos"
    folder.mkdir()
    photo(40, 30).save(folder / "a.png")
    recipe = taking({"image": ImageInput(size=(16, 16))})
    source = DataSource(word="photos", path=folder)
    samples = load_samples(source, model.signature, recipe)
    prepared = prepare(samples, recipe, model.signature)
    assert prepared[0]["image"].shape == (1, 3, 16, 16)
    assert prepared[0]["image"].dtype == np.float32
    assert prepared.digest == samples.digest


TRANSFORM = """
import numpy as np
from PIL import Image

def right(image):
    image = image.resize((16, 12), Image.BICUBIC)
    return (np.asarray(image, np.float32) / 255.0).transpose(2, 0, 1)

def other_filter(image):
    image = image.resize((16, 12), Image.NEAREST)
    return (np.asarray(image, np.float32) / 255.0).transpose(2, 0, 1)

def other_shape(image):
    return np.zeros((3, 5, 5))

def fails(image):
    raise RuntimeError("no such colour")
"""


@pytest.fixture
def parity(tmp_path: Path) -> Callable[[str], dict[str, Any]]:
    (tmp_path / "training.py").write_text(TRANSFORM)
    for seed in range(2):
        photo(60, 40, seed).save(tmp_path / f"{seed}.png")
    photos = [decode_image(tmp_path / f"{seed}.png") for seed in range(2)]

    def check(function: str) -> dict[str, Any]:
        word = f"{tmp_path / 'training.py'}:{function}"
        settings = ImageInput(size=(12, 16), interpolation="bicubic", transform=word)
        return check_transform(settings, photos, preprocess_session(settings))

    return check


def test_the_training_transform_is_matched_to_one_grey_level(parity: Callable) -> None:
    found = parity("right")
    assert found["samples"] == 2
    assert found["grey_levels"] <= 1.001


def test_another_transform_shows(parity: Callable) -> None:
    assert parity("other_filter")["grey_levels"] > 20


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("missing", "`training.py` has no function `missing`"),
        ("other_shape", "makes [3, 5, 5]"),
        ("fails", "no such colour"),
    ],
)
def test_a_transform_that_cannot_be_compared_is_refused(
    function: str, message: str, parity: Callable
) -> None:
    with pytest.raises(UsageError) as caught:
        parity(function)
    assert message in caught.value.message


def test_a_transform_that_is_no_file_is_refused() -> None:
    settings = ImageInput(size=(8, 8), transform="nowhere.py:f")
    compiled = preprocess_session(settings)
    with pytest.raises(UsageError, match="names no transform"):
        check_transform(settings, [], compiled)
