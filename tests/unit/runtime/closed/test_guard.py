"""Who is let in by which key, for what and how often."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from runtime.closed.guard import Guard
from runtime.closed.rates import Failures
from runtime.errors import BadRequest, Denied, TooMany
from tests.unit.runtime.closed.test_keys import NOON, entry, load

if TYPE_CHECKING:
    from pathlib import Path

PEER = "192.0.2.1"


class World:
    """A guard, the time, and what it said."""

    def __init__(self, path: Path, *entries: dict[str, Any], **fields: Any) -> None:
        self.now = 0.0
        self.rejected: list[str] = []
        self.guard = Guard(
            load(path / "keys.json", *entries, **fields),
            clock=lambda: self.now,
            rejected=self.rejected.append,
            failures=Failures(3),
        )

    def refusal(self, key: str | None, scope: str = "infer", peer: str = PEER) -> BadRequest:
        with pytest.raises(BadRequest) as caught:
            self.admit(key, scope, peer)
        return caught.value

    def admit(self, key: str | None, scope: str = "infer", peer: str = PEER) -> Any:
        fields = {} if key is None else {"authorization": f"Bearer {key}"}
        return self.guard.admit(fields, scope, peer)


def test_a_right_key_is_let_in_by_either_header(tmp_path: Path) -> None:
    guard = World(tmp_path, entry("k")).guard
    for fields in (
        {"authorization": "Bearer k"},
        {"authorization": "bearer   k "},
        {"x-api-key": "k"},
    ):
        assert guard.admit(fields, "infer", PEER).name == "camera"


@pytest.mark.parametrize(
    "fields",
    [{}, {"authorization": "k"}, {"authorization": "Basic azpr"}, {"authorization": ""},
     {"authorization": "Bearer"}, {"x-api-key": ""}, {"cookie": "k"},
     {"authorization": "Bearer wrong", "x-api-key": "k"}],
)  # fmt: skip
def test_anything_else_is_not(tmp_path: Path, fields: dict[str, str]) -> None:
    world = World(tmp_path, entry("k"))
    with pytest.raises(Denied) as caught:
        world.guard.admit(fields, "infer", PEER)
    assert caught.value.status == 401
    assert caught.value.fields == b"WWW-Authenticate: Bearer\r\n"
    assert world.rejected == ["key"]


def test_unknown_expired_and_early_keys_get_the_same_answer(tmp_path: Path) -> None:
    world = World(
        tmp_path,
        entry("old", not_after="2026-01-01"),
        entry("early", not_before="2027-01-01"),
    )
    answers = {
        (fault.status, fault.message, fault.hint)
        for fault in (world.refusal(key) for key in ("old", "early", "unknown"))
    }
    assert answers == {(401, "this server needs a valid key", "send `Authorization: Bearer KEY`")}


def test_a_key_that_expires_while_it_is_used_is_refused_from_then_on(tmp_path: Path) -> None:
    now = [NOON]
    world = World(tmp_path, entry("k", not_after="2026-11-23T13:00:00Z"))
    world.guard._keys._clock = lambda: now[0]
    assert world.admit("k").name == "camera"
    now[0] += 3600
    assert world.refusal("k").status == 401


def test_a_scope_is_needed_where_there_is_one(tmp_path: Path) -> None:
    world = World(tmp_path, entry("i"), entry("m", name="prometheus", scopes=["metrics"]))
    assert world.admit("i", "infer").name == "camera"
    assert world.admit("m", "metrics").name == "prometheus"
    for key in "im":
        assert world.admit(key, "any")
        assert world.admit(key, "")
        fault = world.refusal(key, "admin")
        assert (fault.status, fault.message) == (403, "this key is not good for this")
        assert fault.fields == b""
    assert world.refusal("i", "metrics").status == 403
    assert world.refusal("m", "infer").status == 403


def test_health_needs_no_key(tmp_path: Path) -> None:
    world = World(tmp_path, entry("k"))
    assert world.admit(None, "").name == "anonymous"
    assert world.admit("wrong", "").name == "anonymous"
    assert world.rejected == []


def test_callers_without_a_key_may_do_what_the_file_lets_them(tmp_path: Path) -> None:
    world = World(tmp_path, entry("k"), anonymous={"scopes": ["infer"], "rate": 1})
    assert world.admit(None).name == "anonymous"
    assert isinstance(world.refusal(None), TooMany)
    assert world.refusal(None, "metrics").status == 401
    assert world.refusal("wrong").status == 401
    assert world.admit("k").name == "camera"


def test_the_rate_is_kept_by_name_and_says_when_to_come_back(tmp_path: Path) -> None:
    world = World(tmp_path, entry("a", rate=0.25, burst=2), entry("b", rate=0.25, burst=2))
    world.admit("a")
    world.admit("b")
    for key in "ab":
        fault = world.refusal(key)
        assert (fault.status, fault.fields) == (429, b"Retry-After: 4\r\n")
        assert fault.message == "`camera` may ask 0.25 times a second"
    assert world.rejected == ["rate", "rate"]
    world.now += 4.0
    world.admit("a")


def test_a_wait_below_a_second_is_said_as_one(tmp_path: Path) -> None:
    world = World(tmp_path, entry("a", rate=50, burst=1))
    world.admit("a")
    assert world.refusal("a").fields == b"Retry-After: 1\r\n"


def test_slots_are_given_back_once(tmp_path: Path) -> None:
    world = World(tmp_path, entry("a", concurrency=2))
    first, second = world.admit("a"), world.admit("a")
    fault = world.refusal("a")
    assert (fault.status, fault.message) == (
        429, "`camera` has 2 requests under way, as many as it may"
    )  # fmt: skip
    assert world.rejected == ["concurrency"]
    first.release()
    first.release()
    third = world.admit("a")
    assert world.refusal("a").status == 429
    for caller in (second, third):
        caller.release()
    assert [world.admit("a").name for _ in range(2)] == ["camera", "camera"]


def test_a_request_refused_for_its_slots_costs_no_token(tmp_path: Path) -> None:
    world = World(tmp_path, entry("a", concurrency=1, rate=0.001, burst=2))
    caller = world.admit("a")
    for _ in range(5):
        assert world.refusal("a").status == 429
    caller.release()
    world.admit("a")


def test_wrong_keys_are_told_to_wait_while_right_ones_pass(tmp_path: Path) -> None:
    world = World(tmp_path, entry("k"))
    statuses = [world.refusal(f"wrong-{n}").status for n in range(5)]
    assert statuses == [401, 401, 401, 429, 429]
    assert world.refusal("wrong").fields == b"Retry-After: 20\r\n"
    assert world.refusal("wrong", peer="192.0.2.2").status == 401
    assert world.admit("k").name == "camera"
    # no key at all is no attempt: a browser's first request has none
    assert world.refusal(None).status == 401


def test_new_keys_replace_the_old_and_keep_what_was_used(tmp_path: Path) -> None:
    world = World(tmp_path, entry("old", concurrency=1), entry("gone", name="gone"))
    caller = world.admit("old")
    world.guard.replace(load(tmp_path / "new.json", entry("new", concurrency=1)))
    assert world.refusal("old").status == 401
    assert world.refusal("gone").status == 401
    assert world.refusal("new").status == 429
    caller.release()
    assert world.admit("new").name == "camera"
