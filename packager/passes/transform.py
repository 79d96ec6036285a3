"""Compares the compiled image pre-processing with the transform that the model was trained with."""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from packager.errors import UsageError
from packager.passes.photo import preprocess_session
from packager.process import Limits, describe, python_argv, run

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from packager.recipe import ImageInput

_MOST_PHOTOS: Final = 16
_TIMEOUT_S: Final = 300.0
_MEMORY_MIB: Final = 16 << 10
_REFUSED: Final = 3


def check_image_parity(
    image: ImageInput, photos: Iterable[Mapping[str, NDArray[Any]]]
) -> dict[str, Any]:
    """Run the recipe's `transform` on photos, in a child process, and compare.

    The transform is called as `function(photo)` with an RGB `PIL.Image` and returns the model's
    input without the batch axis, as an array or a tensor.

    Args:
        image: With `transform` as `file.py:function`.
        photos: Samples with one array, uint8 [1, height, width, 3]; the first 16 are compared.

    Returns:
        `photos`: how many; `max_abs`: the largest difference of any value, in the model's unit;
        `grey_levels`: the same in steps of an 8-bit channel (1 is a rounding of the resize).

    Raises:
        UsageError: there is no such function, it fails, or its result has another shape.
    """
    import numpy as np

    file, _, function = (image.transform or "").rpartition(":")
    if not file or not Path(file).is_file():
        raise UsageError(f"`{image.transform}` names no transform", accepted="`file.py:function`")
    compiled = preprocess_session(image)
    # One grey level is 1/255 where the values are scaled, and then divided by std.
    levels = np.abs(np.asarray(image.std, np.float64)) * (255.0 if image.scale else 1.0)
    worst, worst_levels, count = 0.0, 0.0, 0
    with tempfile.TemporaryDirectory() as folder:
        shown = []
        for sample in islice(photos, _MOST_PHOTOS):
            (array,) = sample.values()
            shown.append(array)
        source, out = Path(folder, "photos.npz"), Path(folder, "transformed.npz")
        np.savez(source, *shown)
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
            for array, name in zip(shown, results.files, strict=True):
                wanted, ours = results[name], compiled(array)[0]
                if wanted.shape != ours.shape:
                    raise UsageError(
                        f"the transform `{Path(file).name}:{function}` makes {list(wanted.shape)}",
                        accepted=f"{list(ours.shape)}, as `size` and `layout` say",
                    )
                difference = np.abs(ours.astype(np.float64) - wanted)
                channels_last = (
                    difference if image.layout == "nhwc" else np.moveaxis(difference, 0, -1)
                )
                worst = max(worst, float(difference.max()))
                worst_levels = max(worst_levels, float((channels_last * levels).max()))
                count += 1
    return {"photos": count, "max_abs": worst, "grey_levels": worst_levels}


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
    with np.load(source, allow_pickle=False) as photos:
        for name in photos.files:
            value = transform(Image.fromarray(photos[name][0]))
            value = value.detach().numpy() if hasattr(value, "detach") else value
            results.append(np.asarray(value, dtype=np.float64))
    with Path(out).open("wb") as stream:
        np.savez(stream, *results)
    return 0


if __name__ == "__main__":
    sys.exit(_child(sys.argv[1:]))
