"""Header compression against the `hpack` library, and against whoever abuses it."""

from __future__ import annotations

import pytest
from hpack import Decoder as OtherDecoder
from hpack import Encoder as OtherEncoder
from hpack.exceptions import HPACKError
from hpack.huffman_table import decode_huffman as other_decode_huffman
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.grpc import hpack, huffman
from runtime.grpc.hpack import Decoder, encode

NAMES = st.sampled_from([b"a", b":path", b"grpc-timeout", b"cookie", b"x" * 90]) | st.binary(
    min_size=1, max_size=40
)
VALUES = st.sampled_from([b"", b"/", b"1999u", b"trailers", b"\xff\x00"]) | st.binary(max_size=300)
BLOCKS = st.lists(st.lists(st.tuples(NAMES, VALUES), max_size=12), max_size=12)


@settings(max_examples=150, deadline=None)
@given(BLOCKS, st.booleans())
def test_reads_every_block_that_the_library_writes(blocks, huffman_coded):
    encoder, decoder = OtherEncoder(), Decoder()
    for fields in blocks:
        block = encoder.encode([(n, v, len(v) % 5 == 4) for n, v in fields], huffman=huffman_coded)
        assert decoder.decode(block) == fields
        assert decoder._used == encoder.header_table._current_size


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(NAMES, VALUES), max_size=12))
def test_the_library_reads_every_block_that_is_written(fields):
    other = OtherDecoder(max_header_list_size=1 << 20)
    assert [tuple(field) for field in other.decode(encode(fields), raw=True)] == fields
    assert len(other.header_table.dynamic_entries) == 0


@settings(max_examples=400, deadline=None)
@given(st.lists(st.sampled_from(b"\x82\x40\x01\x61\x20\x3f\x8f\xbe\x00") | st.integers(0, 255)))
def test_any_bytes_are_a_block_or_not_as_the_library_says(numbers):
    block = bytes(numbers)
    try:
        expected = [tuple(field) for field in OtherDecoder().decode(block, raw=True)]
    except HPACKError:
        expected = None
    try:
        found = Decoder().decode(block)
    except ValueError as error:
        if "size" in str(error):
            return  # the library lets a peer change the table's size any number of times
        found = None
    assert found == expected


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=80))
def test_huffman_reads_any_bytes_as_the_library_does(data):
    try:
        expected = bytes(other_decode_huffman(data))
    except HPACKError:
        with pytest.raises(ValueError, match="Huffman"):
            huffman.decode(data)
    else:
        assert huffman.decode(data) == expected


def test_huffman_refuses_an_end_mark_and_too_much_padding():
    assert huffman.decode(b"") == b""
    for data in (b"\xff", b"\xff" * 4, b"\x07\xff\xff", b"\x00\x00\x00\xfe"):
        with pytest.raises(ValueError, match="not in the Huffman code"):
            huffman.decode(data)


@pytest.mark.parametrize(
    ("block", "said"),
    [
        (b"\x80", "index that does not exist"),
        (b"\xbe", "index that does not exist"),
        (b"\xff\x80\x80\x80\x80\x01", "cut off or too large"),
        (b"\xff\xff\xff\xff\xff\xff\x0f", "cut off or too large"),
        (b"\x40\x0aabc", "cut off"),
        (b"\x00", "cut off"),
        (b"\x00\x01a", "cut off"),
        (b"\x3f\xe2\x1f", "not allowed here"),  # 4097, past what we allow
        (b"\x20\x20\x20", "not allowed here"),
        (b"\x82\x20", "not allowed here"),  # after a field
    ],
)
def test_refuses_a_malformed_block(block, said):
    with pytest.raises(ValueError, match=said):
        Decoder().decode(block)


def test_says_when_the_same_bytes_may_mean_something_else():
    decoder = Decoder()
    literal = OtherEncoder().encode([(b"a", b"b")])
    decoder.decode(literal)
    assert decoder.changed
    assert decoder.decode(b"\xbe") == [(b"a", b"b")]
    assert not decoder.changed
    decoder.decode(b"\x20")
    assert decoder.changed
    with pytest.raises(ValueError, match="does not exist"):
        decoder.decode(b"\xbe")


def test_a_bomb_of_references_is_read_without_being_kept():
    # one entry of 4 KiB, then a reference of one byte again and again: 16 KiB that mean 64 MiB
    decoder = Decoder()
    decoder.decode(encode_kept(b"a", b"b" * 4000))
    fields = decoder.decode(b"\xbe" * hpack.MAX_LIST_BYTES)
    assert decoder.oversized
    assert sum(len(name) + len(value) for name, value in fields) <= hpack.MAX_LIST_BYTES
    assert decoder.decode(b"\x82") == [(b":method", b"GET")]
    assert not decoder.oversized


def test_the_table_never_outgrows_its_limit():
    decoder = Decoder()
    for number in range(500):
        decoder.decode(encode_kept(b"name-%d" % number, b"v" * (number * 7 % 900)))
        assert decoder._used <= hpack.TABLE_BYTES
    decoder.decode(encode_kept(b"a", b"b" * 5000))
    assert decoder._used == 0


def encode_kept(name: bytes, value: bytes) -> bytes:
    """Return a field that enters the table."""
    size = hpack._pack(len(value), 0x7F, 0)
    return b"\x40" + bytes([len(name)]) + name + size + value
