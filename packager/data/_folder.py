"""Reads samples from a folder of photos or of `.npz` files, checking each against the signature."""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from packager.data._samples import Samples
from packager.errors import InputOutputError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from packager.model import Signature, TensorSpec
    from packager.recipe import ImageInput

    Sample = dict[str, NDArray[Any]]

PHOTO_SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


def load_folder(folder: Path, signature: Signature, images: Mapping[str, ImageInput]) -> Samples:
    """Read every photo, or every `.npz` file, below a folder and check it against the signature.

    Each file is read and checked once here, so that a bad one is found before any long work; later
    uses read it again, and memory holds one sample at a time. Hidden files are passed over.

    Args:
        folder: Photos (one sample each, uint8 [1, height, width, 3]) or `.npz` files (one request
            each, one array per input name). An image input takes uint8 [n, height, width, 3] in a
            `.npz` too, or the array that the model itself takes.
        signature: Of the model, before any pre-processing is attached.
        images: The recipe's image inputs by input name.

    Raises:
        InputOutputError: the folder or a file is missing, or cannot be read.
        UsageError: no samples, mixed kinds, or a sample that does not fit; names the file.
    """
    files = _files_below(folder)
    photos = [path for path in files if path.suffix.lower() in PHOTO_SUFFIXES]
    archives = [path for path in files if path.suffix.lower() == ".npz"]
    if photos and archives:
        raise UsageError(
            f"`{folder}` mixes {len(photos)} photos with {len(archives)} `.npz` files",
            accepted="a folder of one kind",
        )
    if not photos and not archives:
        found = f"{len(files)} other files" if files else "nothing"
        raise UsageError(
            f"`{folder}` holds no samples but {found}",
            accepted="photos (" + ", ".join(PHOTO_SUFFIXES) + ") or `.npz` files with one array "
            "per input name",
        )
    notes: dict[str, int] = {}
    lines: list[str] = []
    digests: list[str] = []
    loaders: list[Callable[[], Sample]] = []
    photo_input = _photo_input(folder, signature, images) if photos else None
    for path in photos or archives:
        content = _read_bytes(path)
        relative = path.relative_to(folder).as_posix()
        digests.append(hashlib.sha256(content).hexdigest())
        lines.append(f"{digests[-1]}  {relative}\n")
        load: Callable[[], Sample]
        if photo_input is not None:
            load = _photo_loader(path, photo_input)
            sample = {photo_input.name: _decode(content, path)}
        else:
            load = _npz_loader(path, signature, images)
            sample, changes = _parse_npz(content, path, signature, images)
            for change in changes:
                notes[change] = notes.get(change, 0) + 1
        _check_photo(sample, photo_input, path)
        loaders.append(load)
    kind = "photos" if photos else "npz"
    noun = "photo" if photos else "`.npz` file"
    return Samples(
        loaders,
        digest=hashlib.sha256("".join(lines).encode()).hexdigest(),
        origin=f"{len(loaders)} {noun}{'' if len(loaders) == 1 else 's'}",
        kind=kind,
        notes=tuple(f"{text} in {count} of {len(loaders)} files" for text, count in notes.items()),
        names=[path.relative_to(folder).as_posix() for path in photos or archives],
        contents=digests,
    )


def decode_image(path: Path) -> NDArray[Any]:
    """Return a photo as uint8 [1, height, width, 3], RGB, upright as its Exif tag says.

    Raises:
        InputOutputError: the file is missing or cannot be read.
        UsageError: it is no photo that can be decoded.
    """
    return _decode(_read_bytes(path), path)


def read_npz(
    path: Path, signature: Signature, images: Mapping[str, ImageInput]
) -> tuple[Sample, tuple[str, ...]]:
    """Return one request from a `.npz` file, fitted to the signature, and what was converted.

    Raises:
        InputOutputError: the file is missing or cannot be read.
        UsageError: it does not fit the signature.
    """
    return _parse_npz(_read_bytes(path), path, signature, images)


def is_photo(spec: TensorSpec) -> bool:
    """Tell whether an input is a batch of RGB photos: uint8 [batch, height, width, 3]."""
    return spec.dtype == "uint8" and len(spec.shape) == 4 and spec.shape[3].size == 3


def _files_below(folder: Path) -> list[Path]:
    if not folder.exists():
        raise InputOutputError(f"the folder `{folder}` does not exist")
    if not folder.is_dir():
        raise UsageError(
            f"`{folder}` is not a folder", accepted="a folder of photos or of `.npz` files"
        )

    def refuse(fault: OSError) -> None:
        raise InputOutputError(f"`{fault.filename}` cannot be read: {fault.strerror}") from fault

    found: list[Path] = []
    for base, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(base) / name for name in names if not name.startswith(".")]
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as fault:
        raise InputOutputError(f"`{path}` cannot be read: {fault.strerror}") from fault


def _photo_input(
    folder: Path, signature: Signature, images: Mapping[str, ImageInput]
) -> TensorSpec:
    photos = [spec for spec in signature.inputs if spec.name in images or is_photo(spec)]
    if not photos:
        name = signature.inputs[0].name if signature.inputs else "NAME"
        raise UsageError(
            f"`{folder}` holds photos, but the model has no image input",
            accepted="`.npz` files with one array per input name: "
            + ", ".join(f"`{spec}`" for spec in signature.inputs),
            hint=f"declare `[input.{name}.image]` with `size = [height, width]` in the recipe",
        )
    if len(signature.inputs) > 1:
        others = ", ".join(f"`{s.name}`" for s in signature.inputs if s is not photos[0])
        raise UsageError(
            f"photos fill only the input `{photos[0].name}`, and nothing is given for {others}",
            accepted="`.npz` files with one array per input name",
        )
    return photos[0]


