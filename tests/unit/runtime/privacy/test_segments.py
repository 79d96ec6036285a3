"""Segments: what was written comes back, and no change of them goes unnoticed."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest

from runtime.errors import IntegrityFault
from runtime.privacy.records import REQUEST, Record, copy_tensors, pack_record, unpack_record
from runtime.privacy.segments import SegmentReader, SegmentWriter
from runtime.tensor import Tensor

if TYPE_CHECKING:
    from pathlib import Path

KEY = bytes(range(32))
RECORDS = [b"first record", b"", b"x" * 70_000]


def written(path: Path, *, close: bool = True) -> Path:
    writer = SegmentWriter(str(path), {"created": 5, "number": 0}, KEY)
    for record in RECORDS:
        writer.append(record)
    assert writer.records == len(RECORDS)
    if close:
        writer.close()
    assert writer.size == path.stat().st_size
    return path


def read(path: Path, key: bytes = KEY) -> tuple[list[bytes], bool]:
    with SegmentReader(str(path)) as reader:
        records = list(reader.read(key))
        return records, reader.is_closed


def test_records_come_back_in_order(tmp_path: Path) -> None:
    path = written(tmp_path / "s")
    assert read(path) == (RECORDS, True)
    with SegmentReader(str(path)) as reader:
        assert reader.head == {"created": 5, "number": 0}
    assert path.stat().st_mode & 0o777 == 0o600
    assert b"first" not in path.read_bytes()


def test_two_segments_of_the_same_records_share_no_ciphertext(tmp_path: Path) -> None:
    one, other = written(tmp_path / "a").read_bytes(), written(tmp_path / "b").read_bytes()
    assert len(one) == len(other)
    assert one[-200:] != other[-200:]


def test_a_segment_that_was_cut_off_gives_what_is_whole(tmp_path: Path) -> None:
    path = written(tmp_path / "s", close=False)
    assert read(path) == (RECORDS, False)
    data = path.read_bytes()
    with SegmentReader(str(path)) as reader:
        start = reader.key_offset + 60
    for end in range(start, start + 60):
        path.write_bytes(data[:end])
        records, closed = read(path)
        assert (records, closed) == (RECORDS[: len(records)], False)


def test_a_change_of_any_byte_is_noticed(tmp_path: Path) -> None:
    writer = SegmentWriter(str(tmp_path / "s"), {"created": 5}, KEY)
    writer.append(b"one")
    writer.append(b"two")
    writer.close()
    data = (tmp_path / "s").read_bytes()
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 0x40
        (tmp_path / "s").write_bytes(changed)
        try:
            records, closed = read(tmp_path / "s")
        except IntegrityFault:
            continue
        # a length that now runs past the end reads as a segment that was cut off: never as whole
        assert not closed, place
        assert records == [b"one", b"two"][: len(records)]


def test_records_cannot_change_places_nor_segments(tmp_path: Path) -> None:
    def chunks(name: str) -> tuple[bytes, list[bytes]]:
        writer = SegmentWriter(str(tmp_path / name), {"created": 5}, KEY)
        sizes = [writer.size]
        for record in (b"one", b"two"):
            writer.append(record)
            sizes.append(writer.size)
        writer.close()
        data = (tmp_path / name).read_bytes()
        cuts = [*sizes, len(data)]
        return data[: cuts[0]], [data[a:b] for a, b in itertools.pairwise(cuts)]

    head, (one, two, end) = chunks("a")
    _, (foreign, *_) = chunks("b")
    for parts in ((two, one, end), (one, one, end), (two, end), (one, end), (foreign, two, end)):
        (tmp_path / "c").write_bytes(head + b"".join(parts))
        with pytest.raises(IntegrityFault, match="damaged at record"):
            read(tmp_path / "c")
    (tmp_path / "c").write_bytes(head + one + two + end + one)
    with pytest.raises(IntegrityFault, match="goes on behind its end"):
        read(tmp_path / "c")


def test_another_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IntegrityFault, match="encrypted with another key, or changed"):
        read(written(tmp_path / "s"), KEY[::-1])


def test_once_its_own_key_is_overwritten_nobody_reads_it(tmp_path: Path) -> None:
    path = written(tmp_path / "s")
    with SegmentReader(str(path)) as reader:
        offset = reader.key_offset
    data = bytearray(path.read_bytes())
    data[offset : offset + 60] = bytes(60)
    path.write_bytes(data)
    with pytest.raises(IntegrityFault):
        read(path)


@pytest.mark.parametrize(
    "content", [b"", b"EPKEEP1", b"PK\3\4" + b"x" * 100, b"EPKEEP1\n\xff\xff\xff\xff{}"]
)
def test_other_files_are_no_segments(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "s").write_bytes(content)
    with pytest.raises(IntegrityFault, match=r"is no segment|is damaged"):
        SegmentReader(str(tmp_path / "s"))


def test_a_record_keeps_every_type_of_tensor() -> None:
    record = Record(
        REQUEST,
        {"time": 1.5, "id": "7", "request": "ü", "engine": "e"},
        {
            "x": Tensor("float32", (1, 2), b"\0\0\x80?\0\0\0@"),
            "s": Tensor("string", (2,), [b"", "grün".encode()]),
            "h": Tensor("bfloat16", (0,), b""),
        },
        {"y": Tensor("int64", (), (7).to_bytes(8, "little"))},
    )
    assert unpack_record(pack_record(record)) == record


@pytest.mark.parametrize("cut", [0, 3, 10, -1])
def test_a_damaged_record_is_refused(cut: int) -> None:
    data = pack_record(Record(REQUEST, {}, {"x": Tensor("uint8", (4,), b"abcd")}, {}))
    with pytest.raises(IntegrityFault, match="record is damaged"):
        unpack_record(data[:cut])


def test_copies_are_taken_and_masked_inputs_are_not() -> None:
    lent = bytearray(b"ab")
    feeds = {"x": Tensor("uint8", (2,), memoryview(lent)), "name": Tensor("string", (1,), [b"Ann"])}
    kept = copy_tensors(feeds, frozenset(["name"]))
    lent[0] = 0
    assert list(kept) == ["x"]
    assert kept["x"].data == b"ab"
