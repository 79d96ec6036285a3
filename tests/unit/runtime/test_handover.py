"""A server whose release is replaced under load: what it answers, and that it answers all."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from runtime.handover import Handover, inherited, read_digest
from runtime.loop import Loop
from runtime.options import SUCCEEDS
from tests.unit.runtime.small_bundle import ask, infer_document, serving_process, write_bundle

PREDICT = {"data": [[0.5] * 64]}


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory, engine_library: Path) -> list[Path]:
    folder = tmp_path_factory.mktemp("releases")
    return [
        write_bundle(folder / f"{version}.edgepack", engine_library, version=version)
        for version in ("1.0.0", "2.0.0")
    ]


@pytest.fixture
def current(releases: list[Path], tmp_path: Path) -> Path:
    path = tmp_path / "current.edgepack"
    path.symlink_to(releases[0])
    return path


def point(link: Path, target: Path) -> None:
    other = link.with_suffix(".next")
    other.symlink_to(target)
    other.replace(link)


def version_at(port: int) -> str:
    status, document = ask(port, "/v2/models/mlp")
    assert status == 200
    version: str = document["versions"][0]
    return version


def test_another_release_takes_over_under_load_and_no_request_is_lost(
    releases: list[Path], current: Path, tmp_path: Path
) -> None:
    answers: list[Any] = []
    stop = threading.Event()

    def load(port: int) -> None:
        while not stop.is_set():
            answers.append(ask(port, "/predict", PREDICT))

    with serving_process(current, tmp_path) as (process, port):
        assert version_at(port) == "1.0.0"
        threads = [threading.Thread(target=load, args=(port,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        point(current, releases[1])
        process.send_signal(signal.SIGHUP)
        try:
            assert process.wait(60) == 0
            before = len(answers)
            give_up_at = time.monotonic() + 30
            while len(answers) < before + 20 and time.monotonic() < give_up_at:
                time.sleep(0.05)
            assert version_at(port) == "2.0.0"
        finally:
            stop.set()
            for thread in threads:
                thread.join(30)
    assert len(answers) > 20
    assert {status for status, _ in answers} == {200}


def test_a_connection_that_lives_on_is_answered_before_it_is_closed(
    releases: list[Path], current: Path, tmp_path: Path
) -> None:
    import http.client
    import json

    with serving_process(current, tmp_path) as (process, port):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("POST", "/predict", json.dumps(PREDICT))
        first = connection.getresponse().read()
        point(current, releases[1])
        process.send_signal(signal.SIGHUP)
        while version_at(port) != "2.0.0":
            time.sleep(0.05)
        connection.request("POST", "/predict", json.dumps(PREDICT))
        reply = connection.getresponse()
        assert reply.read() == first
        assert reply.headers["Connection"] == "close"
        assert process.wait(30) == 0


def test_a_service_manager_is_told_who_serves_and_sees_it_end(
    releases: list[Path], current: Path, tmp_path: Path
) -> None:
    import os
    import socket

    heard: list[str] = []
    idle = b"GET /v2/health/live HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "n"))
        manager.settimeout(60)
        told = {"NOTIFY_SOCKET": str(tmp_path / "n"), "WATCHDOG_USEC": "600000000"}

        def listen_until(word: str) -> str:
            while not heard or word not in heard[-1]:
                heard.append(manager.recv(4096).decode())
            return heard[-1]

        with serving_process(current, tmp_path, **told) as (process, port):
            listen_until("READY=1\nSTATUS=serving mlp 1.0.0 on ")
            with socket.create_connection(("127.0.0.1", port)) as client:
                client.sendall(idle % port)
                assert client.recv(4096).startswith(b"HTTP/1.1 200")
                point(current, releases[1])
                process.send_signal(signal.SIGHUP)
                listen_until("RELOADING=1")
                successor = int(listen_until("MAINPID=").split("\n")[0].removeprefix("MAINPID="))
                # the reload ends here, and nobody but the main process is listened to
                assert heard[-1] == f"MAINPID={successor}\nREADY=1\nWATCHDOG=1"
                assert sum("READY=1" in message for message in heard) == 2
                listen_until("READY=1\nSTATUS=serving mlp 2.0.0 on ")
                # a manager is no parent of the successor until the process before it has ended
                os.kill(successor, signal.SIGKILL)
                assert process.wait(30) == 0


@pytest.mark.parametrize("broken", ["flipped", "missing"])
def test_a_release_that_is_none_leaves_the_old_one_serving(
    releases: list[Path], current: Path, tmp_path: Path, broken: str
) -> None:
    bad = tmp_path / "bad.edgepack"
    if broken == "flipped":
        content = bytearray(releases[1].read_bytes())
        content[len(content) // 2] ^= 1
        bad.write_bytes(content)
    with serving_process(current, tmp_path) as (process, port):
        point(current, bad)
        process.send_signal(signal.SIGHUP)
        assert process.stderr is not None
        while "goes on" not in process.stderr.readline():
            assert process.poll() is None
        assert version_at(port) == "1.0.0"
        # and it can be put right
        point(current, releases[1])
        process.send_signal(signal.SIGHUP)
        while version_at(port) != "2.0.0":
            time.sleep(0.05)


def test_the_same_release_is_not_started_again(current: Path, tmp_path: Path) -> None:
    with serving_process(current, tmp_path) as (process, port):
        process.send_signal(signal.SIGHUP)
        assert ask(port, "/v2/models/mlp/infer", infer_document())[0] == 200
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
        assert not children


def test_what_is_loaded_late_comes_from_the_release_that_was_verified(
    releases: list[Path], current: Path, tmp_path: Path
) -> None:
    with serving_process(current, tmp_path) as (process, port):
        # the interface is read, and gRPC imported, only when somebody asks
        point(current, tmp_path / "nothing")
        status, document = ask(port, "/openapi.json")
        assert status == 200
        assert document["info"]["version"] == "1.0.0"
        grpc = pytest.importorskip("tritonclient.grpc")
        assert grpc.InferenceServerClient(f"127.0.0.1:{port}").is_server_live()
        assert process.poll() is None


def test_what_was_handed_over_is_taken_once() -> None:
    assert inherited({}) is None
    assert inherited({SUCCEEDS: "not,numbers"}) is None
    assert inherited({SUCCEEDS: "100001,100002"}) is None


def test_a_successor_that_ends_is_told_of(tmp_path: Path, releases: list[Path]) -> None:
    import socket

    told: list[Any] = []
    loop = Loop()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        script = "import sys; sys.exit(8)"
        handover = Handover(str(releases[1]), "0" * 64, [sys.executable, "-c", script])
        assert handover.is_due()
        handover.begin(loop, listening, lambda *found: told.append(found))
        assert not handover.is_due()
        loop.run(lambda: bool(told), lambda: None, 0.05)
    loop.close()
    assert told == [(None, "it ended with status 8")]
    assert tmp_path.exists()


def test_a_release_is_known_by_its_manifest_wherever_it_lies(
    releases: list[Path], tmp_path: Path
) -> None:
    folder = tmp_path / "unpacked"
    subprocess.run(
        [sys.executable, str(releases[0]), "unpack", str(folder)], check=True, capture_output=True
    )
    assert read_digest(str(folder)) == read_digest(str(releases[0]))
    assert read_digest(str(folder)) != read_digest(str(releases[1]))
