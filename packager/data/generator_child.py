"""Runs a user's generator in a child process and writes each sample as a `.npz` file."""

from __future__ import annotations

import importlib.util
import json
import sys
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_REFUSED: Final = 3
_LABEL: Final = "label"


class _Refused(Exception):  # noqa: N818 - what the parent tells the user
    """The generator cannot be used; the message says why."""


def _child(arguments: Sequence[str]) -> int:
    file, function, folder, most, disk_mib = arguments
    try:
        _write_all(Path(file), function, Path(folder), int(most), int(disk_mib))
    except _Refused as fault:
        sys.stderr.write(f"{fault}\n")
        return _REFUSED
    return 0


def _write_all(file: Path, function: str, folder: Path, most: int, disk_mib: int) -> None:
    word = f"{file.name}:{function}"
    left = disk_mib << 20
    for index, item in enumerate(_call(_find(file, function), word)):
        if index == most:
            raise _Refused(f"`{word}` yields more than {most} samples")
        left -= _write(folder, index, item, f"sample {index} of `{word}`")
        if left < 0:
            raise _Refused(f"`{word}` yields more than {disk_mib} MiB")


def _find(file: Path, function: str) -> Any:
    spec = importlib.util.spec_from_file_location("edgepack_generator", file)
    if spec is None or spec.loader is None:
        raise _Refused(f"`{file.name}` is no Python file")
    module = importlib.util.module_from_spec(spec)
    # Classes that the generator defines are looked up by their module's name.
    sys.modules[spec.name] = module
    sys.path.insert(0, str(file.resolve().parent))
    spec.loader.exec_module(module)
    found = getattr(module, function, None)
    if not callable(found):
        raise _Refused(f"`{file.name}` has no function `{function}`")
    return found


def _call(generator: Any, word: str) -> Iterable[Any]:
    found = generator()
    if isinstance(found, Mapping | str | bytes) or not isinstance(found, Iterable):
        raise _Refused(f"`{word}` returns {type(found).__name__}, not samples one after the other")
    return found


def _write(folder: Path, index: int, item: Any, where: str) -> int:
    """Write one sample and return its size in bytes."""
    import numpy as np

    labelled = isinstance(item, tuple)
    if labelled and len(item) != 2:
        raise _Refused(f"{where} is a tuple of {len(item)}, not (dict, label)")
    sample, label = item if labelled else (item, None)
    if not isinstance(sample, Mapping):
        raise _Refused(f"{where} is {type(sample).__name__}, not a dict of arrays by input name")
    arrays = {str(name): _array(value, f"{where}: `{name}`") for name, value in sample.items()}
    keys: dict[str, str] = {}
    parts = label if isinstance(label, Mapping) else {_LABEL: label}
    for key, value in parts.items() if label is not None else ():
        name = f"{_LABEL} {key}"
        while name in arrays:
            name += "_"
        arrays[name] = _array(value, f"the label of {where}")
        keys[str(key)] = name
    path = folder / f"{index:06}.npz"
    # Written member by member: `numpy.savez` takes names as keywords, and some are its own.
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
    path.with_suffix(".json").write_text(json.dumps(keys), encoding="utf-8")
    return path.stat().st_size


def _array(value: Any, where: str) -> NDArray[Any]:
    import numpy as np

    if hasattr(value, "detach"):  # a tensor of torch
        value = value.detach().cpu()
        # torch gives numpy no bfloat16; float32 holds every number of it.
        value = (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()
    try:
        array = np.asarray(value)
    except ValueError as fault:
        raise _Refused(f"{where} is no array: {fault}") from fault
    if array.dtype.hasobject:
        raise _Refused(f"{where} holds objects ({type(value).__name__}), not numbers or texts")
    return array


if __name__ == "__main__":
    sys.exit(_child(sys.argv[1:]))
