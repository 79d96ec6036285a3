"""Compiles resizing, cropping and normalizing of photos into the graph."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Final

from packager.checks.latency import open_session
from packager.checks.parity import compare
from packager.data import synthetic
from packager.errors import ModelUnsupported, UsageError
from packager.model import Dim, Signature, TensorSpec
from packager.passes.contract import first_line, opset_of, tool_faults
from packager.passes.graph import all_nodes, strip_texts
from packager.passes.photo import (
    LEAST_IR,
    LEAST_OPSET,
    PhotoSteps,
    prepare,
    preprocess_session,
    value_info,
)
from packager.passes.transform import check_image_parity

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from packager.data import Samples
    from packager.recipe import ImageInput

__all__ = ["attach_image", "check_image_parity", "prepare", "preprocess_session"]

# With these bounds a narrow strip, resized by its shorter side, stays below about 400 MB.
LEAST_SIDE, LARGEST_SIDE = 4, 8192
_PARITY: Final = 1e-3


def attach_image(
    model_path: Path, signature: Signature, images: Mapping[str, ImageInput], out: Path
) -> Signature:
    """Write a model whose image inputs are photos, uint8 [batch, height, width, 3] in RGB.

    The graph swaps channels where asked, resizes as Pillow does (antialiased, rounded to eight
    bits), crops as torchvision does, then scales and normalizes: mean and std are in the order of
    the model's channels. The result is run and compared with the
    model behind the pre-processing alone.

    Args:
        model_path: ONNX file; raised to opset 18 where it is below.
        signature: Its signature.
        images: Per input name.
        out: Where the new file goes.

    Returns:
        The signature with those inputs replaced.

    Raises:
        UsageError: the recipe names an input that is not there or does not fit.
        ModelUnsupported: the opset cannot be raised, or the result computes something else.
    """
    import onnx

    specs = {spec.name: spec for spec in signature.inputs}
    for name, image in images.items():
        _check_fits(name, image, specs)
    model = onnx.load(model_path)
    opset = opset_of(model)
    if opset < LEAST_OPSET:
        model = _raise_opset(model)
    model.ir_version = max(model.ir_version, LEAST_IR)
    inputs = {
        name: _photo_spec(specs[name], image, signature, len(images))
        for name, image in images.items()
    }
    for name, image in images.items():
        _attach(model, inputs[name], image, specs[name])
    strip_texts(model)
    onnx.save(model, out)
    changed = Signature(
        inputs=tuple(inputs.get(spec.name, spec) for spec in signature.inputs),
        outputs=signature.outputs,
    )
    photos = synthetic(changed, 2, 0)
    _compare(_run(model_path, prepare(photos, images, signature)), _run(out, photos), opset)
    return changed


def _attach(model: Any, photo: TensorSpec, image: ImageInput, spec: TensorSpec) -> None:
    """Put the steps before an input, in place; the input keeps its name."""
    prepared = f"{photo.name}.prepared"
    taken = {name for node in all_nodes(model) for name in (*node.input, *node.output)}
    taken |= {tensor.name for tensor in model.graph.initializer}
    while prepared in taken:
        prepared += "_"
    for node in all_nodes(model):
        for position, name in enumerate(node.input):
            if name == photo.name:
                node.input[position] = prepared
    steps = PhotoSteps(prefix=prepared)
    steps.build(image, photo.name, prepared, spec.dtype)
    rest = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*steps.nodes, *rest])
    model.graph.initializer.extend(steps.constants)
    for value in model.graph.input:
        if value.name == photo.name:
            value.CopyFrom(value_info(photo))


def _check_fits(name: str, image: ImageInput, specs: Mapping[str, TensorSpec]) -> None:
    if name not in specs:
        raise UsageError(
            f"the recipe declares `[input.{name}.image]`, and the model has no input `{name}`",
            accepted=", ".join(f"`{known}`" for known in specs),
        )
    spec = specs[name]
    height, width = image.size
    nchw = image.layout == "nchw"
    wanted = (3, height, width) if nchw else (height, width, 3)
    found = tuple(dim.size for dim in spec.shape[1:])
    if len(found) != 3 or any(f not in (None, w) for f, w in zip(found, wanted, strict=True)):
        other = "nhwc" if nchw else "nchw"
        swapped = len(found) == 3 and found[2 if nchw else 0] == 3
        raise UsageError(
            f"`input.{name}.image` makes [batch, {', '.join(map(str, wanted))}]",
            accepted=f"what the model takes, `{spec}`",
            hint=f'set `layout = "{other}"`' if swapped else None,
        )
    plain = not image.scale and set(image.mean) == {0.0} and set(image.std) == {1.0}
    if spec.dtype == "uint8" and not plain:
        raise UsageError(
            f"the model takes `{name}` as uint8, which cannot be normalized",
            accepted="`scale = false` without `mean` and `std`",
        )
    if "float" not in spec.dtype and spec.dtype != "uint8":
        raise UsageError(f"the input `{name}` is {spec.dtype}", accepted="a float input")


def _photo_spec(
    spec: TensorSpec, image: ImageInput, signature: Signature, count: int
) -> TensorSpec:
    alone = count == 1 and not {"height", "width"} & set(signature.dims())
    prefix = "" if alone else f"{spec.name}_"
    opt = (image.resize, image.resize) if image.resize is not None else image.size
    sides = tuple(
        Dim(name=f"{prefix}{side}", min=LEAST_SIDE, max=LARGEST_SIDE, opt=size)
        for side, size in zip(("height", "width"), opt, strict=True)
    )
    return dataclasses.replace(spec, dtype="uint8", shape=(spec.shape[0], *sides, Dim(size=3)))


def _raise_opset(model: Any) -> Any:
    from onnx import version_converter

    try:
        return version_converter.convert_version(model, LEAST_OPSET)
    except tool_faults() as fault:
        raise ModelUnsupported(
            f"photos need opset {LEAST_OPSET}, to which this model cannot be raised: "
            f"{first_line(fault)}",
            hint=f"export the model with opset {LEAST_OPSET} or later",
        ) from fault


def _compare(
    expected: Sequence[dict[str, NDArray[Any]]], got: Sequence[dict[str, NDArray[Any]]], opset: int
) -> None:
    parity = compare(expected, got)
    if parity.cosine < 1 - _PARITY or not parity.exact:
        raise ModelUnsupported(
            f"the model computes something else once opset {opset} was raised to "
            f"{LEAST_OPSET} (cosine {parity.cosine:.4f})",
            hint=f"export the model with opset {LEAST_OPSET} or later",
        )


def _run(path: Path, samples: Samples) -> list[dict[str, NDArray[Any]]]:
    try:
        session = open_session(path, 0)
        names = [output.name for output in session.get_outputs()]
        return [dict(zip(names, session.run(names, dict(s)), strict=True)) for s in samples]
    except tool_faults() as fault:
        raise ModelUnsupported(
            f"the model does not run with its image pre-processing: {first_line(fault)}",
            hint=f"export the model with opset {LEAST_OPSET} or later",
        ) from fault
