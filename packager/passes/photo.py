"""The steps from a photo to what a model takes, as ONNX nodes, and alone as a function."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from packager.model import Dim, Signature, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from packager.data import Samples
    from packager.recipe import ImageInput

# The first opset whose Resize has `antialias`.
LEAST_OPSET: Final = 18
LEAST_IR: Final = 8
# Pillow's filters: weights outside the photo are dropped and the rest normalized.
_RESIZE: Final[dict[str, dict[str, Any]]] = {
    "bilinear": {"mode": "linear", "antialias": 1, "exclude_outside": 1},
    "bicubic": {"mode": "cubic", "antialias": 1, "exclude_outside": 1, "cubic_coeff_a": -0.5},
}


def preprocess_session(
    image: ImageInput, dtype: str = "float32"
) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """Return a function from uint8 [n, height, width, 3] photos to what the model takes.

    It runs the very nodes that `attach_image` puts into the graph.
    """
    import onnx
    import onnxruntime

    source = TensorSpec(
        name="photo",
        dtype="uint8",
        shape=(Dim(name="n"), Dim(name="height"), Dim(name="width"), Dim(size=3)),
    )
    steps = PhotoSteps(prefix="photo")
    steps.build(image, "photo", "prepared", dtype)
    kind = onnx.helper.np_dtype_to_tensor_dtype(numpy_dtype(dtype))
    graph = onnx.helper.make_graph(
        steps.nodes,
        "preprocess",
        [value_info(source)],
        [onnx.helper.make_tensor_value_info("prepared", kind, [None] * 4)],
        steps.constants,
    )
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", LEAST_OPSET)], ir_version=LEAST_IR
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return lambda photos: session.run(None, {"photo": photos})[0]


def prepare(
    samples: Samples, images: Mapping[str, ImageInput], signature: Signature | None = None
) -> Samples:
    """Return the same samples as the model itself takes them, on each use.

    Args:
        samples: From `load_samples`, with photos as uint8 [n, height, width, 3]. An array that is
            already in the model's own form stays.
        images: The recipe's image inputs.
        signature: Of the model, before `attach_image`; None where its image inputs are float32.
    """
    dtypes = {spec.name: spec.dtype for spec in signature.inputs} if signature else {}
    sessions = {
        name: preprocess_session(image, dtypes.get(name, "float32"))
        for name, image in images.items()
    }

    def change(sample: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return {
            name: sessions[name](array)
            if name in sessions and array.dtype.name == "uint8" and array.shape[-1] == 3
            else array
            for name, array in sample.items()
        }

    return samples.map(change) if images else samples


@dataclass(kw_only=True)
class PhotoSteps:
    """Nodes and constants of one image input's pre-processing, named after it."""

    prefix: str
    nodes: list[Any] = field(default_factory=list)
    constants: list[Any] = field(default_factory=list)

    def build(self, image: ImageInput, source: str, result: str, dtype: str) -> None:
        """Append the steps from `source` (uint8, NHWC) to `result`."""
        planes = self.add("Transpose", [source], perm=[0, 3, 1, 2])
        if image.channels == "bgr":
            planes = self.add("Gather", [planes, self.ints("bgr", [2, 1, 0])], axis=1)
        shape = self.add("Shape", [planes])
        lead = self.add("Slice", [shape, self.ints("from", [0]), self.ints("to_2", [2])])
        sides = self.add("Slice", [shape, self.ints("from_2", [2]), self.ints("to_4", [4])])
        crop = self.ints("size", list(image.size))
        wanted = crop if image.resize is None else self._by_shorter_side(sides, image.resize)
        pixels = self.add(
            "Resize",
            [planes, "", "", self.add("Concat", [lead, wanted], axis=0)],
            **_RESIZE[image.interpolation],
        )
        if image.resize is not None:
            pixels = self._center_crop(pixels, wanted, crop)
        pixels = self._normalize(pixels, image, dtype)
        perm = [0, 2, 3, 1] if image.layout == "nhwc" else [0, 1, 2, 3]
        if image.layout == "nhwc":
            self.add("Transpose", [pixels], result=result, perm=perm)
        else:
            self.add("Identity", [pixels], result=result)

    def _by_shorter_side(self, sides: str, resize: int) -> str:
        # torchvision: the shorter side becomes `resize`, the longer int(resize * long / short).
        # Integer division is the same, as all are positive.
        shorter = self.add("ReduceMin", [sides], keepdims=1)
        scaled = self.add("Mul", [sides, self.ints("resize", [resize])])
        return self.add("Div", [scaled, shorter])

    def _center_crop(self, pixels: str, sides: str, crop: str) -> str:
        # torchvision: round((side - crop) / 2), halves to the even number.
        margin = self.add("Sub", [sides, crop])
        two = self.ints("two", [2])
        half = self.add("Div", [margin, two])
        odd = self.add("Mul", [self.add("Mod", [margin, two]), self.add("Mod", [half, two])])
        start = self.add("Add", [half, odd])
        end = self.add("Add", [start, crop])
        return self.add("Slice", [pixels, start, end, self.ints("axes", [2, 3])])

    def _normalize(self, pixels: str, image: ImageInput, dtype: str) -> str:
        import numpy as np
        import onnx

        unit = 255.0 if image.scale else 1.0
        std, mean = np.asarray(image.std, np.float64), np.asarray(image.mean, np.float64)
        factor, offset = 1.0 / (unit * std), -mean / std
        if dtype == "uint8":
            return pixels
        values = self.add("Cast", [pixels], to=onnx.TensorProto.FLOAT)
        if not np.all(factor == 1.0):
            values = self.add("Mul", [values, self.floats("factor", factor)])
        if not np.all(offset == 0.0):
            values = self.add("Add", [values, self.floats("offset", offset)])
        if dtype == "float32":
            return values
        kind = onnx.helper.np_dtype_to_tensor_dtype(numpy_dtype(dtype))
        return self.add("Cast", [values], to=kind)

    def add(self, operator: str, inputs: Sequence[str], result: str = "", **attributes: Any) -> str:
        """Append a node and return the name of its output."""
        import onnx

        name = f"{self.prefix}.{len(self.nodes)}.{operator}"
        output = result or name
        self.nodes.append(
            onnx.helper.make_node(operator, list(inputs), [output], name=name, **attributes)
        )
        return output

    def ints(self, name: str, values: Sequence[int]) -> str:
        """Return the name of an int64 constant, made once."""
        import numpy as np

        return self._constant(name, np.asarray(values, np.int64))

    def floats(self, name: str, values: NDArray[Any]) -> str:
        """Return the name of a float32 constant per channel, made once."""
        import numpy as np

        return self._constant(name, values.astype(np.float32).reshape(1, -1, 1, 1))

    def _constant(self, name: str, array: NDArray[Any]) -> str:
        import onnx

        full = f"{self.prefix}.{name}"
        if full not in {tensor.name for tensor in self.constants}:
            self.constants.append(onnx.numpy_helper.from_array(array, full))
        return full


def value_info(spec: TensorSpec) -> Any:
    """Return a spec as ONNX declares an input."""
    import onnx

    kind = onnx.helper.np_dtype_to_tensor_dtype(numpy_dtype(spec.dtype))
    shape = [dim.size if dim.size is not None else dim.name for dim in spec.shape]
    return onnx.helper.make_tensor_value_info(spec.name, kind, shape)


def numpy_dtype(dtype: str) -> Any:
    """Return numpy's dtype of one of our names, bfloat16 included."""
    import numpy as np

    if dtype == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(dtype)
