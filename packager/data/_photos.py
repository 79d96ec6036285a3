"""Decodes photos to pixels."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING, Any, Final

from packager.data._files import PHOTO_BYTES, read_bytes
from packager.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from packager.model import TensorSpec

PHOTO_SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


def decode_image(path: Path) -> NDArray[Any]:
    """Return a photo as uint8 [1, height, width, 3], RGB, upright as its Exif tag says.

    Raises:
        InputOutputError: the file is missing or cannot be read.
        UsageError: it is no photo that can be decoded.
    """
    import numpy as np
    from PIL import Image, ImageOps, UnidentifiedImageError

    content = read_bytes(path, most=PHOTO_BYTES)
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


def is_photo(spec: TensorSpec) -> bool:
    """Tell whether an input is a batch of RGB photos: uint8 [batch, height, width, 3]."""
    return spec.dtype == "uint8" and len(spec.shape) == 4 and spec.shape[3].size == 3
