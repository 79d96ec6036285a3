"""Every hostile request, over both protocols, against a bundle that serves in its own process."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.hostile.playing import HTTP1, HTTP2, ask_well, play, wire_bytes
from tests.unit.runtime.live_server import Client

# Of the process, in kB, after everything was played twice more; a request kept would cost more.
MOST_DRIFT_KB = 6144

Served = tuple[subprocess.Popen[str], int]


def pss_kb(pid: int) -> int:
    text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    return int(next(line.split()[1] for line in text.splitlines() if line.startswith("Pss:")))


def test_the_corpus_has_300_requests_and_each_is_another() -> None:
    assert len(HTTP1) >= 150
    assert len(HTTP2) >= 150
    sent = [wire_bytes(table, name) for table, name in (*HTTP1, *HTTP2)]
    assert len(set(sent)) == len(sent)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("table", "name"), HTTP1)
def test_over_http_1_it_is_refused_with_a_reason(port: int, table: str, name: str) -> None:
    play(port, table, name)
    ask_well(port)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("table", "name"), HTTP2)
def test_over_http_2_it_is_refused_with_a_reason(port: int, table: str, name: str) -> None:
    play(port, table, name)
    ask_well(port)


def test_all_of_it_leaves_the_process_as_it_was(served: Served) -> None:
    process, port = served

    def play_all() -> int:
        for table, name in (*HTTP1, *HTTP2):
            play(port, table, name)
        ask_well(port)
        return pss_kb(process.pid)

    before = play_all()
    play_all()
    after = play_all()
    assert after - before <= MOST_DRIFT_KB
    assert process.poll() is None
    with Client(port) as client:
        metrics = client.ask("GET", "/metrics").body.decode()
    assert 'code="4' in metrics
    assert 'code="5' not in metrics
    assert 'code="INTERNAL"' not in metrics
    assert 'code="UNKNOWN"' not in metrics
