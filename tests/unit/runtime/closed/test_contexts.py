"""Files for TLS that are wrong are refused with what is wrong, before a server listens."""

from __future__ import annotations

import datetime
import os
from typing import TYPE_CHECKING

import pytest

from runtime.closed.certificate import read_pem
from runtime.closed.contexts import describe_expiry, load_context, load_tls
from runtime.errors import DeviceError, InputOutputFault, UsageFault
from runtime.options import ServeOptions
from tests.unit.runtime.closed.authority import DAY, NOW, Authority, Pair

if TYPE_CHECKING:
    from pathlib import Path


def options(pair: Pair, **changes: object) -> ServeOptions:
    return ServeOptions(tls_cert=str(pair.cert), tls_key=str(pair.key))._replace(**changes)


@pytest.fixture
def pair(authority: Authority, tmp_path: Path) -> Pair:
    return authority.issue("good", replace=Pair(cert=tmp_path / "c.crt", key=tmp_path / "c.key"))


def fault(asked: ServeOptions) -> DeviceError:
    with pytest.raises(DeviceError) as caught:
        load_tls(asked)
    return caught.value


def test_a_good_pair_is_taken_and_its_names_are_told(pair: Pair) -> None:
    assert load_tls(options(pair)).certificate.names == ("127.0.0.1", "localhost")
    assert load_context(options(pair)).cert_store_stats()["x509"] == 0


def test_key_and_certificate_may_be_one_file(pair: Pair) -> None:
    pair.key.write_bytes(pair.key.read_bytes() + pair.text)
    assert load_context(ServeOptions(tls_cert=str(pair.key)))


def test_a_certificate_alone_asks_for_its_key(pair: Pair) -> None:
    found = fault(ServeOptions(tls_cert=str(pair.cert)))
    assert (found.message, found.hint) == (
        f"`{pair.cert}` holds no private key", "--tls-key FILE"
    )  # fmt: skip


def test_a_missing_file_is_named(pair: Pair) -> None:
    for name in ("tls_cert", "tls_key", "tls_client_ca"):
        found = fault(options(pair, **{name: "/none/such.pem"}))
        assert isinstance(found, InputOutputFault)
        assert found.message == "cannot read `/none/such.pem`: No such file or directory"


def test_a_key_without_a_certificate_is_refused() -> None:
    found = fault(ServeOptions(tls_key="k"))
    assert (found.message, found.hint) == (
        "TLS needs a certificate", "--tls-cert FILE --tls-key FILE"
    )  # fmt: skip


def test_a_key_that_anyone_may_read_is_refused(pair: Pair) -> None:
    for mode in (0o604, 0o644, 0o602):
        pair.key.chmod(mode)
        found = fault(options(pair))
        assert isinstance(found, UsageFault)
        assert found.message == f"anyone may read the private key `{pair.key}`"
        assert found.hint == f"chmod 600 {pair.key}"
    pair.key.chmod(0o640)  # as group ssl-cert has it, and credentials of systemd
    assert load_context(options(pair))


def test_a_key_of_another_certificate_is_refused(pair: Pair, authority: Authority) -> None:
    other = authority.issue("other")
    found = fault(options(pair, tls_key=str(other.key)))
    assert isinstance(found, UsageFault)
    assert found.message == f"`{other.key}` is not the key of the certificate `{pair.cert}`"


def test_an_encrypted_key_is_refused_with_the_reason(authority: Authority, tmp_path: Path) -> None:
    files = Pair(cert=tmp_path / "e.crt", key=tmp_path / "e.key")
    found = fault(options(authority.issue("e", password=b"secret", replace=files)))
    assert isinstance(found, UsageFault)
    assert "is encrypted, and nobody is there to type its password" in found.message
    assert found.hint is not None
    assert "openssl pkey" in found.hint


def test_files_that_are_not_pem_are_refused(pair: Pair) -> None:
    text = pair.text
    pair.cert.write_bytes(b"hello")
    assert "is no certificate: no certificate in PEM form" in fault(options(pair)).message
    pair.cert.write_bytes(text[:300] + b"\n-----END CERTIFICATE-----\n")
    assert "is no certificate" in fault(options(pair)).message
    pair.cert.write_bytes(text)
    pair.key.write_bytes(b"hello")
    assert "no certificate chain and private key in PEM form" in fault(options(pair)).message
    pair.key.write_bytes(b"x" * (1 << 20) + b"x")
    assert "more than 1048576 bytes" in fault(options(pair)).message


def test_an_authority_that_is_none_is_refused(pair: Pair, tmp_path: Path) -> None:
    path = tmp_path / "ca.crt"
    path.write_bytes(b"hello")
    found = fault(options(pair, tls_client_ca=str(path)))
    assert isinstance(found, UsageFault)
    assert "is no certificate authority in PEM form" in found.message
    path.write_bytes(pair.text)
    found = fault(options(pair, tls_client_ca=str(path)))
    assert found.message == f"`{path}` holds no certificate of an authority"


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_file_that_may_not_be_read_is_named(pair: Pair) -> None:
    pair.key.chmod(0)
    assert "Permission denied" in fault(options(pair)).message


def test_an_expired_certificate_is_served_all_the_same(authority: Authority) -> None:
    pair = authority.issue("expired", not_after=NOW - DAY)
    assert load_tls(options(pair)).certificate.not_after < NOW.timestamp()


def test_the_end_of_a_certificate_is_told_two_weeks_ahead(authority: Authority) -> None:
    end = (NOW + 100 * DAY).replace(microsecond=0)
    certificate = read_pem(authority.issue("ends", not_after=end).text)
    shown = end.strftime("%Y-%m-%dT%H:%M:%SZ")

    def told(when: datetime.datetime) -> str | None:
        return describe_expiry(certificate, when.timestamp())

    assert told(NOW) is None
    assert told(end - 15 * DAY) is None
    assert told(end - 13 * DAY) == f"the TLS certificate expires on {shown}, in 13 days"
    assert told(end) == f"the TLS certificate expired on {shown}"
    early = told(datetime.datetime(1970, 1, 2, tzinfo=datetime.UTC))
    assert early is not None
    assert early.endswith("is this device's clock right?")
