"""The steps from a photo to what a model takes, as ONNX nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from packager.passes.steps import Steps
    from packager.recipe import ImageInput

# The first opset whose Resize has `antialias`.
LEAST_OPSET: Final = 18
# Pillow's filters: weights outside the photo are dropped and the rest normalized.
_PILLOW: Final[dict[str, dict[str, Any]]] = {
    "bilinear": {"mode": "linear", "antialias": 1, "exclude_outside": 1},
    "bicubic": {"mode": "cubic", "antialias": 1, "exclude_outside": 1, "cubic_coeff_a": -0.5},
}
# OpenCV's: pixels beyond the edge repeat the edge.
_OPENCV: Final[dict[str, dict[str, Any]]] = {
    "bilinear": {"mode": "linear"},
    "bicubic": {"mode": "cubic", "cubic_coeff_a": -0.75},
}


def photo_steps(steps: Steps, image: ImageInput, source: str, result: str, dtype: str) -> None:
    """Append the steps from `source`, uint8 [n, height, width, 3] in RGB, to `result`."""
    planes = steps.add("Transpose", [source], perm=[0, 3, 1, 2])
    if image.channels == "bgr":
        planes = steps.add("Gather", [planes, steps.ints("bgr", [2, 1, 0])], axis=1)
    shape = steps.add("Shape", [planes])
    lead = steps.add("Slice", [shape, steps.ints("from", [0]), steps.ints("to_2", [2])])
    sides = steps.add("Slice", [shape, steps.ints("from_2", [2]), steps.ints("to_4", [4])])
    size = steps.ints("size", list(image.size))
    if image.letterbox:
        wanted = _inside(steps, sides, size)
    elif image.resize is not None:
        wanted = _by_shorter_side(steps, sides, image.resize)
    else:
        wanted = size
    pixels = _resize(steps, image, planes, steps.add("Concat", [lead, wanted], axis=0))
    if image.letterbox:
        pixels = _bars(steps, pixels, wanted, size, image.fill)
    elif image.resize is not None:
        pixels = _center_crop(steps, pixels, wanted, size)
    pixels = _normalize(steps, pixels, image, dtype)
    if image.layout == "nhwc":
        steps.add("Transpose", [pixels], result, perm=[0, 2, 3, 1])
    else:
        steps.add("Identity", [pixels], result)


def _resize(steps: Steps, image: ImageInput, planes: str, shape: str) -> str:
    if image.antialias:
        return steps.add("Resize", [planes, "", "", shape], **_PILLOW[image.interpolation])
    # Without antialiasing the engine cuts fractions of eight-bit pixels off: OpenCV rounds.
    values = steps.cast(planes, "float32")
    values = steps.add("Resize", [values, "", "", shape], **_OPENCV[image.interpolation])
    values = steps.add("Round", [values])
    if image.interpolation == "bicubic":
        low, high = steps.number("black", 0.0), steps.number("white", 255.0)
        values = steps.add("Clip", [values, low, high])
    return steps.cast(values, "uint8")


def _by_shorter_side(steps: Steps, sides: str, resize: int) -> str:
    # torchvision: the shorter side becomes `resize`, the longer int(resize * long / short).
    # Integer division is the same, as all are positive.
    shorter = steps.reduce("ReduceMin", sides, [0], keepdims=True)
    scaled = steps.add("Mul", [sides, steps.ints("resize", [resize])])
    return steps.add("Div", [scaled, shorter])


def _center_crop(steps: Steps, pixels: str, sides: str, crop: str) -> str:
    # torchvision: round((side - crop) / 2), halves to the even number.
    margin = steps.add("Sub", [sides, crop])
    two = steps.ints("two", [2])
    half = steps.add("Div", [margin, two])
    odd = steps.add("Mul", [steps.add("Mod", [margin, two]), steps.add("Mod", [half, two])])
    start = steps.add("Add", [half, odd])
    end = steps.add("Add", [start, crop])
    return steps.add("Slice", [pixels, start, end, steps.ints("axes", [2, 3])])


def _inside(steps: Steps, sides: str, size: str) -> str:
    # Ultralytics' LetterBox: the same operations on the same doubles, round() to the even number.
    # A narrow strip keeps a pixel.
    double = steps.cast(sides, "float64")
    ratios = steps.add("Div", [steps.cast(size, "float64"), double])
    ratio = steps.reduce("ReduceMin", ratios, [0], keepdims=True)
    rounded = steps.cast(steps.add("Round", [steps.add("Mul", [double, ratio])]), "int64")
    return steps.add("Max", [rounded, steps.ints("one", [1])])


def _bars(steps: Steps, pixels: str, sides: str, size: str, fill: int) -> str:
    # Ultralytics: round(d / 2 - 0.1) before and round(d / 2 + 0.1) behind: an odd one goes behind.
    margin = steps.add("Sub", [size, sides])
    before = steps.add("Div", [margin, steps.ints("two", [2])])
    behind = steps.add("Sub", [margin, before])
    none = steps.ints("none", [0, 0])
    pads = steps.add("Concat", [none, before, none, behind], axis=0)
    return steps.add("Pad", [pixels, pads, steps.number("fill", fill, "uint8")])


def _normalize(steps: Steps, pixels: str, image: ImageInput, dtype: str) -> str:
    import numpy as np

    unit = 255.0 if image.scale else 1.0
    std, mean = np.asarray(image.std, np.float64), np.asarray(image.mean, np.float64)
    factor, offset = 1.0 / (unit * std), -mean / std
    if dtype == "uint8":
        return pixels
    values = steps.cast(pixels, "float32")
    if not np.all(factor == 1.0):
        values = steps.add("Mul", [values, _per_channel(steps, "factor", factor)])
    if not np.all(offset == 0.0):
        values = steps.add("Add", [values, _per_channel(steps, "offset", offset)])
    return values if dtype == "float32" else steps.cast(values, dtype)


def _per_channel(steps: Steps, name: str, values: Any) -> str:
    import numpy as np

    return steps.constant(name, values.astype(np.float32).reshape(1, -1, 1, 1))
