"""Sounds as `.wav` files, of every form and of none."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np


def wav(
    samples: bytes, *, kind: int = 1, channels: int = 1, rate: int = 16000, bits: int = 16,
    length: int | None = None, extensible: bool = False, before: bytes = b"",
) -> bytes:  # fmt: skip
    frame = channels * bits // 8
    form = struct.pack("<HHIIHH", kind, channels, rate, 0, frame, bits)
    if extensible:
        form = struct.pack("<H", 0xFFFE) + form[2:] + struct.pack("<HHIH", 22, bits, 3, kind)
        form += bytes(14)
    head = b"RIFF" + struct.pack("<I", 36 + len(samples)) + b"WAVE" + before
    head += b"fmt " + struct.pack("<I", len(form)) + form
    return head + b"data" + struct.pack("<I", len(samples) if length is None else length) + samples


def encoded(values: np.ndarray[Any, Any], kind: int, bits: int) -> bytes:
    if kind == 3:
        return values.astype("<f4" if bits == 32 else "<f8").tobytes()
    if bits == 8:
        return (np.round(values * 127) + 128).astype(np.uint8).tobytes()
    whole = np.round(values * (2 ** (bits - 1) - 1)).astype("<i8")
    return b"".join(int(value).to_bytes(bits // 8, "little", signed=True) for value in whole)


def noise(count: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(5).uniform(-1, 1, count)
