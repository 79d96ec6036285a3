"""Fits arrays to a model's inputs: names, dtypes, finite values, shapes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from packager.errors import UsageError
from packager.model import as_saved, numpy_dtype

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from packager.model import Signature, TensorSpec
    from packager.recipe import Recipe

    Sample = dict[str, NDArray[Any]]

# What a sample holds before the tokenizer: one text per row.
TEXT_KEY: Final = "text"


def token_inputs(recipe: Recipe) -> tuple[str, ...]:
    """Return the model's inputs that the recipe's text takes the place of."""
    text = recipe.text
    return tuple(filter(None, (text.ids, text.mask, text.types))) if text is not None else ()


def wanted_inputs(signature: Signature, recipe: Recipe) -> tuple[str, ...]:
    """Return the names of what a client sends: the inputs, text in place of the tokens."""
    tokens = token_inputs(recipe)
    names = tuple(spec.name for spec in signature.inputs if spec.name not in tokens)
    return (*names, TEXT_KEY) if tokens else names


def fit_sample(
    arrays: Mapping[str, NDArray[Any]],
    signature: Signature,
    recipe: Recipe,
    where: str,
    notes: list[str],
) -> Sample:
    """Return arrays as one sample, converted only where nothing is lost.

    An image input takes uint8 [n, height, width, 3], sound float32 [n, samples], text strings [n];
    each may also come as the model itself takes it. A missing batch axis is added.

    Args:
        arrays: By input name.
        signature: Of the model, before any pre-processing is attached.
        recipe: Its inputs.
        where: The file and the row, for messages.
        notes: What was converted is appended.

    Raises:
        UsageError: it does not fit.
    """
    specs = {spec.name: spec for spec in signature.inputs}
    wanted = wanted_inputs(signature, recipe)
    if set(arrays) != set(wanted) and set(arrays) != set(specs):
        extra = [name for name in arrays if name not in wanted and name not in specs]
        label = f"if `{extra[0]}` holds the labels: `--label {extra[0]}`" if extra else None
        raise UsageError(
            f"{where} holds the arrays " + (", ".join(f"`{n}`" for n in arrays) or "(none)"),
            accepted="one array per input: " + ", ".join(f"`{n}`" for n in wanted),
            hint=label if len(extra) == 1 else None,
        )
    sizes: dict[str, int] = {}
    sample: Sample = {}
    for name in wanted if set(arrays) == set(wanted) else specs:
        array = arrays[name]
        place = f"{where}: `{name}`"
        if name == TEXT_KEY and name not in specs:
            sample[name] = _texts(array, place)
            continue
        spec = specs[name]
        raw = _raw(array, spec, recipe, place, notes)
        if raw is not None:
            sample[name] = raw
            _tie_batch(raw, spec, sizes, place)
            continue
        array = cast(array, spec, place, notes)
        if array.ndim == len(spec.shape) - 1:
            array = array[None]
            notes.append(f"a batch axis was added to `{name}`")
        check_shape(array, spec, sizes, place)
        sample[name] = _contiguous(array)
    if TEXT_KEY in sample and TEXT_KEY not in specs:
        _check_rows(sample, where)
    return sample


def cast(array: NDArray[Any], spec: TensorSpec, place: str, notes: list[str]) -> NDArray[Any]:
    """Return an array in the input's dtype.

    Raises:
        UsageError: NaN, infinity, or a dtype whose values would be lost.
    """
    import numpy as np

    if spec.dtype == "string":
        return _strings(array, place)
    wanted = numpy_dtype(spec.dtype)
    hint = None
    if spec.dtype == "bfloat16":
        hint = "give float32, which is rounded, or what numpy saved of ml_dtypes' bfloat16"
        array = as_saved(array)
    if array.dtype.kind not in "biuf" and array.dtype != wanted:
        raise UsageError(f"{place} is {array.dtype}", accepted=spec.dtype, hint=hint)
    check_finite(array, place)
    if array.dtype == wanted:
        return array
    with np.errstate(over="ignore", invalid="ignore"):
        changed = array.astype(wanted)
    both_float = array.dtype.kind == "f" and "float" in spec.dtype
    exact = array.dtype.kind in "biu" and np.array_equal(changed, array)
    if wanted.kind == "b" or not (exact or (both_float and np.isfinite(changed).all())):
        raise UsageError(f"{place} is {array.dtype}", accepted=spec.dtype, hint=hint)
    notes.append(f"`{spec.name}` was converted from {array.dtype} to {spec.dtype}")
    return changed


def check_finite(array: NDArray[Any], place: str) -> None:
    """Refuse NaN and infinity.

    Raises:
        UsageError: there is one.
    """
    import numpy as np

    if "float" in array.dtype.name and not np.isfinite(array).all():
        what = "NaN" if np.isnan(array).any() else "infinity"
        raise UsageError(f"{place} holds {what}", accepted="finite numbers")


def check_shape(array: NDArray[Any], spec: TensorSpec, sizes: dict[str, int], place: str) -> None:
    """Refuse a shape that the input does not take.

    Args:
        array: With its batch axis.
        spec: The input.
        sizes: Of the named dimensions seen so far in this sample; added to.
        place: The file, the row and the input, for messages.

    Raises:
        UsageError: it does not fit, or a named dimension has another size elsewhere.
    """
    found = list(array.shape)
    fits = len(found) == len(spec.shape)
    for size, dim in zip(found, spec.shape, strict=False):
        if dim.size is not None:
            fits = fits and size == dim.size
            continue
        fits = fits and dim.min <= size and (dim.max is None or size <= dim.max)
        if dim.name is not None:
            known = sizes.setdefault(dim.name, size)
            if fits and known != size:
                raise UsageError(
                    f"{place} has {size} for the dimension `{dim.name}`, "
                    f"and another input has {known}"
                )
    if not fits:
        raise UsageError(f"{place} has the shape {found}", accepted=str(spec))


def rows_of(sample: Sample, signature: Signature) -> int:
    """Return how many inferences a sample is: the size of its batch axis."""
    tied = [spec.name for spec in signature.inputs if spec.shape and spec.name in sample]
    if TEXT_KEY in sample and not any(spec.name == TEXT_KEY for spec in signature.inputs):
        tied.insert(0, TEXT_KEY)
    return len(sample[tied[0]]) if tied else 1


def _raw(
    array: NDArray[Any], spec: TensorSpec, recipe: Recipe, place: str, notes: list[str]
) -> NDArray[Any] | None:
    """Return photos or sound as they are before pre-processing; None for the model's own form."""
    import numpy as np

    if spec.name in recipe.images and array.dtype == np.uint8 and array.shape[-1:] == (3,):
        if array.ndim == 3:
            array = array[None]
            notes.append(f"a batch axis was added to `{spec.name}`")
        if array.ndim != 4 or 0 in array.shape:
            raise UsageError(
                f"{place} has the shape {list(array.shape)}", accepted="uint8 [n, height, width, 3]"
            )
        return _contiguous(array)
    if spec.name in recipe.audio and len(spec.shape) > 2 and array.ndim in {1, 2}:
        # A sound has fewer axes than what becomes of it.
        if array.ndim == 1:
            array = array[None]
            notes.append(f"a batch axis was added to `{spec.name}`")
        if array.dtype.kind != "f" or 0 in array.shape:
            raise UsageError(
                f"{place} is {array.dtype} {list(array.shape)}",
                accepted="sound, float32 [n, samples] in -1..1",
            )
        check_finite(array, place)
        if array.dtype != np.float32:
            notes.append(f"`{spec.name}` was converted from {array.dtype} to float32")
        return _contiguous(array.astype(np.float32))
    return None


