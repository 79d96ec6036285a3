"""A record is read leniently, made harmless, and refused where it is none or another's."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from packager.errors import InputOutputError, IntegrityError, UsageError
from packager.report.reading import Part, check_same_bundle, clean, read_record

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/features/conv", "/features/conv"),
        ("a\u202egnp", "a\\u202egnp"),
        ("a\x00b\x1b[31m", "a\\u0000b\\u001b[31m"),
        ("zero\u200bwidth\u2066", "zero\\u200bwidth\\u2066"),
        ("two\nlines\tand a tab", "two lines and a tab"),
        ("\ud800", "\\ud800"),
        ("e" + "\u0301" * 40, "e" + "\u0301" * 4),
        ("日本語 עברית café", "日本語 עברית café"),
        ("<b>", "<b>"),
    ],
)
def test_a_text_shows_what_it_is(text: str, shown: str) -> None:
    assert clean(text) == shown


def test_a_long_text_loses_its_middle() -> None:
    assert clean("a" * 500 + "z" * 500, most=20) == "a" * 10 + " … " + "z" * 10


def test_what_is_of_another_kind_is_not_known() -> None:
    part = Part({
        "text": 3, "number": "3", "yes": "true", "list": {"a": 1}, "object": [1],
        "nan": float("nan"), "huge": 10**400, "flag": True,
        "numbers": [1, "2", None, float("inf"), 2.5, True],
        "mixed": [{"a": 1}, 3, "x", None],
    })  # fmt: skip
    assert part.text("text") == part.text("missing") == ""
    assert part.number("number") is part.number("nan") is part.number("huge") is None
    assert part.number("flag") is None
    assert part.flag("flag") is True
    assert part.flag("yes") is False
    assert not part.part("object")
    assert part.parts("list") == []
    assert part.numbers("numbers") == [1.0, 2.5]
    assert [each.number("a") for each in part.parts("mixed")] == [1.0]


def test_a_missing_record_says_what_writes_it(tmp_path: Path) -> None:
    with pytest.raises(InputOutputError, match=r"x\.record\.json` does not exist") as caught:
        read_record(tmp_path / "x.record.json")
    assert "`--record FILE`" in (caught.value.hint or "")
    with pytest.raises(InputOutputError, match="cannot be read"):
        read_record(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "it is not JSON"),
        (b"\xff\xfe", "it is not JSON"),
        (b"[" * 200_000, "it is not JSON"),
        (b"[]", "it tells of no bundle"),
        (b'{"bundle": 3}', "it tells of no bundle"),
    ],
)
def test_another_file_is_no_record(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.record.json"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=message):
        read_record(path)


def test_a_record_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "x.record.json"
    with path.open("wb") as stream:
        stream.truncate((64 << 20) + 1)
    with pytest.raises(UsageError, match="larger than a record may be"):
        read_record(path)


def test_the_record_of_another_bundle_is_refused(tmp_path: Path, record: Any) -> None:
    path = tmp_path / "x.record.json"
    path.write_text(json.dumps(record), encoding="utf-8")
    found = read_record(path)
    check_same_bundle(found, "3f" * 32, path=path)
    with pytest.raises(IntegrityError, match="another bundle: 3f3f3f3f3f3f, not abababababab"):
        check_same_bundle(found, "ab" * 32, path=path)
    with pytest.raises(IntegrityError, match="another bundle: none"):
        check_same_bundle(Part({"bundle": {}}), "ab" * 32, path=path)
