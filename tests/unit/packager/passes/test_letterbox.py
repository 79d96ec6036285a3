"""Letterboxed photos: sizes and bars as Ultralytics computes them, pixels as Pillow or OpenCV."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from packager.model import Dim
from packager.passes.image import preprocess_session
from packager.passes.inputs import attach
from packager.recipe import ImageInput, Recipe

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

BOX = ImageInput(size=(48, 64), letterbox=True, scale=False)
RUN = preprocess_session(BOX)


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    blocks = random.integers(0, 256, (-(-height // 5), -(-width // 5), 3))
    return blocks.repeat(5, 0).repeat(5, 1)[:height, :width].astype(np.uint8)


def placed(size: tuple[int, int], height: int, width: int) -> tuple[int, int, int, int]:
    """Return top, left, height and width of the photo inside the box, in Ultralytics' way."""
    ratio = min(size[0] / height, size[1] / width)
    inner_width, inner_height = int(round(width * ratio)), int(round(height * ratio))  # noqa: RUF046
    margin_x, margin_y = (size[1] - inner_width) / 2, (size[0] - inner_height) / 2
    return round(margin_y - 0.1), round(margin_x - 0.1), inner_height, inner_width


def letterboxed(image: ImageInput, pixels: np.ndarray, resized: Callable) -> np.ndarray:
    top, left, height, width = placed(image.size, *pixels.shape[:2])
    out = np.full((*image.size, 3), image.fill, np.float32)
    out[top : top + height, left : left + width] = resized(pixels, height, width)
    return out


def pillow(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))


def opencv_linear(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return INTER_LINEAR: half-pixel centers, repeated edges, no filter before shrinking."""

    def weights(out: int, size: int) -> np.ndarray:
        at = np.clip((np.arange(out) + 0.5) * size / out - 0.5, 0, size - 1)
        low = np.floor(at).astype(int)
        matrix = np.zeros((out, size))
        matrix[np.arange(out), low] += 1 - (at - low)
        matrix[np.arange(out), np.minimum(low + 1, size - 1)] += at - low
        return matrix

    rows, columns = weights(height, pixels.shape[0]), weights(width, pixels.shape[1])
    return np.rint(np.moveaxis(rows @ np.moveaxis(pixels, -1, 0) @ columns.T, 0, -1))


SIZES = [(480, 640), (640, 480), (100, 333), (31, 57), (48, 64), (49, 64), (1000, 20), (97, 65)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("antialias", [True, False])
def test_a_photo_keeps_its_proportions_between_bars(
    size: tuple[int, int], *, antialias: bool
) -> None:
    image = dataclasses.replace(BOX, antialias=antialias, fill=93)
    pixels = photo(*size)
    got = preprocess_session(image)(pixels[None])[0].transpose(1, 2, 0)
    wanted = letterboxed(image, pixels, pillow if antialias else opencv_linear)
    assert np.abs(got - wanted).max() <= 1


@settings(deadline=None, max_examples=60)
@given(height=st.integers(4, 700), width=st.integers(4, 700))
def test_the_photo_stands_where_ultralytics_puts_it(height: int, width: int) -> None:
    got = RUN(np.full((1, height, width, 3), 255, np.uint8))[0, 0]
    top, left, inner_height, inner_width = placed(BOX.size, height, width)
    wanted = np.full(BOX.size, BOX.fill, np.float32)
    if 0 in {inner_height, inner_width}:
        # A strip that rounds to nothing, where OpenCV fails, keeps one row or column of pixels.
        inner_height, inner_width = max(inner_height, 1), max(inner_width, 1)
        top, left = (BOX.size[0] - inner_height) // 2, (BOX.size[1] - inner_width) // 2
    wanted[top : top + inner_height, left : left + inner_width] = 255
    assert np.array_equal(got, wanted)


def test_plain_resizing_without_antialiasing_is_opencvs() -> None:
    image = ImageInput(size=(24, 40), antialias=False, scale=False)
    pixels = photo(61, 83)
    got = preprocess_session(image)(pixels[None])[0].transpose(1, 2, 0)
    assert np.abs(got - opencv_linear(pixels, 24, 40)).max() <= 1
    assert np.abs(got - pillow(pixels, 24, 40)).max() > 20


def test_bicubic_without_antialiasing_stays_in_eight_bits() -> None:
    image = ImageInput(size=(40, 40), antialias=False, scale=False, interpolation="bicubic")
    pixels = np.where(photo(10, 10) > 128, 255, 0).astype(np.uint8)
    got = preprocess_session(image)(pixels[None])
    assert got.min() == 0
    assert got.max() == 255
    assert np.array_equal(got, np.rint(got))


def test_a_model_of_any_size_gets_the_recipes(
    drawing: Any, make_spec: Callable, tmp_path: Path
) -> None:
    d = drawing(opset=11)
    d.add("Identity", d.add("Relu", "x"), out="y")
    batch, height = Dim(name="batch", min=1, max=8, opt=1), Dim(name="height", min=32, max=960)
    sides = (batch, 3, height, Dim(name="wide", min=32, max=960))
    model = d.save(
        tmp_path / "m.onnx", (make_spec("x", "float32", *sides),), make_spec("y", "float32", *sides)
    )
    recipe = Recipe(model="m.onnx", name="m", images={"x": BOX})
    out = tmp_path / "out.onnx"
    signature = attach(model.path, model.signature, recipe, out)
    assert str(signature.outputs[0]) == "y: float32[batch=1..8, 3, 48, 64]"
    pixels = photo(60, 40)[None]
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    assert np.array_equal(session.run(None, {"x": pixels})[0], RUN(pixels))
