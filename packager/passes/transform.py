"""Compares compiled pre-processing with the transform that the model was trained with."""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from packager.errors import UsageError
from packager.process import Limits, describe, python_argv, run
from packager.recipe import AudioInput, ImageInput

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

_TIMEOUT_S: Final = 300.0
_MEMORY_MIB: Final = 16 << 10
_REFUSED: Final = 3


def check_transform(
    settings: ImageInput | AudioInput,
    arrays: Sequence[NDArray[Any]],
    compiled: Callable[[NDArray[Any]], NDArray[Any]],
) -> dict[str, Any]:
    """Run the recipe's `transform` on samples, in a child process, and compare.

    The transform is called with an RGB `PIL.Image`, or with float32 [samples], and returns the
    model's input without the batch axis, as an array or a tensor.

    Args:
        settings: With `transform` as `file.py:function`.
        arrays: uint8 [1, height, width, 3] each, or float32 [1, samples].
        compiled: The pre-processing as the graph has it.

    Returns:
        `samples`: how many; `max_abs`: the largest difference of any value, in the model's unit;
        `relative`: the same as a share of the largest value; for photos `grey_levels`: the same in
        steps of an 8-bit channel (1 is a rounding of the resize).

    Raises:
        UsageError: there is no such function, it fails, or its result has another shape.
    """
    import numpy as np

    file, _, function = (settings.transform or "").rpartition(":")
    if not file or not Path(file).is_file():
        raise UsageError(
            f"`{settings.transform}` names no transform", accepted="`file.py:function`"
        )
    name = f"{Path(file).name}:{function}"
    differences, largest = [], 0.0
    for array, wanted in zip(arrays, _transformed(file, function, arrays), strict=True):
        ours = compiled(array)[0]
        if wanted.shape != ours.shape:
            raise UsageError(
                f"the transform `{name}` makes {list(wanted.shape)}",
                accepted=f"{list(ours.shape)}, as the recipe says",
            )
        differences.append(np.abs(ours.astype(np.float64) - wanted))
        largest = max(largest, float(np.abs(wanted).max(initial=0.0)))
    worst = max((float(d.max(initial=0.0)) for d in differences), default=0.0)
    found = {
        "samples": len(differences),
        "max_abs": worst,
        "relative": worst / largest if largest else worst,
    }
    if isinstance(settings, ImageInput):
        found["grey_levels"] = max((_grey_levels(d, settings) for d in differences), default=0.0)
    return found


def _grey_levels(difference: NDArray[Any], image: ImageInput) -> float:
    """Return the largest difference in steps of an 8-bit channel."""
    import numpy as np

    # One grey level is 1/255 where the values are scaled, and then divided by std.
    levels = np.abs(np.asarray(image.std, np.float64)) * (255.0 if image.scale else 1.0)
    channels_last = difference if image.layout == "nhwc" else np.moveaxis(difference, 0, -1)
    return float((channels_last * levels).max())


def _transformed(file: str, function: str, arrays: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
    import numpy as np

    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder, "samples.npz"), Path(folder, "transformed.npz")
        np.savez(source, *arrays)
        command = python_argv("packager.passes.transform", file, function, source, out)
        done = run(
            command, timeout_s=_TIMEOUT_S, check=False, limits=Limits(memory_mib=_MEMORY_MIB)
        )
        if done.returncode == _REFUSED:
            raise UsageError(done.stderr.strip().splitlines()[-1])
        if done.returncode != 0:
            raise UsageError(
                f"the transform `{Path(file).name}:{function}` failed\n{describe(done)}"
            )
        with np.load(out, allow_pickle=False) as results:
            return [results[name] for name in results.files]


def _child(arguments: Sequence[str]) -> int:
    import numpy as np
    from PIL import Image

    file, function, source, out = arguments
    spec = importlib.util.spec_from_file_location("edgepack_transform", file)
    if spec is None or spec.loader is None:
        sys.stderr.write(f"`{file}` is no Python file\n")
        return _REFUSED
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(Path(file).resolve().parent))
    spec.loader.exec_module(module)
    transform: Any = getattr(module, function, None)
    if not callable(transform):
        sys.stderr.write(f"`{Path(file).name}` has no function `{function}`\n")
        return _REFUSED
    results = []
    with np.load(source, allow_pickle=False) as samples:
        for name in samples.files:
            array = samples[name][0]
            value = transform(Image.fromarray(array) if array.dtype == np.uint8 else array)
            value = value.detach().numpy() if hasattr(value, "detach") else value
            results.append(np.asarray(value, dtype=np.float64))
    with Path(out).open("wb") as stream:
        np.savez(stream, *results)
    return 0


if __name__ == "__main__":
    sys.exit(_child(sys.argv[1:]))
