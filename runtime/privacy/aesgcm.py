"""AES-256-GCM through the system's libcrypto, which Python's own hashlib is linked with.

Algorithm: NIST SP 800-38D. Interface: EVP_EncryptInit(3) of OpenSSL 1.1.0 and later.
"""

from __future__ import annotations

import ctypes
import functools
import os
from ctypes import POINTER, c_char_p, c_int, c_void_p
from typing import Any, List

from ..errors import IntegrityFault, TargetMismatch

KEY_BYTES = 32
NONCE_BYTES = 12
TAG_BYTES = 16
# What one call takes: the lengths of OpenSSL are C integers.
MAX_BYTES = (1 << 31) - 1 - TAG_BYTES

_GET_TAG = 0x10
_SET_TAG = 0x11
_NAMES = ("libcrypto.so.3", "libcrypto.so.1.1", "libcrypto.so")
_FUNCTIONS = {
    "EVP_aes_256_gcm": (c_void_p, ()),
    "EVP_CIPHER_CTX_new": (c_void_p, ()),
    "EVP_CIPHER_CTX_free": (None, (c_void_p,)),
    "EVP_CIPHER_CTX_ctrl": (c_int, (c_void_p, c_int, c_int, c_void_p)),
    "EVP_CipherInit_ex": (c_int, (c_void_p, c_void_p, c_void_p, c_char_p, c_char_p, c_int)),
    "EVP_CipherUpdate": (c_int, (c_void_p, c_void_p, POINTER(c_int), c_char_p, c_int)),
    "EVP_CipherFinal_ex": (c_int, (c_void_p, c_void_p, POINTER(c_int))),
}


class AesGcm:
    """One key; a nonce must never be used twice with it.

    Args:
        key: 32 bytes.

    Raises:
        ValueError: another length.
        TargetMismatch: this system has no usable libcrypto.
    """

    __slots__ = ("_crypto", "_key")

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError("an AES-256 key has %d bytes" % KEY_BYTES)
        self._key = bytes(key)
        self._crypto = load_crypto()

    def __repr__(self) -> str:
        return "AesGcm()"

    def seal(self, nonce: bytes, data: bytes, context: bytes) -> bytes:
        """Return the ciphertext with its tag behind it.

        Args:
            nonce: 12 bytes, never used before with this key.
            data: Up to 2 GiB.
            context: Authenticated with the data, not part of the result.
        """
        return self._run(nonce, bytes(data), context, None)

    def open(self, nonce: bytes, sealed: bytes, context: bytes) -> bytes:
        """Return what was sealed.

        Raises:
            IntegrityFault: key, nonce, context, ciphertext or tag differ from what was sealed.
        """
        if len(sealed) < TAG_BYTES:
            raise IntegrityFault("what was encrypted is cut off")
        return self._run(nonce, bytes(sealed[:-TAG_BYTES]), context, bytes(sealed[-TAG_BYTES:]))

    def _run(self, nonce: bytes, data: bytes, context: bytes, tag: Any) -> bytes:
        """Encrypt where `tag` is None, else decrypt and check it."""
        if len(nonce) != NONCE_BYTES:
            raise ValueError("a nonce has %d bytes" % NONCE_BYTES)
        if len(data) > MAX_BYTES or len(context) > MAX_BYTES:
            raise ValueError("more than one call can encrypt")
        crypto = self._crypto
        cipher = crypto.EVP_CIPHER_CTX_new()
        if not cipher:
            raise MemoryError
        try:
            sealing = tag is None
            out = ctypes.create_string_buffer(len(data) + TAG_BYTES)
            size, ended = c_int(0), c_int(0)
            _must(
                crypto.EVP_CipherInit_ex(
                    cipher, crypto.EVP_aes_256_gcm(), None, self._key, bytes(nonce), int(sealing)
                )
            )
            if context:
                _must(
                    crypto.EVP_CipherUpdate(
                        cipher, None, ctypes.byref(size), bytes(context), len(context)
                    )
                )
            size.value = 0
            if data:
                _must(crypto.EVP_CipherUpdate(cipher, out, ctypes.byref(size), data, len(data)))
            if not sealing:
                _must(crypto.EVP_CIPHER_CTX_ctrl(cipher, _SET_TAG, TAG_BYTES, tag))
            end = ctypes.byref(out, size.value)
            if crypto.EVP_CipherFinal_ex(cipher, end, ctypes.byref(ended)) != 1:
                raise IntegrityFault("what was encrypted does not fit its key, or was changed")
            if sealing:
                mark = ctypes.byref(out, size.value)
                _must(crypto.EVP_CIPHER_CTX_ctrl(cipher, _GET_TAG, TAG_BYTES, mark))
            return out.raw[: size.value + (TAG_BYTES if sealing else 0)]
        finally:
            crypto.EVP_CIPHER_CTX_free(cipher)  # it overwrites the key schedule


@functools.lru_cache(maxsize=None)
def load_crypto() -> ctypes.CDLL:
    """Return libcrypto with the functions that are used here.

    The one that Python is linked with comes first: symbols are looked up through its `_hashlib`,
    so that a process never has two. Nothing is started to find it.

    Raises:
        TargetMismatch: there is none, or it has no AES-256-GCM.
    """
    for candidate in _candidates():
        try:
            library = ctypes.CDLL(candidate)
            for name, (result, arguments) in _FUNCTIONS.items():
                function = getattr(library, name)
                function.restype, function.argtypes = result, arguments
        except (OSError, AttributeError):
            continue
        if library.EVP_aes_256_gcm():
            return library
    raise TargetMismatch(
        "this system has no libcrypto with AES-256-GCM, so nothing can be kept encrypted",
        "install OpenSSL 1.1 or 3 (`libssl3`, `libssl1.1`), or build without `[privacy]`",
    )


def _candidates() -> List[str]:
    found = []
    try:
        import _hashlib
    except ImportError:
        pass
    else:
        linked = getattr(_hashlib, "__file__", None)  # none where it is part of the interpreter
        if linked and os.path.isfile(linked):
            found.append(linked)
    return [*found, *_NAMES]


def _must(status: int) -> None:
    if status != 1:
        raise RuntimeError("libcrypto refused a call")
