"""Reads samples from a folder of photos, sounds, `.npy` or `.npz` files."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

from packager.data._arrays import check_shape, fit_sample
from packager.data._files import files_below
from packager.data._folder_labels import LABELS_NPY, folder_labels
from packager.data._labels import take_label
from packager.data._npz import read_array, read_arrays
from packager.data._photos import PHOTO_SUFFIXES, decode_image, is_photo
from packager.data._sounds import add_sounds
from packager.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from packager.data._gather import Gathering
    from packager.data._samples import Samples
    from packager.model import Signature, TensorSpec
    from packager.recipe import Recipe

    Sample = dict[str, NDArray[Any]]

_NOUNS: Final = {"photos": "photo", "npz": "`.npz` file", "npy": "`.npy` file", "wav": "sound"}


def load_folder(folder: Path, gathering: Gathering) -> Samples:
    """Read every photo, sound, or file of arrays below a folder.

    Raises:
        InputOutputError: the folder or a file cannot be read.
        UsageError: no samples, mixed kinds, or a sample that does not fit; names the file.
    """
    files = files_below(folder)
    by_kind: dict[str, list[Path]] = {kind: [] for kind in _NOUNS}
    for path in files:
        kind = _kind(path.suffix.lower())
        if kind is not None and path != folder / LABELS_NPY:
            by_kind[kind].append(path)
    held = {kind: paths for kind, paths in by_kind.items() if paths}
    accepted = (
        "photos (" + ", ".join(PHOTO_SUFFIXES) + "), `.wav` files, `.npy` files, or `.npz` files "
        "with one array per input name"
    )
    if not held:
        others = f"{len(files)} other file{'' if len(files) == 1 else 's'}"
        found = f"no samples, only {others}" if files else "nothing"
        raise UsageError(f"`{folder}` holds {found}", accepted=accepted)
    if len(held) > 1:
        raise UsageError(
            f"`{folder}` mixes "
            + " with ".join(_counted(len(paths), kind) for kind, paths in held.items()),
            accepted="a folder of one kind",
        )
    ((kind, paths),) = held.items()
    if kind == "wav":
        labels = _labels(folder, paths, gathering)
        return add_sounds(paths, folder, labels, gathering)
    if kind == "photos":
        _add_photos(paths, folder, gathering)
    else:
        _add_arrays(paths, folder, kind, gathering)
    if kind != "npz":
        gathering.label_all(_labels(folder, paths, gathering))
    return gathering.finish(kind=kind, origin=_counted(len(paths), kind), noun="files")


def read_npz(path: Path, signature: Signature, recipe: Recipe) -> tuple[Sample, tuple[str, ...]]:
    """Return one request from a `.npz` file, fitted to the signature, and what was converted.

    A label in it is passed over.

    Raises:
        InputOutputError: the file is missing or cannot be read.
        UsageError: it does not fit the signature.
    """
    sample, _, notes = _read_labelled_npz(path, signature, recipe)
    return sample, notes


def read_npy(path: Path, signature: Signature, recipe: Recipe) -> tuple[Sample, tuple[str, ...]]:
    """Return one request from a `.npy` file, for a model with one input.

    Raises:
        InputOutputError: the file is missing or cannot be read.
        UsageError: it does not fit the signature.
    """
    notes: list[str] = []
    name = only_input(signature, path)
    sample = fit_sample({name: read_array(path)}, signature, recipe, f"`{path}`", notes)
    return sample, tuple(notes)


def read_photo(path: Path, spec: TensorSpec) -> Sample:
    """Return one request from a photo.

    Raises:
        InputOutputError: the file is missing or cannot be read.
        UsageError: it is no photo, or not of the size that a model wants that takes photos itself.
    """
    sample = {spec.name: decode_image(path)}
    if is_photo(spec):
        check_shape(sample[spec.name], spec, {}, f"`{path}`: `{spec.name}`")
    return sample


def only_input(signature: Signature, path: Path) -> str:
    """Return the one input's name.

    Raises:
        UsageError: there are several, or none.
    """
    if len(signature.inputs) != 1:
        raise UsageError(
            f"`{path}` holds one array, and the model has {len(signature.inputs)} inputs",
            accepted="`.npz` files with one array per input name: "
            + ", ".join(f"`{spec.name}`" for spec in signature.inputs),
        )
    return signature.inputs[0].name


def photo_input(path: Path, signature: Signature, recipe: Recipe) -> TensorSpec:
    """Return the input that a photo fills.

    Raises:
        UsageError: there is none, or the model has other inputs too.
    """
    photos = [spec for spec in signature.inputs if spec.name in recipe.images or is_photo(spec)]
    if not photos:
        name = signature.inputs[0].name if signature.inputs else "NAME"
        raise UsageError(
            f"`{path}` holds photos, but the model has no image input",
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


def _add_photos(paths: list[Path], folder: Path, gathering: Gathering) -> None:
    spec = photo_input(folder, gathering.signature, gathering.recipe)
    for path in paths:
        load = partial(read_photo, path, spec)
        gathering.add(load(), load, name=path.relative_to(folder).as_posix())


def _add_arrays(paths: list[Path], folder: Path, kind: str, gathering: Gathering) -> None:
    signature, recipe = gathering.signature, gathering.recipe
    read = _read_labelled_npz if kind == "npz" else _read_unlabelled_npy
    for path in paths:
        sample, label, changes = read(path, signature, recipe)
        load = partial(_sample_alone, read, path, signature, recipe)
        name = path.relative_to(folder).as_posix()
        gathering.add(sample, load, name=name, label=label, changes=changes)


def _read_labelled_npz(
    path: Path, signature: Signature, recipe: Recipe
) -> tuple[Sample, Any, tuple[str, ...]]:
    notes: list[str] = []
    arrays = read_arrays(path)
    label = take_label(arrays, signature, recipe)
    return fit_sample(arrays, signature, recipe, f"`{path}`", notes), label, tuple(notes)


def _read_unlabelled_npy(
    path: Path, signature: Signature, recipe: Recipe
) -> tuple[Sample, Any, tuple[str, ...]]:
    sample, notes = read_npy(path, signature, recipe)
    return sample, None, notes


def _sample_alone(read: Any, path: Path, signature: Signature, recipe: Recipe) -> Sample:
    sample: Sample = read(path, signature, recipe)[0]
    return sample


def _labels(folder: Path, paths: list[Path], gathering: Gathering) -> list[Any] | None:
    try:
        return folder_labels(folder, paths, gathering.recipe.label, gathering.classes)
    except UsageError as fault:
        if gathering.labelled:
            raise
        gathering.note(f"labels were left out: {fault.message}")
        return None


def _kind(suffix: str) -> str | None:
    if suffix in PHOTO_SUFFIXES:
        return "photos"
    return suffix[1:] if suffix in {".npz", ".npy", ".wav"} else None


def _counted(count: int, kind: str) -> str:
    return f"{count} {_NOUNS[kind]}{'' if count == 1 else 's'}"
