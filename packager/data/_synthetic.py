"""Makes samples from a signature and a seed alone."""

from __future__ import annotations

import hashlib
import math
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from packager.data._photos import is_photo
from packager.data._samples import Samples
from packager.model import numpy_dtype

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from packager.model import Signature, TensorSpec
    from packager.recipe import Recipe

    Sample = dict[str, NDArray[Any]]

_WORDS: Final = ("alpha", "brown", "cat", "delta", "edge", "fox", "green", "house", "iron", "jump")
# A sample at the largest sizes is only made where it stays below this many elements.
_LARGEST_SAMPLE: Final = 1 << 20


def random_samples(signature: Signature, recipe: Recipe, count: int, seed: int) -> Samples:
    """Return made-up samples that somebody asked for by the name `random`.

    They are `synthetic` ones as the model itself takes them; only columns of a table are put into
    the table's unit, as their mean and deviation are taken off again in the graph.
    """
    made = synthetic(signature, count, seed)
    return Samples(
        [partial(_random_sample, made, index, recipe) for index in range(count)],
        digest=made.digest,
        origin=f"{count} random input{'' if count == 1 else 's'}, seed {seed}",
        kind="random",
        notes=("random numbers stand in for data: ranges and metrics found on them mean little",),
        names=[f"random {index}" for index in range(count)],
    )


def _random_sample(made: Samples, index: int, recipe: Recipe) -> Sample:
    import numpy as np

    sample = dict(made[index])
    for name, columns in recipe.columns.items():
        array = sample.get(name)
        if array is not None and "float" in array.dtype.name and (columns.mean or columns.std):
            scaled = array * np.asarray(columns.std or 1.0) + np.asarray(columns.mean or 0.0)
            sample[name] = scaled.astype(array.dtype)
    return sample


def synthetic(signature: Signature, count: int, seed: int) -> Samples:
    """Return `count` samples that depend on the signature and the seed alone.

    The first has every dynamic dimension at `opt`; the second and third at the smallest and the
    largest size, where these are bounded and keep a sample small; then `opt` again. Every value
    comes from the raw stream of numpy's Philox generator through exact arithmetic, so that the
    bytes are the same with every numpy and on every CPU.
    """
    key = hashlib.sha256(repr((signature.to_json()["inputs"], seed)).encode()).hexdigest()

    def loader(index: int) -> Callable[[], Sample]:
        return lambda: _synthetic_sample(signature, seed, index)

    return Samples(
        [loader(index) for index in range(count)],
        digest=key,
        origin=f"{count} synthetic inputs, seed {seed}",
        kind="synthetic",
    )


def _synthetic_sample(signature: Signature, seed: int, index: int) -> Sample:
    import numpy as np

    sizes = _synthetic_sizes(signature, index)
    sample: Sample = {}
    for position, spec in enumerate(signature.inputs):
        shape = tuple(
            dim.size if dim.size is not None else sizes.get(dim.name, dim.opt or dim.min)
            for dim in spec.shape
        )
        stream = np.random.Philox(key=[seed & (2**64 - 1), (index << 16) | position])
        sample[spec.name] = _synthetic_array(spec, shape, stream)
    return sample


def _synthetic_sizes(signature: Signature, index: int) -> dict[str | None, int]:
    dims = signature.dims()
    sizes: dict[str | None, int] = {name: dim.opt or dim.min for name, dim in dims.items()}
    if index == 1:
        return {name: dim.min for name, dim in dims.items()}
    if index == 2:
        # The dimensions grow one after the other, as far as every input stays small.
        for name, dim in dims.items():
            grown = {**sizes, name: dim.max or sizes[name]}
            if all(_elements(spec, grown) <= _LARGEST_SAMPLE for spec in signature.inputs):
                sizes = grown
    return sizes


def _elements(spec: TensorSpec, sizes: Mapping[str | None, int]) -> int:
    count = 1
    for dim in spec.shape:
        count *= dim.size if dim.size is not None else sizes.get(dim.name, dim.opt or dim.min)
    return count


def _synthetic_array(spec: TensorSpec, shape: tuple[int, ...], stream: Any) -> NDArray[Any]:
    import numpy as np

    count = math.prod(shape)
    if is_photo(spec):
        # Blocks of one colour with a little grain: edges for a model to see, and they compress.
        rows, columns = -(-shape[1] // 16), -(-shape[2] // 16)
        blocks = (stream.random_raw(shape[0] * rows * columns * 3) % 224).astype(np.uint8)
        blocks = blocks.reshape(shape[0], rows, columns, 3).repeat(16, axis=1).repeat(16, axis=2)
        grain = (stream.random_raw(count) % 32).astype(np.uint8).reshape(shape)
        return np.ascontiguousarray(blocks[:, : shape[1], : shape[2]] + grain)
    raw = stream.random_raw(count).reshape(shape)
    if spec.dtype == "string":
        lengths = [1 + int(value) % 3 for value in raw.flat]
        words = [
            " ".join(_WORDS[(int(value) >> 8 * (part + 1)) % len(_WORDS)] for part in range(length))
            for value, length in zip(raw.flat, lengths, strict=True)
        ]
        return np.array(words, dtype=np.str_).reshape(shape)
    if spec.dtype == "bool":
        return np.asarray(raw % 2 == 1)
    if "float" in spec.dtype:
        # Four uniform 16-bit numbers: nearly normal, mean 0, variance 1 after the factor √3.
        total = sum((raw >> np.uint64(16 * part)) & np.uint64(0xFFFF) for part in range(4))
        values = (np.asarray(total, np.float64) / 65536 - 2.0) * math.sqrt(3.0)
        # numpy makes a number of an array without dimensions
        return np.asarray(values, numpy_dtype(spec.dtype))
    name = spec.name.lower()
    if "mask" in name:
        return np.ones(shape, spec.dtype)
    # Indices must stay inside tables whose sizes are unknown: segment tables hold two rows.
    top = 100 if name.endswith("input_ids") or "token_ids" in name else 2
    top = 256 if spec.dtype == "uint8" and len(shape) == 4 else top
    return np.asarray(raw % np.uint64(top)).astype(spec.dtype)
