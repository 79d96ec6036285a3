"""The keys file: what it says, and what it may not say."""

from __future__ import annotations

import hashlib
import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from runtime.closed.dates import parse_rfc3339
from runtime.closed.keys import Keys, describe_expiry, load_keys
from runtime.closed.rates import UNLIMITED, Limits
from runtime.errors import InputOutputFault, UsageFault

if TYPE_CHECKING:
    from pathlib import Path

NOON = parse_rfc3339("2026-11-23T12:00:00Z")


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def entry(key: str = "k1", **fields: Any) -> dict[str, Any]:
    return {"name": "camera", "sha256": digest(key), "scopes": ["infer"], **fields}


def load(path: Path, *entries: Any, now: float = NOON, **fields: Any) -> Keys:
    path.write_text(json.dumps({"keys": list(entries), **fields}))
    os.utime(path, (NOON, NOON))
    path.chmod(0o600)
    return load_keys(str(path), clock=lambda: now)


def test_a_key_is_found_by_itself_and_by_nothing_near_it(tmp_path: Path) -> None:
    keys = load(tmp_path / "k", entry("secret"), entry("other", name="line"))
    found = keys.find("secret")
    assert found is not None
    assert (found.name, found.scopes, found.limits) == ("camera", {"infer"}, UNLIMITED)
    assert keys.find("secret") is found
    line = keys.find("other")
    assert line is not None
    assert line.name == "line"
    for wrong in (
        "",
        "Secret",
        "secret ",
        "secre",
        "s" * 5000,
        "schlüssel",
        "\udcff",
        digest("secret"),
    ):
        assert keys.find(wrong) is None


def test_several_keys_of_one_name_are_good_at_once(tmp_path: Path) -> None:
    keys = load(tmp_path / "k", entry("old"), entry("new"))
    assert [keys.find(key) is not None for key in ("old", "new")] == [True, True]


def test_a_key_is_good_from_its_first_second_to_its_last(tmp_path: Path) -> None:
    keys = load(tmp_path / "k", entry(not_before="2026-11-23T12:00:00Z", not_after="2026-11-24"))
    found = keys.find("k1")
    assert found is not None
    good = [found.is_valid(NOON + shift) for shift in (-1, 0, 43199, 43200)]
    assert good == [False, True, True, False]


def test_a_clock_in_1970_does_not_revive_what_had_expired(tmp_path: Path) -> None:
    keys = load(tmp_path / "k", entry(not_after="2026-11-01"), now=100.0)
    assert keys.now() == NOON
    # a credential is copied at boot, so the file's own time may be in 1970 as well
    path = tmp_path / "k"
    path.write_text(json.dumps({"keys": [entry()], "written": "2026-11-20T00:00:00Z"}))
    os.utime(path, (60, 60))
    assert load_keys(str(path), clock=lambda: 100.0).now() == parse_rfc3339("2026-11-20")
    assert load_keys(str(path), clock=lambda: NOON).now() == NOON


