"""Hostile requests: each gets a 4xx that says why, and the next good request is answered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.hostile.corpus_http import ADDRESSED, FRAMING, GOOD, WITHOUT_HTTP2
from tests.hostile.corpus_json import BODIES
from tests.unit.runtime.live_server import (
    BATCH,
    Client,
    LiveServer,
    make_release,
    serving_model,
    tensor,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

UNREADABLE = {**FRAMING, **WITHOUT_HTTP2}


@pytest.fixture(scope="module")
def live(
    small_models: dict[str, Any], engine_library: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveServer]:
    release = make_release(
        tmp_path_factory.mktemp("release"),
        small_models["mlp"].path,
        engine_library,
        [tensor("x", "float32", BATCH, 64)],
        [tensor("logits", "float32", BATCH, 10)],
        name="mlp",
    )
    with serving_model(release) as server:
        yield server


def assert_still_answers(live: LiveServer) -> None:
    with live.client() as client:
        client.send(GOOD)
        reply = client.read()
    assert reply.status == 200
    assert len(reply.json()["outputs"][0]["data"]) == 10


def assert_told(client: Client, status: int) -> str:
    reply = client.read()
    assert reply.status == status, reply.body
    assert reply.fields["content-type"] == "application/json"
    assert reply.error
    assert "access-control-allow-origin" not in reply.fields
    return reply.error


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_stream_that_can_be_read_in_two_ways_is_refused_and_closed(
    live: LiveServer, name: str
) -> None:
    data, status = UNREADABLE[name]
    with live.client() as client:
        client.send(data)
        assert_told(client, status)
        assert client.is_closed()
    assert_still_answers(live)


@pytest.mark.parametrize("name", ADDRESSED)
def test_a_request_that_is_not_admitted_is_told_why(live: LiveServer, name: str) -> None:
    data, status = ADDRESSED[name]
    with live.client() as client:
        client.send(data)
        assert_told(client, status)
    assert_still_answers(live)


@pytest.mark.parametrize("name", BODIES)
def test_a_body_that_the_model_does_not_take_is_told_why(live: LiveServer, name: str) -> None:
    data, said = BODIES[name]
    with live.client() as client:
        client.send(data)
        assert said in assert_told(client, 400)
        client.send(GOOD)
        assert client.read().status == 200, "the same connection goes on"
    assert_still_answers(live)


def test_nothing_of_all_this_was_a_fault_of_ours(live: LiveServer) -> None:
    with live.client() as client:
        for data, _ in BODIES.values():
            client.send(data)
            assert client.read().status == 400
        text = client.ask("GET", "/metrics").body.decode()
    assert 'code="400"' in text
    assert 'code="5' not in text, "every one of them is the client's mistake"
