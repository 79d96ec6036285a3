"""Makes a TLS context from files, and refuses files that are wrong with the reason."""

from __future__ import annotations

import os
import ssl
import stat
from typing import NamedTuple, Optional

from ..errors import InputOutputFault, UsageFault
from ..options import ServeOptions
from .certificate import Certificate, read_pem
from .dates import DAY_S, format_rfc3339

_WARN_DAYS = 14
MAX_FILE_BYTES = 1 << 20
# Only suites that keep earlier connections secret and authenticate what they encrypt; TLS 1.3 has
# no others. RFC 9113, section 9.2.2, forbids the rest for HTTP/2 anyway.
_SUITES_1_2 = "ECDHE+AESGCM:ECDHE+CHACHA20"
# SSL_OP_IGNORE_UNEXPECTED_EOF, which `ssl` names from CPython 3.10 on and OpenSSL has from 3.0 on
_IGNORE_UNEXPECTED_EOF = 1 << 7


class Tls(NamedTuple):
    """A context that is ready to serve, and what its certificate says."""

    context: ssl.SSLContext
    certificate: Certificate


def load_tls(options: ServeOptions, *, http2: bool = False) -> Tls:
    """Return what serves TLS with the files that the options name.

    Args:
        options: `tls_cert` is set; `tls_key` may be in the same file.
        http2: Offer HTTP/2 as well.

    Raises:
        InputOutputFault: a file cannot be read.
        UsageFault: a file is of no use, or others may read the private key.
    """
    if options.tls_cert is None:
        raise UsageFault("TLS needs a certificate", "--tls-cert FILE --tls-key FILE")
    certificate_path = options.tls_cert
    key_path = options.tls_key or options.tls_cert
    content = _read(certificate_path)
    try:
        certificate = read_pem(content)
    except ValueError as error:
        message = "`%s` is no certificate: %s" % (certificate_path, error)
        raise UsageFault(message, "openssl x509 -in %s -noout" % certificate_path) from error
    if options.tls_key is None and b"PRIVATE KEY-----" not in content:
        raise UsageFault("`%s` holds no private key" % certificate_path, "--tls-key FILE")
    _check_secret(key_path)
    context = _context(options.tls_min)
    _load_chain(context, certificate_path, key_path)
    if options.tls_client_ca is not None:
        _ask_for_certificates(context, options.tls_client_ca)
    context.set_alpn_protocols(["h2", "http/1.1"] if http2 else ["http/1.1"])
    return Tls(context, certificate)


def load_context(options: ServeOptions, *, http2: bool = False) -> ssl.SSLContext:
    """Return the context alone; raises as `load_tls` does."""
    return load_tls(options, http2=http2).context


def describe_expiry(certificate: Certificate, now: float) -> Optional[str]:
    """Return a sentence where the certificate is not valid, or soon will not be.

    Args:
        certificate: The server's own.
        now: Seconds since 1970.
    """
    until = format_rfc3339(certificate.not_after)
    if now >= certificate.not_after:
        return "the TLS certificate expired on %s" % until
    if now < certificate.not_before:
        return "the TLS certificate is valid only from %s; is this device's clock right?" % (
            format_rfc3339(certificate.not_before)
        )
    days = (certificate.not_after - now) / DAY_S
    if days <= _WARN_DAYS:
        return "the TLS certificate expires on %s, in %d days" % (until, days)
    return None


def _context(oldest: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if not ssl.HAS_TLSv1_3 and oldest == "1.3":
        raise UsageFault(
            "this device's %s has no TLS 1.3" % ssl.OPENSSL_VERSION, "--tls-min 1.2 allows 1.2"
        )
    context.minimum_version = ssl.TLSVersion.TLSv1_2 if oldest == "1.2" else ssl.TLSVersion.TLSv1_3
    context.set_ciphers(_SUITES_1_2)
    context.options |= (
        ssl.OP_NO_COMPRESSION
        | ssl.OP_NO_RENEGOTIATION
        | ssl.OP_CIPHER_SERVER_PREFERENCE
        | ssl.OP_SINGLE_ECDH_USE
    )
    if ssl.OPENSSL_VERSION_INFO >= (3,):
        # a client may end with a bare FIN: HTTP says by lengths where a message ends
        context.options |= _IGNORE_UNEXPECTED_EOF
    return context


def _load_chain(context: ssl.SSLContext, certificate_path: str, key_path: str) -> None:
    def refuse_password() -> str:
        raise UsageFault(
            "the private key `%s` is encrypted, and nobody is there to type its password"
            % key_path,
            "openssl pkey -in %s -out tls.key; keep it as a systemd credential" % key_path,
        )

    try:
        context.load_cert_chain(certificate_path, key_path, password=refuse_password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            message = "`%s` is not the key of the certificate `%s`" % (key_path, certificate_path)
            raise UsageFault(message) from error
        if error.reason in ("EE_KEY_TOO_SMALL", "CA_KEY_TOO_SMALL", "CA_MD_TOO_WEAK"):
            message = "the certificate `%s` is too weak for this device's OpenSSL (%s)" % (
                certificate_path, (error.reason or "").lower().replace("_", " "),
            )  # fmt: skip
            raise UsageFault(message) from error
        message = "`%s` and `%s` are no certificate chain and private key in PEM form" % (
            certificate_path, key_path,
        )  # fmt: skip
        raise UsageFault(message, "openssl pkey -in %s -noout" % key_path) from error
    except OSError as error:
        raise InputOutputFault("cannot read `%s`: %s" % (key_path, error.strerror)) from error


def _ask_for_certificates(context: ssl.SSLContext, path: str) -> None:
    content = _read(path)
    try:
        context.load_verify_locations(cadata=content.decode("ascii"))
    except (ssl.SSLError, ValueError) as error:
        message = "`%s` is no certificate authority in PEM form" % path
        raise UsageFault(message, "openssl x509 -in %s -noout" % path) from error
    if not context.get_ca_certs(binary_form=True):
        raise UsageFault("`%s` holds no certificate of an authority" % path)
    context.verify_mode = ssl.CERT_REQUIRED


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as stream:
            content = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise InputOutputFault("cannot read `%s`: %s" % (path, error.strerror)) from error
    if len(content) > MAX_FILE_BYTES:
        raise UsageFault("`%s` has more than %d bytes" % (path, MAX_FILE_BYTES))
    return content


def _check_secret(path: str) -> None:
    """Refuse a private key that others may read; its group may, as `ssl-cert` on Debian."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise InputOutputFault("cannot read `%s`: %s" % (path, error.strerror)) from error
    if mode & (stat.S_IROTH | stat.S_IWOTH):
        raise UsageFault("anyone may read the private key `%s`" % path, "chmod 600 %s" % path)
    _read(path)
