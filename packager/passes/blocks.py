"""Quantizes weights in blocks along their inputs, in the layout of ONNX Runtime's operators."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Rows are taken in parts of this many elements, so that a large weight needs little memory.
_PART_ELEMENTS: Final = 4 << 20
# With 4 bits a block does better without its largest value at full length.
_SHRINKS: Final = (0.96, 0.92, 0.88, 0.84, 0.8, 0.76)


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """A weight in blocks: `real = scale * (quantized - zero)`.

    Attributes:
        packed: uint8 [rows, blocks, block * bits / 8]; of 4-bit values the first is the low half.
        scales: float32 [rows, blocks].
        zeros: uint8 [rows, blocks], two to a byte with 4 bits; None for the middle, 8 or 128.
    """

    bits: int
    block: int
    packed: NDArray[Any]
    scales: NDArray[Any]
    zeros: NDArray[Any] | None

    @property
    def nbytes(self) -> int:
        """Return the bytes of all parts."""
        zeros = 0 if self.zeros is None else self.zeros.nbytes
        return int(self.packed.nbytes + self.scales.nbytes + zeros)

    def dequantize(self, inputs: int) -> NDArray[Any]:
        """Return the weight as float32 [rows, inputs]."""
        import numpy as np

        rows, count = self.scales.shape
        values = _unpack(self.packed, self.bits).reshape(rows, count, self.block)
        if self.zeros is None:
            zeros = np.full((rows, count), 1 << (self.bits - 1), np.uint8)
        else:
            zeros = _unpack(self.zeros, self.bits)[:, :count]
        real = (values.astype(np.float32) - zeros[:, :, None]) * self.scales[:, :, None]
        plain: NDArray[Any] = real.reshape(rows, -1)[:, :inputs]
        return plain


def quantize_blocks(rows: NDArray[Any], *, bits: int, block: int, symmetric: bool = True) -> Blocks:
    """Quantize each block of consecutive inputs of each row with a scale of its own.

    Symmetric blocks map their value of largest size to the one integer that has no opposite, as
    ONNX Runtime's own quantizer does, which uses the whole range.

    Args:
        rows: float32 [outputs, inputs]; may be a view on a file.
        bits: 4 or 8.
        block: Inputs per scale: a power of two, at least 16.
        symmetric: Zero lies in the middle; else where the block's values need it.
    """
    import numpy as np

    outputs, inputs = rows.shape
    count = -(-inputs // block)
    packed = np.empty((outputs, count, block * bits // 8), np.uint8)
    scales = np.empty((outputs, count), np.float32)
    zeros = None if symmetric else np.empty((outputs, count), np.uint8)
    step = max(_PART_ELEMENTS // (count * block), 1)
    for begin in range(0, outputs, step):
        end = min(begin + step, outputs)
        padded = np.zeros((end - begin, count * block), np.float32)
        padded[:, :inputs] = rows[begin:end]
        part = padded.reshape(end - begin, count, block)
        if zeros is None:
            values, scales[begin:end] = _symmetric(part, bits)
        else:
            values, scales[begin:end], zeros[begin:end] = _asymmetric(part, bits)
        packed[begin:end] = _pack(values, bits)
    if zeros is not None:
        zeros = _pack(zeros, bits)
    return Blocks(bits=bits, block=block, packed=packed, scales=scales, zeros=zeros)


def _symmetric(part: NDArray[Any], bits: int) -> tuple[NDArray[Any], NDArray[Any]]:
    import numpy as np

    half = 1 << (bits - 1)
    place = np.abs(part).argmax(axis=2)[..., None]
    full = np.take_along_axis(part, place, axis=2)[..., 0] / np.float32(-half)
    values = _steps(part, full, half)
    if bits == 8:
        return (values + half).astype(np.uint8), full
    scale, error = full, np.square(part - values * full[..., None]).sum(axis=2)
    for shrink in _SHRINKS:
        tried = full * np.float32(shrink)
        steps = _steps(part, tried, half)
        left = np.square(part - steps * tried[..., None]).sum(axis=2)
        better = left < error
        values = np.where(better[..., None], steps, values)
        scale, error = np.where(better, tried, scale), np.where(better, left, error)
    return (values + half).astype(np.uint8), scale


def _steps(part: NDArray[Any], scale: NDArray[Any], half: int) -> NDArray[Any]:
    import numpy as np

    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0)
    steps: NDArray[Any] = np.clip(np.rint(part * inverse[..., None]), -half, half - 1)
    return steps


def _asymmetric(part: NDArray[Any], bits: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    import numpy as np

    most = (1 << bits) - 1
    low, high = np.minimum(part.min(axis=2), 0), np.maximum(part.max(axis=2), 0)
    scale = ((high - low) / np.float32(most)).astype(np.float32)
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0)
    zero = np.clip(np.rint(-low * inverse), 0, most)
    values = np.clip(np.rint(part * inverse[..., None]) + zero[..., None], 0, most)
    return values.astype(np.uint8), scale, zero.astype(np.uint8)


def _pack(values: NDArray[Any], bits: int) -> NDArray[Any]:
    import numpy as np

    if bits == 8:
        return values
    if values.shape[-1] % 2:
        values = np.concatenate([values, np.zeros_like(values[..., :1])], axis=-1)
    packed: NDArray[Any] = values[..., 0::2] | (values[..., 1::2] << 4)
    return packed


def _unpack(packed: NDArray[Any], bits: int) -> NDArray[Any]:
    import numpy as np

    if bits == 8:
        return packed
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)