def _photo_loader(path: Path, spec: TensorSpec) -> Callable[[], Sample]:
    return lambda: {spec.name: decode_image(path)}


def _npz_loader(
    path: Path, signature: Signature, images: Mapping[str, ImageInput]
) -> Callable[[], Sample]:
    return lambda: read_npz(path, signature, images)[0]


def _check_photo(sample: Sample, spec: TensorSpec | None, path: Path) -> None:
    # A model that takes photos by itself may want one size; a recipe's image input takes any.
    if spec is not None and is_photo(spec):
        _check_shape(sample[spec.name], spec, {}, path)


def _decode(content: bytes, path: Path) -> NDArray[Any]:
    import numpy as np
    from PIL import Image, ImageOps, UnidentifiedImageError

    accepted = "JPEG, PNG, BMP or WebP photos with 8 bits per channel"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content), formats=("JPEG", "PNG", "BMP", "WEBP")) as image:
                if image.mode.startswith(("I", "F")):
                    raise UsageError(
                        f"`{path}` has more than 8 bits per channel (mode {image.mode})",
                        accepted=accepted,
                    )
                pixels = np.asarray(ImageOps.exif_transpose(image).convert("RGB"), dtype=np.uint8)
    except UnidentifiedImageError as fault:
        raise UsageError(f"`{path}` is not a photo", accepted=accepted) from fault
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as fault:
        raise UsageError(f"`{path}` is too large a photo: {fault}", accepted=accepted) from fault
    except (OSError, SyntaxError, ValueError) as fault:
        raise UsageError(f"`{path}` is a broken photo: {fault}", accepted=accepted) from fault
    return np.array(pixels[None], copy=True)


def _parse_npz(
    content: bytes, path: Path, signature: Signature, images: Mapping[str, ImageInput]
) -> tuple[Sample, tuple[str, ...]]:
    import zipfile

    import numpy as np

    if not content.startswith(b"PK"):
        raise UsageError(f"`{path}` is not a readable `.npz` file: it is no zip archive")
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile) as fault:
        if "allow_pickle" in str(fault):
            raise UsageError(
                f"`{path}` holds an object array, which can run code when it is read",
                accepted="arrays of numbers, or of strings with dtype `<U` or `S`",
            ) from fault
        raise UsageError(f"`{path}` is not a readable `.npz` file: {fault}") from fault
    expected = {spec.name: spec for spec in signature.inputs}
    if set(arrays) != set(expected):
        raise UsageError(
            f"`{path}` holds the arrays " + (", ".join(f"`{n}`" for n in arrays) or "(none)"),
            accepted="one array per input: " + ", ".join(f"`{n}`" for n in expected),
        )
    sizes: dict[str, int] = {}
    notes: list[str] = []
    sample: Sample = {}
    for name, spec in expected.items():
        array = arrays[name]
        if name in images and array.dtype == np.uint8 and array.shape[-1:] == (3,):
            if array.ndim == 3:
                array = array[None]
                notes.append(f"a batch axis was added to `{name}`")
            if array.ndim != 4 or 0 in array.shape:
                raise UsageError(
                    f"`{path}`: `{name}` has the shape {list(array.shape)}",
                    accepted="uint8 [n, height, width, 3]",
                )
            sample[name] = array
            continue
        array = _cast(array, spec, path, notes)
        if array.ndim == len(spec.shape) - 1:
            array = array[None]
            notes.append(f"a batch axis was added to `{name}`")
        _check_shape(array, spec, sizes, path)
        sample[name] = np.ascontiguousarray(array)
    return sample, tuple(notes)


def _cast(array: NDArray[Any], spec: TensorSpec, path: Path, notes: list[str]) -> NDArray[Any]:
    import numpy as np

    where = f"`{path}`: `{spec.name}`"
    if spec.dtype == "string":
        if array.dtype.kind == "S":
            try:
                return np.char.decode(array, "utf-8")
            except UnicodeDecodeError as fault:
                raise UsageError(f"{where} holds bytes that are not UTF-8") from fault
        if array.dtype.kind != "U":
            raise UsageError(f"{where} is {array.dtype}", accepted="strings, dtype `<U` or `S`")
        return array
    if spec.dtype == "bfloat16":
        raise UsageError(
            f"{where} should be bfloat16, which `.npz` files cannot hold",
            hint="export the model with a float32 input",
        )
    if array.dtype.kind not in "biuf":
        raise UsageError(f"{where} is {array.dtype}", accepted=spec.dtype)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        what = "NaN" if np.isnan(array).any() else "infinity"
        raise UsageError(f"{where} holds {what}", accepted="finite numbers")
    wanted = np.dtype(spec.dtype)
    if array.dtype == wanted:
        return array
    with np.errstate(over="ignore", invalid="ignore"):
        cast = array.astype(wanted)
    both_float = array.dtype.kind == "f" and wanted.kind == "f"
    exact = array.dtype.kind in "biu" and np.array_equal(cast, array)
    if wanted.kind == "b" or not (exact or (both_float and np.isfinite(cast).all())):
        raise UsageError(f"{where} is {array.dtype}", accepted=spec.dtype)
    notes.append(f"`{spec.name}` was converted from {array.dtype} to {spec.dtype}")
    return cast


def _check_shape(array: NDArray[Any], spec: TensorSpec, sizes: dict[str, int], path: Path) -> None:
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
                    f"`{path}`: `{spec.name}` has {size} for the dimension `{dim.name}`, "
                    f"and another input has {known}"
                )
    if not fits:
        raise UsageError(f"`{path}`: `{spec.name}` has the shape {found}", accepted=str(spec))
