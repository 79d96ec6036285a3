"""The capture key: its forms, who may read it, and that nobody is told it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from runtime.errors import InputOutputFault, UsageFault
from runtime.privacy.keys import CaptureKey, read_key

if TYPE_CHECKING:
    from pathlib import Path

RAW = bytes(range(32))


def write(path: Path, content: bytes, mode: int = 0o600) -> str:
    path.write_bytes(content)
    path.chmod(mode)
    return str(path)


@pytest.mark.parametrize(
    "content",
    [RAW, RAW.hex().encode(), RAW.hex().upper().encode() + b"\n", RAW.hex().encode() + b"\r\n"],
)
def test_raw_bytes_and_hexadecimal_digits_are_the_same_key(tmp_path: Path, content: bytes) -> None:
    assert read_key(write(tmp_path / "k", content)).wrapping == CaptureKey(RAW).wrapping


def test_each_purpose_has_a_key_of_its_own() -> None:
    key = CaptureKey(RAW)
    assert len({key.wrapping, key.signing, RAW}) == 3
    assert {len(key.wrapping), len(key.signing)} == {32}
    assert CaptureKey(RAW[::-1]).wrapping != key.wrapping
    assert repr(key) == "CaptureKey()"


@pytest.mark.parametrize(
    "content", [b"", RAW[:31], RAW + b"x", RAW.hex().encode()[:-1], b"g" * 64, RAW * 100]
)
def test_anything_else_is_no_key_and_is_not_repeated(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(UsageFault, match="holds no key: 32 bytes") as caught:
        read_key(write(tmp_path / "k", content))
    assert "openssl rand -hex 32" in (caught.value.hint or "")
    assert caught.value.__cause__ is None
    assert not content or content.decode("latin-1") not in str(caught.value)


@pytest.mark.parametrize("mode", [0o604, 0o644, 0o602, 0o601])
def test_a_key_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(UsageFault, match="others may read the key") as caught:
        read_key(write(tmp_path / "k", RAW, mode))
    assert (caught.value.hint or "").startswith("chmod 600 ")


def test_what_systemd_shows_of_a_service_s_credential_is_accepted(tmp_path: Path) -> None:
    assert read_key(write(tmp_path / "k", RAW, 0o440)).wrapping


def test_no_key_says_how_to_make_one() -> None:
    for nothing in (None, ""):
        with pytest.raises(UsageFault, match="no key to encrypt") as caught:
            read_key(nothing)
        assert "capture.key" in (caught.value.hint or "")


def test_a_missing_key_and_one_that_is_no_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputOutputFault, match="no such file"):
        read_key(str(tmp_path / "missing"))
    with pytest.raises(UsageFault, match="is no file"):
        read_key("/dev/null")
