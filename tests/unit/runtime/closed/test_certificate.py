"""Certificates are read as `cryptography` wrote them, and damaged ones are refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from cryptography import x509

from runtime.closed.certificate import read_der, read_pem
from tests.unit.runtime.closed.authority import NOW, Authority

if TYPE_CHECKING:
    from pathlib import Path


def test_names_and_validity_are_read(tmp_path: Path) -> None:
    pair = Authority(tmp_path).issue("a", "Device.example.com", "*.lan", "192.0.2.7", "2001:db8::1")
    found = read_pem(pair.text)
    written = x509.load_pem_x509_certificate(pair.text)
    assert found.names == ("device.example.com", "*.lan", "192.0.2.7", "[2001:db8::1]")
    assert found.not_after == written.not_valid_after_utc.timestamp()
    assert found.not_before == written.not_valid_before_utc.timestamp()


def test_dates_past_2050_are_read(tmp_path: Path) -> None:
    late = NOW.replace(year=2060, month=1, day=1, microsecond=0)
    pair = Authority(tmp_path).issue("a", not_after=late)
    assert read_pem(pair.text).not_after == late.timestamp()


def test_an_authority_without_names_has_none(tmp_path: Path) -> None:
    assert read_pem(Authority(tmp_path).cert.read_bytes()).names == ()


def test_the_first_certificate_of_a_chain_is_the_servers(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pair = authority.issue("a", "first.example.com")
    chain = b"some words\n" + pair.text + authority.cert.read_bytes()
    assert read_pem(chain).names == ("first.example.com",)


def test_a_damaged_certificate_is_refused_wherever_it_ends(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives.serialization import Encoding

    whole = x509.load_pem_x509_certificate(Authority(tmp_path).issue("a").text)
    content = whole.public_bytes(Encoding.DER)
    assert read_der(content).names
    for size in range(len(content)):
        with pytest.raises(ValueError, match=r".*"):
            read_der(content[:size])


def test_what_holds_no_certificate_is_refused() -> None:
    for text in (b"", b"-----BEGIN CERTIFICATE-----\nAAAA", b"hello"):
        with pytest.raises(ValueError, match="no certificate in PEM form"):
            read_pem(text)
    with pytest.raises(ValueError, match=r".*"):
        read_pem(b"-----BEGIN CERTIFICATE-----\nnot base 64!\n-----END CERTIFICATE-----\n")