def test_limits_are_read(tmp_path: Path) -> None:
    keys = load(
        tmp_path / "k",
        entry("a", rate=50, burst=100, concurrency=4),
        entry("b", rate=0.5),
        entry("c", concurrency=1),
        anonymous={"scopes": ["metrics"], "rate": 1},
    )
    found = [keys.find(key) for key in "abc"]
    assert [item and item.limits for item in found] == [
        Limits(50.0, 100.0, 4), Limits(0.5, 1.0, None), Limits(None, 1.0, 1)
    ]  # fmt: skip
    assert keys.anonymous is not None
    assert keys.anonymous.scopes == {"metrics"}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (b"{", "it is not JSON"),
        (b"[" * 100_000, "it is not JSON"),
        (b"\xff", "it is not JSON"),
        (b"[]", 'no list `"keys"`'),
        (b'{"keys": {}}', 'no list `"keys"`'),
        (b'{"keys": [], "keys": []}', "a field comes twice"),
        ({"keys": [], "key": []}, "the file has no field `key`"),
        ({"keys": [{}]}, "an entry has no `name`"),
        ({"keys": ["x"]}, "an entry has no `name`"),
        ({"keys": [entry(name="a b")]}, "`a b` is no name"),
        ({"keys": [entry(name="anonymous")]}, "`anonymous` is no name"),
        ({"keys": [entry(not_aftr="2027-01-01")]}, "`camera` has no field `not_aftr`"),
        ({"keys": [entry(sha256="secret")]}, "`sha256` of `camera` is not 64"),
        ({"keys": [entry(sha256=digest("k").upper())]}, "`sha256` of `camera` is not 64"),
        ({"keys": [entry(scopes=[])]}, "`scopes` of `camera` is not a list of infer, metrics"),
        ({"keys": [entry(scopes="infer")]}, "`scopes` of `camera` is not a list"),
        ({"keys": [entry(scopes=["root"])]}, "`scopes` of `camera` may be infer, metrics, admin"),
        ({"keys": [entry(scopes=[["infer"]])]}, "`scopes` of `camera` may be infer"),
        ({"keys": [entry(not_after="soon")]}, "`not_after` is no date like 2027"),
        ({"keys": [entry(not_before=5)]}, "`not_before` is no date"),
        ({"keys": [entry(rate=0)]}, "`rate` of `camera` is not a number above 0"),
        ({"keys": [entry(rate=True)]}, "`rate` of `camera` is not a number above 0"),
        ({"keys": [entry(rate=10**400)]}, "`rate` of `camera` is not a number above 0"),
        ({"keys": [entry(rate=float("nan"))]}, "`rate` of `camera` is not a number above 0"),
        ({"keys": [entry(concurrency=1.5)]}, "`concurrency` of `camera` is not a number"),
        ({"keys": [entry(burst=5)]}, "`burst` of `camera` needs a `rate`"),
        ({"keys": [entry(rate=1, burst=0.5)]}, "`burst` of `camera` needs a `rate` and is at"),
        ({"keys": [], "anonymous": ["infer"]}, "`anonymous` is not an object"),
        ({"keys": [], "anonymous": {"scopes": ["infer"], "name": "x"}}, "`anonymous` has no field"),
        ({"keys": [entry(), entry(name="b")]}, "has the same digest twice"),
        ({"keys": [], "written": "today"}, "`written` is no date"),
    ],
)
def test_a_wrong_file_is_refused_with_the_reason(
    tmp_path: Path, document: Any, message: str
) -> None:
    path = tmp_path / "keys.json"
    path.write_bytes(document if isinstance(document, bytes) else json.dumps(document).encode())
    with pytest.raises(UsageFault) as caught:
        load_keys(str(path))
    assert message in caught.value.message


def test_a_missing_file_is_refused_with_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(InputOutputFault, match="No such file") as caught:
        load_keys(str(tmp_path / "none.json"))
    assert caught.value.hint is not None
    assert "new-key" in caught.value.hint


def test_a_file_that_anyone_may_write_or_that_is_huge_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_text('{"keys": []}')
    path.chmod(0o646)
    with pytest.raises(UsageFault, match="anyone may write"):
        load_keys(str(path))
    path.chmod(0o600)
    path.write_bytes(b" " * (1 << 20) + b"{}")
    with pytest.raises(UsageFault, match="more than 1048576 bytes"):
        load_keys(str(path))


def test_keys_that_end_soon_are_told_unless_a_newer_one_is_there(tmp_path: Path) -> None:
    keys = load(
        tmp_path / "k",
        entry("a", name="a", not_after="2026-11-25T13:00:00Z"),
        entry("b", name="b", not_after="2026-11-01"),
        entry("c", name="c", not_after="2026-11-24"),
        entry("d", name="c", not_after="2027-11-24"),
        entry("e", name="e"),
    )
    assert describe_expiry(keys, 14 * 86400) == [
        "the key `a` expires in 2 days", "the key `b` has expired"
    ]  # fmt: skip
