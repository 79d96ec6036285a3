"""Lines on standard error: their form, their bounds, and that nobody ever waits for them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from runtime.logs import BURST, BURST_S, MAX_LINE_BYTES, Log

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[3]


class Pipe:
    """A log, what reads it, and a clock that stands still."""

    def __init__(self) -> None:
        self.source, self.sink = os.pipe()
        self.now = 1_700_000_000.25
        self.log = Log(lambda: self.sink, lambda: self.now)

    def lines(self) -> list[str]:
        os.set_blocking(self.source, False)
        data = b""
        while True:
            try:
                more = os.read(self.source, 1 << 16)
            except BlockingIOError:
                break
            if not more:
                break
            data += more
        return data.decode().splitlines()


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    for descriptor in (made.source, made.sink):
        with contextlib.suppress(OSError):
            os.close(descriptor)


def test_text_is_a_sentence_and_what_it_does_not_say(pipe: Pipe) -> None:
    pipe.log.event("ready", url="http://127.0.0.1:8000")
    pipe.log.event("reload_failed", "warning", what="certificate", reason="it has expired")
    pipe.log.event("something_new", number=3, why="two words", nothing=None)
    assert pipe.lines() == [
        "ready on http://127.0.0.1:8000",
        "warning: kept the old certificate: it has expired",
        'something new number=3 why="two words"',
    ]


def test_a_sentence_whose_fields_are_missing_is_told_all_the_same(pipe: Pipe) -> None:
    pipe.log.event("ready", place="here")
    assert pipe.lines() == ["ready place=here"]


def test_json_is_one_document_a_line(pipe: Pipe) -> None:
    pipe.log.configure(form="json")
    pipe.log.event("ready", url="http://127.0.0.1:8000", nothing=None)
    assert [json.loads(line) for line in pipe.lines()] == [
        {
            "time": "2023-11-14T22:13:20.250Z",
            "level": "info",
            "event": "ready",
            "url": "http://127.0.0.1:8000",
        }
    ]


def test_a_request_is_a_line_of_figures_in_either_form(pipe: Pipe) -> None:
    fields: dict[str, Any] = {
        "request_id": "r1", "trace_id": "", "key": None, "protocol": "HTTP/1.1",
        "route": "infer", "status": 200, "bytes": 42, "ms": 1.5, "queue_ms": 0.0,
    }  # fmt: skip
    pipe.log.access(**fields)
    pipe.log.configure(form="json", access=True)
    pipe.log.access(**fields)
    text, document = pipe.lines()
    assert text == (
        "2023-11-14T22:13:20.250Z request_id=r1 protocol=HTTP/1.1 route=infer status=200 bytes=42"
        " ms=1.500 queue_ms=0.000"
    )
    assert json.loads(document)["ms"] == 1.5
    assert "key" not in json.loads(document)


@pytest.mark.parametrize("form", ["text", "json"])
def test_no_value_breaks_a_line_or_commands_a_terminal(pipe: Pipe, form: str) -> None:
    pipe.log.configure(form=form)
    pipe.log.event("ready", url="a\nERROR \x1b[2J\u202e\ud800" + "x" * 10_000)
    (line,) = pipe.lines()
    assert line.isprintable()
    assert len(line) < 400


def test_a_line_is_never_longer_than_a_pipe_takes_whole(pipe: Pipe) -> None:
    pipe.log.event("long", **{f"field{i}": "é" * 250 for i in range(100)})
    pipe.log.event("ready", url="next")
    pipe.log.configure(form="json")
    pipe.log.event("long", **{f"field{i}": "é" * 250 for i in range(100)})
    text, following, document = pipe.lines()
    assert len(text.encode()) < MAX_LINE_BYTES
    assert following == "ready on next"
    assert json.loads(document)["cut"] is True


def test_a_failure_tells_its_place_but_not_its_message(pipe: Pipe) -> None:
    def of_the_model() -> None:
        raise ValueError("the payload 4711")

    try:
        of_the_model()
    except ValueError as error:
        pipe.log.failure(error)
    (line,) = pipe.lines()
    assert re.fullmatch(r"error: ValueError in of_the_model:\d+ < test_a_failure\w+:\d+", line)


def test_repeated_events_are_counted_instead_of_written(pipe: Pipe) -> None:
    for _ in range(BURST + 30):
        pipe.log.event("too_many_connections", "warning")
    assert len(pipe.lines()) == BURST
    pipe.log.event("ready", url="others are heard")
    pipe.now += BURST_S
    pipe.log.event("too_many_connections", "warning")
    heard, told = pipe.lines()
    assert heard == "ready on others are heard"
    assert told.endswith("too many suppressed=30")


def test_a_reader_that_stops_reading_stops_nobody_and_learns_what_it_missed(pipe: Pipe) -> None:
    for number in range(5000):
        pipe.log.access(route="infer", status=200, number=number)
    before = pipe.lines()
    assert 0 < len(before) < 5000
    pipe.log.access(route="infer", status=200, number=5000)
    lost, last = pipe.lines()
    assert lost == (
        f"warning: {5000 - len(before)} lines of this log were lost: nobody read them in time"
    )
    assert last.endswith("number=5000")


def test_a_full_socket_stops_nobody() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        log = Log(ours.fileno)
        for number in range(20_000):
            log.access(route="infer", status=200, number=number)
        theirs.setblocking(False)
        assert theirs.recv(1000).startswith(b"2")


def test_a_reader_that_has_gone_stops_nobody(pipe: Pipe) -> None:
    os.close(pipe.source)
    for _ in range(3):
        pipe.log.event("ready", url="nobody")
    os.close(pipe.sink)
    pipe.log.event("ready", url="nobody")


def test_a_standard_error_closed_from_the_start_is_no_file_opened_later(tmp_path: Path) -> None:
    code = (
        "import os, sys; from runtime.logs import log; f = os.open(sys.argv[1], os.O_RDWR |"
        " os.O_CREAT); assert f == 2, f; log.event('ready', url='x')"
    )
    file = tmp_path / "not-a-log"
    done = subprocess.run(
        ["sh", "-c", 'exec "$0" "$@" 2>&-', sys.executable, "-S", "-c", code, file],
        cwd=ROOT, check=False, timeout=60, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert done.returncode == 0
    assert file.read_bytes() == b""


def test_the_journal_is_told_priorities_and_nobody_else(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    status = os.fstat(pipe.sink)
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
    pipe.log.configure()
    pipe.log.event("drain")
    pipe.log.event("reload_failed", "warning", what="keys", reason="x")
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino + 1}")
    pipe.log.configure()
    pipe.log.event("stopped")
    first, second, third = pipe.lines()
    assert first == "<6>stopping: answering what was begun"
    assert second.startswith("<4>warning: ")
    assert third == "stopped"
