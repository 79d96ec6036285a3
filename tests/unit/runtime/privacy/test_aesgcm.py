"""AES-256-GCM: published vectors, another implementation, and every kind of tampering."""

from __future__ import annotations

import ctypes.util
import random
import subprocess
import sys

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from runtime.errors import IntegrityFault, TargetMismatch
from runtime.privacy import aesgcm
from runtime.privacy.aesgcm import AesGcm

_KEY = "feffe9928665731c6d6a8f9467308308" * 2
_NONCE = "cafebabefacedbaddecaf888"
_PLAIN = (
    "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525"
    "b16aedf5aa0de657ba637b391aafd255"
)
_SEALED = (
    "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa8cb08e48590dbb3da7b08b1056828838"
    "c5f61e6393ba7a0abcc9f662898015ad"
)
# Test cases 13 to 16 of the GCM specification that NIST SP 800-38D took over:
# key, nonce, plain text, context, cipher text, tag
VECTORS = [
    ("00" * 32, "00" * 12, "", "", "", "530f8afbc74536b9a963b4f1c4cb738b"),
    (
        "00" * 32, "00" * 12, "00" * 16, "", "cea7403d4d606b6e074ec5d3baf39d18",
        "d0d1c8a799996bf0265b98b5d48ab919",
    ),
    (_KEY, _NONCE, _PLAIN, "", _SEALED, "b094dac5d93471bdec1a502270e3cc6c"),
    (
        _KEY, _NONCE, _PLAIN[:120], "feedfacedeadbeef" * 2 + "abaddad2", _SEALED[:120],
        "76fc6ece0f4e1768cddf8853bb2d551b",
    ),
]  # fmt: skip


@pytest.mark.parametrize("vector", VECTORS, ids=["13", "14", "15", "16"])
def test_the_published_vectors_come_out(vector: tuple[str, ...]) -> None:
    key, nonce, plain, context, sealed, tag = map(bytes.fromhex, vector)
    cipher = AesGcm(key)
    assert cipher.seal(nonce, plain, context) == sealed + tag
    assert cipher.open(nonce, sealed + tag, context) == plain


def test_another_implementation_agrees_on_every_length() -> None:
    rng = random.Random(7)
    for length in [*range(70), 255, 4096, 100_003]:
        key, nonce = rng.randbytes(32), rng.randbytes(12)
        data, context = rng.randbytes(length), rng.randbytes(rng.randrange(40))
        sealed = AesGcm(key).seal(nonce, data, context)
        assert sealed == AESGCM(key).encrypt(nonce, data, context)
        assert AesGcm(key).open(nonce, sealed, context) == data


def test_a_change_of_any_bit_is_refused() -> None:
    cipher = AesGcm(bytes(range(32)))
    nonce = bytes(12)
    sealed = cipher.seal(nonce, b"seventeen bytes!!", b"context")
    for bit in range(len(sealed) * 8):
        changed = bytearray(sealed)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(IntegrityFault, match="does not fit its key, or was changed"):
            cipher.open(nonce, bytes(changed), b"context")


@pytest.mark.parametrize("cut", [0, 1, 15, 16, 20])
def test_what_is_cut_off_is_refused(cut: int) -> None:
    cipher = AesGcm(bytes(32))
    sealed = cipher.seal(bytes(12), b"seventeen bytes!!", b"")
    with pytest.raises(IntegrityFault):
        cipher.open(bytes(12), sealed[:cut], b"")


def test_another_key_nonce_or_context_is_refused() -> None:
    sealed = AesGcm(bytes(32)).seal(bytes(12), b"data", b"context")
    for key, nonce, context in (
        (b"\1" * 32, bytes(12), b"context"),
        (bytes(32), b"\1" * 12, b"context"),
        (bytes(32), bytes(12), b"contexT"),
        (bytes(32), bytes(12), b""),
    ):
        with pytest.raises(IntegrityFault):
            AesGcm(key).open(nonce, sealed, context)


@pytest.mark.parametrize("size", [0, 16, 24, 31, 33])
def test_a_key_of_another_length_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        AesGcm(bytes(size))


def test_a_nonce_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="12 bytes"):
        AesGcm(bytes(32)).seal(bytes(11), b"", b"")


def test_a_repr_does_not_tell_the_key() -> None:
    assert repr(AesGcm(b"k" * 32)) == "AesGcm()"


def test_without_libcrypto_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    # libc is a library that loads and has none of the functions
    for candidates in (["no-such-libcrypto.so"], [ctypes.util.find_library("c")]):
        monkeypatch.setattr(aesgcm, "_candidates", lambda found=candidates: found)
        with pytest.raises(TargetMismatch, match="no libcrypto with AES-256-GCM") as caught:
            aesgcm.load_crypto.__wrapped__()
        assert "OpenSSL 1.1 or 3" in (caught.value.hint or "")


def test_the_library_is_found_without_starting_a_program() -> None:
    script = (
        "import sys\n"
        "started = []\n"
        "sys.addaudithook(lambda event, _: started.append(event) if event in\n"
        "    ('subprocess.Popen', 'os.system', 'os.posix_spawn', 'os.fork', 'os.exec') else None)\n"
        "from runtime.privacy.aesgcm import AesGcm\n"
        "AesGcm(bytes(32)).seal(bytes(12), b'x', b'')\n"
        "crypto = {line.split()[-1] for line in open('/proc/self/maps') if 'libcrypto' in line}\n"
        "print(started, len(crypto))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[] 1\n"
