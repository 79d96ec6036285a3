"""Reads the capture key and derives from it what each purpose uses."""

from __future__ import annotations

import hashlib
import hmac
import os
import stat
from typing import Optional

from ..errors import InputOutputFault, UsageFault
from .aesgcm import KEY_BYTES

NEW_KEY = "make one with: (umask 077; openssl rand -hex 32 > capture.key)"
_OTHERS = 0o007
_MOST_BYTES = 2 * KEY_BYTES + 2


class CaptureKey:
    """The key of a device's kept requests.

    Args:
        key: 32 bytes.

    Attributes:
        wrapping: Encrypts the data keys of segments.
        signing: Authenticates the log of deletions.
    """

    __slots__ = ("signing", "wrapping")

    def __init__(self, key: bytes) -> None:
        # HMAC as a key derivation function, one label a purpose: NIST SP 800-108 in counter mode
        # with a single block
        self.wrapping = _derive(key, b"edgepack capture segments")
        self.signing = _derive(key, b"edgepack capture deletions")

    def __repr__(self) -> str:
        return "CaptureKey()"


def read_key(path: Optional[str]) -> CaptureKey:
    """Return the key in a file: 32 bytes, or 64 hexadecimal digits and at most a line end.

    Raises:
        UsageFault: no file is named, its content is no key, or others may read it.
        InputOutputFault: it cannot be read.
    """
    if not path:
        raise UsageFault(
            "there is no key to encrypt kept requests with",
            "give `--capture-key FILE`, or the systemd credential `capture.key`; " + NEW_KEY,
        )
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(descriptor, "rb", buffering=0) as stream:
            mode = os.fstat(descriptor).st_mode
            if not stat.S_ISREG(mode):
                raise UsageFault("`%s` is no file" % path)
            # not the group's bits: systemd gives a service its credentials by an access list,
            # which shows there
            if mode & _OTHERS:
                raise UsageFault("others may read the key `%s`" % path, "chmod 600 %s" % path)
            content = stream.read(_MOST_BYTES + 1) or b""
    except OSError as fault:
        raise InputOutputFault(
            "the key `%s` cannot be read: %s" % (path, (fault.strerror or "").lower())
        ) from None
    return CaptureKey(_decode(content, path))


def _decode(content: bytes, path: str) -> bytes:
    if len(content) == KEY_BYTES:
        return content
    text = content.rstrip(b"\r\n")
    if len(text) == 2 * KEY_BYTES:
        try:
            return bytes.fromhex(text.decode("ascii"))
        except ValueError:  # what the file holds must not be in a traceback
            pass
    raise UsageFault(
        "`%s` holds no key: 32 bytes, or 64 hexadecimal digits, are one" % path, NEW_KEY
    )


def _derive(key: bytes, label: bytes) -> bytes:
    return hmac.new(key, b"\0\0\0\1" + label + b"\0\0\0\1\0", hashlib.sha256).digest()
