"""Whatever is damaged in a file, the answer is a refusal in plain words."""

from __future__ import annotations

import io
import random
import struct
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from packager.errors import InputOutputError, UsageError
from packager.recipe import AudioInput

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_TRIES = 120


def content_of(kind: str) -> bytes:
    stream = io.BytesIO()
    if kind == "npz":
        np.savez_compressed(stream, x=np.arange(6, dtype=np.float32).reshape(2, 3), label=[1, 2])
    elif kind == "npy":
        np.save(stream, np.arange(6, dtype=np.float32).reshape(2, 3))
    elif kind == "parquet":
        rows = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]
        pq.write_table(pa.table({"x": rows, "label": [1, 0]}), stream)
    elif kind == "wav":
        head = struct.pack("<HHIIHH", 1, 2, 8000, 32000, 4, 16)
        body = b"WAVEfmt " + struct.pack("<I", 16) + head + b"data" + struct.pack("<I", 40)
        stream.write(b"RIFF" + struct.pack("<I", 76) + body + bytes(range(40)))
    else:
        stream.write(b'x.0,x.1,x.2,label\n1,2,3,0\n4,5,6,"1"\n')
    return stream.getvalue()


def damaged(content: bytes, draw: random.Random) -> bytes:
    data = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 4))):
        place = draw.randrange(len(data))
        what = draw.random()
        if what < 0.6:
            data[place] = draw.randrange(256)
        elif what < 0.8:
            data = data[: place + 1]
        else:
            data[place:place] = draw.randbytes(draw.randrange(1, 5))
    return bytes(data)


@pytest.mark.parametrize("kind", ["npz", "npy", "csv", "parquet", "wav"])
def test_a_damaged_file_is_read_or_refused(
    tmp_path: Path, load: Callable, make_spec: Callable, kind: str
) -> None:
    draw, content = random.Random(20), content_of(kind)
    audio = {"x": AudioInput(sample_rate=8000, window=3)} if kind == "wav" else {}
    path = tmp_path / f"a.{kind}"
    source = tmp_path if kind == "wav" else path
    said = []
    for turn in range(_TRIES):
        path.write_bytes(damaged(content, draw))
        try:
            load(source, make_spec("x", "float32", 3), labelled=bool(turn % 2), audio=audio)
        except (UsageError, InputOutputError) as fault:
            said.append(fault.message)
    assert len(said) > _TRIES // 4
    assert [text for text in said if source.name not in text] == []


@pytest.mark.parametrize(
    "header",
    [
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (-2, 3)}",
        b"{'descr': 'nonsense', 'fortran_order': False, 'shape': (2, 3)}",
        b"(((((((((((",
        b"",
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_header_that_is_none_is_refused(
    tmp_path: Path, load: Callable, make_spec: Callable, header: bytes, *, packed: bool
) -> None:
    content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(24)
    path: Any = tmp_path / "a.npy"
    if packed:
        path = tmp_path / "a.npz"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x.npy", content)
    else:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=r"is not a readable `.np[yz]` file"):
        load(path, make_spec("x", "float32", 3))
