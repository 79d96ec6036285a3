"""Reads from a certificate what `ssl` does not tell of one's own: names and validity (RFC 5280)."""

from __future__ import annotations

import socket
from binascii import a2b_base64
from typing import Iterator, List, NamedTuple, Tuple

from .dates import parse_asn1

_BEGIN, _END = b"-----BEGIN CERTIFICATE-----", b"-----END CERTIFICATE-----"
_SEQUENCE, _UTC_TIME, _GENERALIZED_TIME, _OCTETS = 0x30, 0x17, 0x18, 0x04
_EXTENSIONS = 0xA3
_DNS_NAME, _IP_ADDRESS = 0x82, 0x87
_SUBJECT_ALT_NAME = b"\x06\x03\x55\x1d\x11"

_Item = Tuple[int, bytes]


class Certificate(NamedTuple):
    """What a server needs to know of its certificate.

    Attributes:
        not_before: Seconds since 1970.
        not_after: Seconds since 1970.
        names: Lower-case host names, `*.` in front of a wildcard; IPv6 addresses in brackets.
    """

    not_before: float
    not_after: float
    names: Tuple[str, ...]


def read_pem(text: bytes) -> Certificate:
    """Return the first certificate of a PEM file, which is the server's own.

    Raises:
        ValueError: there is none, or it is damaged.
    """
    begin = text.find(_BEGIN)
    end = text.find(_END, begin)
    if begin < 0 or end < 0:
        raise ValueError("no certificate in PEM form")
    return read_der(a2b_base64(text[begin + len(_BEGIN) : end]))


def read_der(data: bytes) -> Certificate:
    """Return what a certificate says.

    Raises:
        ValueError: it is damaged.
    """
    certificate = _content(next(_items(data), None), _SEQUENCE)
    signed = list(_items(_content(next(_items(certificate), None), _SEQUENCE)))
    if signed and signed[0][0] == 0xA0:  # the version, absent in version 1
        del signed[0]
    if len(signed) < 6:
        raise ValueError("a certificate without validity")
    times = [
        parse_asn1(content.decode("ascii"))
        for tag, content in _items(_content(signed[3], _SEQUENCE))
        if tag in (_UTC_TIME, _GENERALIZED_TIME)
    ]
    if len(times) != 2:
        raise ValueError("a certificate without validity")
    names: List[str] = []
    for tag, content in signed[6:]:
        if tag == _EXTENSIONS:
            for extension in _items(_content(next(_items(content), None), _SEQUENCE)):
                names += _alternative_names(_content(extension, _SEQUENCE))
    return Certificate(times[0], times[1], tuple(names))


def _alternative_names(extension: bytes) -> Iterator[str]:
    if not extension.startswith(_SUBJECT_ALT_NAME):
        return
    for tag, content in _items(extension):
        if tag != _OCTETS:
            continue
        for kind, value in _items(_content(next(_items(content), None), _SEQUENCE)):
            if kind == _DNS_NAME:
                yield value.decode("ascii").lower()
            elif kind == _IP_ADDRESS and len(value) == 4:
                yield socket.inet_ntop(socket.AF_INET, value)
            elif kind == _IP_ADDRESS and len(value) == 16:
                yield "[%s]" % socket.inet_ntop(socket.AF_INET6, value)


def _items(data: bytes) -> Iterator[_Item]:
    """Yield tag and content of each element in DER."""
    at = 0
    while at < len(data):
        if at + 2 > len(data):
            raise ValueError("a certificate that ends too early")
        tag, size = data[at], data[at + 1]
        at += 2
        if size & 0x80:
            count = size & 0x7F
            if not 1 <= count <= 4 or at + count > len(data):
                raise ValueError("a certificate with a length that cannot be")
            size = int.from_bytes(data[at : at + count], "big")
            at += count
        if at + size > len(data):
            raise ValueError("a certificate that ends too early")
        yield tag, data[at : at + size]
        at += size


def _content(item: object, tag: int) -> bytes:
    if not isinstance(item, tuple) or item[0] != tag:
        raise ValueError("a certificate of another structure")
    content: bytes = item[1]
    return content
