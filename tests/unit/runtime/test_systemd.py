"""The service manager's side played by real sockets, and by systemd's own tools."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from runtime.systemd import Notifier, take_sockets

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    """Return what `$NOTIFY_SOCKET` says and the socket behind it."""
    name = str(tmp_path / "notify")
    if request.param == "abstract":
        name = f"@edgepack-test-{os.getpid()}-{time.monotonic_ns()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(name.replace("@", "\0"))
        receiver.settimeout(10)
        yield name, receiver


def test_every_message_arrives_as_the_manual_has_it(manager: tuple[str, socket.socket]) -> None:
    name, receiver = manager
    notifier = Notifier({"NOTIFY_SOCKET": name})
    notifier.ready("serving digits\non port 8000")
    assert receiver.recv(4096) == b"READY=1\nSTATUS=serving digits on port 8000"
    notifier.status("an engine is being built")
    assert receiver.recv(4096) == b"STATUS=an engine is being built"
    notifier.reloading()
    first, second = receiver.recv(4096).decode().split("\n")
    assert first == "RELOADING=1"
    assert 0 <= time.monotonic() * 1e6 - int(second.removeprefix("MONOTONIC_USEC=")) < 60e6
    notifier.hand_over(4711)
    assert receiver.recv(4096) == b"MAINPID=4711\nREADY=1\nWATCHDOG=1"
    notifier.extend(2.5)
    assert receiver.recv(4096) == b"EXTEND_TIMEOUT_USEC=2500000"
    notifier.stopping()
    assert receiver.recv(4096).startswith(b"STOPPING=1\nSTATUS=")


def test_the_watchdog_is_fed_at_half_its_time(manager: tuple[str, socket.socket]) -> None:
    name, receiver = manager
    environment = {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "4000000"}
    environment["WATCHDOG_PID"] = str(os.getpid())
    notifier = Notifier(environment)
    assert notifier.watchdog_s == 2.0
    assert "WATCHDOG_PID" not in environment  # for whoever takes over
    for now in (100.0, 101.0, 101.9, 102.0, 103.9, 104.5):
        notifier.feed(now)
    notifier.status("done")
    heard = []
    while not heard or heard[-1] != b"STATUS=done":
        heard.append(receiver.recv(4096))
    assert heard[:-1] == [b"WATCHDOG=1"] * 3


@pytest.mark.parametrize(
    "environment",
    [
        {"WATCHDOG_USEC": "4000000", "WATCHDOG_PID": "1"},
        {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": ""},
        {},
    ],
)
def test_without_a_watchdog_of_its_own_nothing_is_fed(
    manager: tuple[str, socket.socket], environment: dict[str, str]
) -> None:
    name, receiver = manager
    notifier = Notifier({"NOTIFY_SOCKET": name, **environment})
    assert notifier.watchdog_s is None
    notifier.feed(100.0)
    notifier.status("done")
    assert receiver.recv(4096) == b"STATUS=done"


@pytest.mark.parametrize("name", ["", "relative/path", "/nowhere/at/all", "/" + "x" * 300, "@"])
def test_a_manager_that_is_not_there_stops_nobody(name: str) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "4000000"})
    notifier.ready("ready")
    notifier.feed(100.0)
    notifier.stopping()


def test_a_manager_that_does_not_read_stops_nobody(manager: tuple[str, socket.socket]) -> None:
    name, receiver = manager
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as filler:
        filler.setblocking(False)
        try:
            while True:
                filler.sendto(b"x", name.replace("@", "\0"))
        except BlockingIOError:
            pass
    Notifier({"NOTIFY_SOCKET": name}).ready()
    assert receiver.recv(16) == b"x"


def test_systemds_own_tool_is_understood_by_the_same_receiver(
    manager: tuple[str, socket.socket],
) -> None:
    if shutil.which("systemd-notify") is None:
        pytest.skip("systemd-notify is not installed")
    name, receiver = manager
    done = subprocess.run(
        ["systemd-notify", "--no-block", "--status=theirs"],
        env={**os.environ, "NOTIFY_SOCKET": name}, check=False, timeout=30,
    )  # fmt: skip
    theirs = receiver.recv(4096) if done.returncode == 0 else b""
    Notifier({"NOTIFY_SOCKET": name}).status("theirs")
    assert receiver.recv(4096) == theirs == b"STATUS=theirs"


def handed(code: str, count: str, pid: str | None = None, *, listening: bool = True) -> str:
    """Run code in a process that got a socket as descriptor 3, and return what it prints."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if listening:
            listener.listen()
        starter = (
            "import os, sys; os.dup2(int(sys.argv[1]), 3);"
            " os.environ['LISTEN_PID'] = sys.argv[2] or str(os.getpid());"
            " os.environ['LISTEN_FDS'] = sys.argv[3];"
            " os.environ['LISTEN_FDNAMES'] = 'http'; exec(sys.argv[4])"
        )
        done = subprocess.run(
            [sys.executable, "-c", starter, str(listener.fileno()), pid or "", count, code],
            cwd=ROOT, pass_fds=[listener.fileno()], capture_output=True, text=True, check=False,
            timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.replace(str(listener.getsockname()[1]), "PORT").strip()


TAKE = (
    "from runtime.systemd import take_sockets; found = take_sockets();"
    "print([s.getsockname()[1] for s in found], [s.get_inheritable() for s in found],"
    " [n for n in os.environ if n.startswith('LISTEN_')])"
)


def test_a_socket_handed_over_is_taken_once_and_kept_from_children() -> None:
    assert handed(TAKE, "1") == "[PORT] [False] []"
    assert handed(TAKE + "; del found; print(take_sockets())", "1").endswith("[]")


@pytest.mark.parametrize("count", ["0", "-1", "", "many", "99999999", "²"])
def test_a_false_count_of_sockets_takes_none(count: str) -> None:
    assert handed(TAKE, count) == "[] [] []"


def test_sockets_of_another_process_are_not_ours() -> None:
    assert handed(TAKE, "1", pid="1") == "[] [] []"


def test_what_is_no_listening_socket_is_left_out() -> None:
    assert handed(TAKE, "1", listening=False) == "[] [] []"
    assert handed("os.dup2(os.open('/dev/null', os.O_RDONLY), 3);" + TAKE, "1") == "[] [] []"


def test_outside_of_a_service_there_are_none() -> None:
    assert take_sockets({}) == []
