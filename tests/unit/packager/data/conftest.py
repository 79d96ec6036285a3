"""Signatures, recipes and files for the sources of data."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from packager.data import load_samples
from packager.model import Dim, Signature, TensorSpec
from packager.recipe import Compression, Recipe, parse_source

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from packager.data import Samples

BATCH = Dim(name="batch", min=1, max=32, opt=1)


def spec(name: str, dtype: str, *shape: int | Dim) -> TensorSpec:
    dims = tuple(axis if isinstance(axis, Dim) else Dim(size=axis) for axis in shape)
    return TensorSpec(name=name, dtype=dtype, shape=(BATCH, *dims))


@pytest.fixture
def make_spec() -> Callable[..., TensorSpec]:
    """Make a spec with the batch axis in front."""
    return spec


@pytest.fixture
def signature() -> Callable[..., Signature]:
    """Make a signature of these inputs with `scores` [batch, classes]."""

    def make(*inputs: TensorSpec, classes: int = 3) -> Signature:
        return Signature(inputs=inputs, outputs=(spec("scores", "float32", classes),))

    return make


@pytest.fixture
def load(signature: Callable[..., Signature]) -> Callable[..., Samples]:
    """Load a source for inputs, with the rest of a recipe by keyword."""

    def run(
        source: Path | str,
        *inputs: TensorSpec,
        labelled: bool = False,
        classes: int = 3,
        metric: str = "",
        seed: int = 0,
        **recipe: Any,
    ) -> Samples:
        wanted = Recipe(model="m.onnx", name="m", compress=Compression(metric=metric), **recipe)
        return load_samples(
            parse_source(str(source)),
            signature(*inputs, classes=classes),
            wanted,
            labelled=labelled,
            seed=seed,
        )

    return run


@pytest.fixture
def save_photo() -> Callable[..., None]:
    def save(path: Path, shade: int = 90, size: tuple[int, int] = (12, 10)) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (shade, 10, 200)).save(path)

    return save


@pytest.fixture
def save_wav() -> Callable[..., None]:
    """Write a `.wav` file byte by byte, in any of the formats that recorders write."""

    def save(
        path: Path,
        values: Any,
        *,
        rate: int = 16000,
        bits: int = 16,
        kind: int = 1,
        extensible: bool = False,
        chunks: bytes = b"",
        length: int | None = None,
    ) -> None:
        array = np.asarray(values, np.float64)
        channels = 1 if array.ndim == 1 else array.shape[1]
        flat = array.reshape(-1)
        if kind == 3:
            data = flat.astype("<f4" if bits == 32 else "<f8").tobytes()
        elif bits == 8:
            data = np.clip(np.round(flat * 128 + 128), 0, 255).astype(np.uint8).tobytes()
        else:
            top = 2 ** (bits - 1)
            whole = np.clip(np.round(flat * top), -top, top - 1).astype("<i8")
            data = whole.view(np.uint8).reshape(-1, 8)[:, : bits // 8].tobytes()
        frame = channels * bits // 8
        head = (0xFFFE if extensible else kind, channels, rate, rate * frame, frame, bits)
        form = struct.pack("<HHIIHH", *head)
        if extensible:
            form += struct.pack("<HHIH", 22, bits, 0, kind) + b"\0" * 14
        body = b"WAVEfmt " + struct.pack("<I", len(form)) + form + chunks
        body += b"data" + struct.pack("<I", len(data) if length is None else length) + data
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)

    return save
