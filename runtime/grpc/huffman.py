"""The Huffman code of header strings (RFC 7541, section 5.2 and appendix B), decoding only."""

from __future__ import annotations

from bisect import bisect_right
from typing import List, Tuple

# Bits of each symbol's code, 0 to 255 and the end mark. The code is canonical: codes of one length
# follow each other in the order of their symbols, so that the lengths tell everything.
_LENGTHS = (
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28,
    28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6,
    5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5,
    6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23,
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23,
    21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25,
    19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23,
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
    30,
)  # fmt: skip
_END = 256
_WIDEST = 30
_ONES = (1 << _WIDEST) - 1


def _tables() -> Tuple[List[int], List[Tuple[int, int]]]:
    """Return each code moved to the left of 30 bits, ascending, and its length and symbol."""
    firsts: List[int] = []
    entries: List[Tuple[int, int]] = []
    code = 0
    for symbol in sorted(range(_END + 1), key=lambda symbol: (_LENGTHS[symbol], symbol)):
        length = _LENGTHS[symbol]
        firsts.append(code)
        entries.append((length, symbol))
        code += 1 << (_WIDEST - length)
    return firsts, entries


_FIRSTS, _ENTRIES = _tables()


def decode(data: bytes) -> bytes:
    """Return the string that `data` encodes.

    Raises:
        ValueError: an end mark inside, or padding that is not the begin of one, or too long.
    """
    out = bytearray()
    value = bits = at = 0
    size = len(data)
    while True:
        while bits < _WIDEST and at < size:
            value = value << 8 | data[at]
            bits += 8
            at += 1
        missing = _WIDEST - bits
        window = value << missing | (1 << missing) - 1 if missing > 0 else value >> -missing
        length, symbol = _ENTRIES[bisect_right(_FIRSTS, window) - 1]
        if symbol == _END or length > bits:
            break
        out.append(symbol)
        bits -= length
        value &= (1 << bits) - 1
    if symbol != _END or bits >= 8 or window != _ONES:
        raise ValueError("a header string is not in the Huffman code")
    return bytes(out)
