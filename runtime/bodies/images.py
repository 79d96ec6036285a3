"""Turns a photo's file into the model's input: sizes first, then pixels, the right way up."""

from __future__ import annotations

from typing import Any, Callable, Dict, Mapping, Union

from ..errors import BadRequest
from ..signature import Signature
from ..tensor import Tensor
from .exif import read_orientation, turn, upright_size

Body = Union[bytes, bytearray]


def open_decoder(
    kind: str, library: str, signature: Signature, model: Mapping[str, Any], most_bytes: int
) -> Callable[[Body], Dict[str, Tensor]]:
    """Return a function from a file of a kind to the model's inputs.

    Args:
        kind: `image/jpeg` or `image/png`.
        library: Path of the library that decodes it.
        signature: The model's; a photo is uint8 [1, height, width, 3].
        model: The manifest's; its `images` names the input.
        most_bytes: The most that the pixels may have.

    Raises:
        ModelFault: the library cannot be loaded.
    """
    name = next(iter(model["images"]))
    if kind == "image/jpeg":
        from . import jpeg

        return PhotoDecoder(
            jpeg.read_header, jpeg.TurboJpeg(library).decode, signature, name, most_bytes
        ).decode
    from . import png

    return PhotoDecoder(
        png.read_header, png.LibPng(library).decode, signature, name, most_bytes
    ).decode


class PhotoDecoder:
    """Decodes photos of one kind for one input.

    Args:
        read_header: Returns size and metadata of a file.
        decode: Returns the pixels of a file and its header.
        signature: The model's.
        name: The input.
        most_bytes: The most that the pixels may have.
    """

    def __init__(
        self,
        read_header: Callable[[bytes], Any],
        decode: Callable[[bytes, Any], bytearray],
        signature: Signature,
        name: str,
        most_bytes: int,
    ) -> None:
        self._read_header = read_header
        self._decode = decode
        self._signature = signature
        self._name = name
        self._most_bytes = most_bytes

    def decode(self, body: Body) -> Dict[str, Tensor]:
        """Return the input that a photo is.

        Raises:
            BadRequest: it is broken, too large, or of a size that the model does not take.
        """
        data = bytes(body)
        header = self._read_header(data)
        orientation = read_orientation(header.exif, header.xmp)
        width, height = upright_size(header.width, header.height, orientation)
        shape = (1, height, width, 3)
        # a few bytes can declare gigabytes: refused before any memory is taken
        if height * width * 3 > self._most_bytes:
            raise BadRequest(
                "the photo has %d × %d pixels" % (width, height),
                413,
                "up to %d pixels are decoded; send a smaller one" % (self._most_bytes // 3),
            )
        self._signature.check_shape(self._name, shape)
        pixels = turn(self._decode(data, header), header.width, header.height, orientation)
        return {self._name: Tensor("uint8", shape, pixels)}