def _tie_batch(array: NDArray[Any], spec: TensorSpec, sizes: dict[str, int], place: str) -> None:
    batch = spec.shape[0] if spec.shape else None
    if batch is not None and batch.size is None and batch.name is not None:
        known = sizes.setdefault(batch.name, len(array))
        if known != len(array):
            raise UsageError(
                f"{place} has {len(array)} for the dimension `{batch.name}`, "
                f"and another input has {known}"
            )


def _check_rows(sample: Sample, where: str) -> None:
    lengths = {name: len(array) for name, array in sample.items() if array.ndim}
    if len(set(lengths.values())) > 1:
        raise UsageError(
            f"{where} differs in rows: " + ", ".join(f"`{n}` {k}" for n, k in lengths.items())
        )


def _texts(array: NDArray[Any], place: str) -> NDArray[Any]:
    texts = _strings(array, place)
    if texts.ndim == 0:
        texts = texts[None]
    if texts.ndim != 1 or not len(texts):
        raise UsageError(f"{place} has the shape {list(texts.shape)}", accepted="one text per row")
    return texts


def _strings(array: NDArray[Any], place: str) -> NDArray[Any]:
    import numpy as np

    if array.dtype.kind == "S":
        try:
            return np.char.decode(array, "utf-8")
        except UnicodeDecodeError as fault:
            raise UsageError(f"{place} holds bytes that are not UTF-8") from fault
    if array.dtype.kind != "U":
        raise UsageError(f"{place} is {array.dtype}", accepted="strings, dtype `<U` or `S`")
    return array


def _contiguous(array: NDArray[Any]) -> NDArray[Any]:
    import numpy as np

    # A scalar stays one: `ascontiguousarray` would give it an axis. Mapped files become arrays.
    return np.array(array, order="C", copy=True, subok=False)
