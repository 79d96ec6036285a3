"""Runs inside the booted machine: what a user would type there, and what then has to hold.

Its folder holds the exported units and the bundles. Each check is a line of JSON on standard
output: its name, what it found, and None or why it failed. They build on each other, in order.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import traceback
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HERE = Path(__file__).resolve().parent
UNITS = Path("/etc/systemd/system")
BUNDLES = Path("/opt/edgepack")
SERVICE, SOCKET = "edgepack-mlp.service", "edgepack-mlp.socket"
PORT = 8000
PREDICT = json.dumps({"data": [[0.5] * 64]}).encode()
# An emulated processor is slow: a start that verifies its release takes 10 to 100 s.
PATIENCE_S = 480
# Short, so that a check can wait for several of them.
WATCHDOG_S = 15
# On top of what was exported: a call that the filter refuses ends the service, instead of failing.
STRICTER = f"[Service]\nWatchdogSec={WATCHDOG_S}\nSystemCallErrorNumber=kill\n"


def sh(command: str, *, check: bool = True) -> str:
    done = subprocess.run(
        ["/bin/sh", "-c", command],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert not check or done.returncode == 0, (command, done.returncode, done.stdout, done.stderr)
    return done.stdout.strip()


def shown(name: str, unit: str = SERVICE) -> str:
    return sh(f"systemctl show {unit} -p {name} --value")


def main_pid() -> int:
    return int(shown("MainPID"))


def journal(since: float, unit: str = SERVICE) -> str:
    return sh(f"journalctl --no-pager -o cat -u {unit} --since @{since:.6f}")


def wait(what: str, is_so: Callable[[], Any], limit_s: float = PATIENCE_S) -> float:
    start = time.monotonic()
    while not is_so():
        assert time.monotonic() - start < limit_s, f"{limit_s} s have passed without: {what}"
        time.sleep(0.2)
    return round(time.monotonic() - start, 1)


def ask(path: str = "/v2/health/ready", body: bytes | None = None) -> tuple[int, Any]:
    with closing(http.client.HTTPConnection("127.0.0.1", PORT, timeout=PATIENCE_S)) as client:
        client.request("GET" if body is None else "POST", path, body)
        reply = client.getresponse()
        content = reply.read()
        return reply.status, json.loads(content) if content[:1] == b"{" else content.decode()


def version() -> str:
    status, document = ask("/v2/models/mlp")
    assert status == 200, document
    (found,) = document["versions"]
    return str(found)


def place(bundle: str, name: str = "mlp") -> None:
    """Put a bundle where the unit looks, in one step, as a user should."""
    shutil.copy(HERE / f"{bundle}.edgepack", BUNDLES / "next")
    (BUNDLES / "next").rename(BUNDLES / f"{name}.edgepack")


def flip(name: str = "mlp") -> None:
    path = BUNDLES / f"{name}.edgepack"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    (BUNDLES / "next").write_bytes(content)
    (BUNDLES / "next").rename(path)


@contextmanager
def load(*, pause_s: float) -> Iterator[dict[str, Any]]:
    """Ask all the while, each time on a new connection, and count what goes wrong."""
    seen: dict[str, Any] = {"answered": 0, "lost": []}
    stop = threading.Event()

    def run() -> None:
        while not stop.wait(pause_s):
            try:
                status, _ = ask("/predict", PREDICT)
            except (OSError, http.client.HTTPException) as error:
                seen["lost"].append(repr(error))
            else:
                seen["answered"] += status == 200
                if status != 200:
                    seen["lost"].append(status)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def install(name: str) -> None:
    """Do what the comments at the head of the service say."""
    for path in HERE.glob(f"edgepack-{name}.*"):
        shutil.copy(path, UNITS)
    text = (UNITS / f"edgepack-{name}.service").read_text()
    (command,) = re.findall(r"^#   (systemctl daemon-reload .*)$", text, re.MULTILINE)
    sh(command)


def installed_as_its_comments_say() -> dict[str, Any]:
    BUNDLES.mkdir()
    place("mlp-1.0.0")
    install("mlp")
    assert sh(f"systemctl is-active {SOCKET} {SERVICE}").split() == ["active", "active"]
    assert sh(f"systemctl is-enabled {SOCKET} {SERVICE}").split() == ["enabled", "enabled"]
    assert shown("StatusText") == f"serving mlp 1.0.0 on http://127.0.0.1:{PORT}"
    status, answer = ask("/predict", PREDICT)
    assert status == 200, answer
    assert len(answer["result"][0]) == 10
    return {"systemd": sh("systemctl --version").split("\n")[0], "kernel": os.uname().release}


def confined() -> dict[str, Any]:
    pid = main_pid()
    status = dict(
        line.split(":\t", 1)
        for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        if ":\t" in line
    )
    user = int(status["Uid"].split()[0])
    assert 61184 <= user <= 65519, user  # the range of DynamicUser=
    for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[kind], 16) == 0, kind
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    for space in ("net", "mnt", "ipc", "user"):
        ours = Path(f"/proc/1/ns/{space}").readlink()
        assert Path(f"/proc/{pid}/ns/{space}").readlink() != ours, space
    for limit in ("MemoryMax", "TasksMax"):
        assert shown(limit).isdigit(), limit
    used, most = int(shown("MemoryCurrent")), int(shown("MemoryMax"))
    assert used < most
    for folder in ("cache", "lib"):
        path = Path(f"/var/{folder}/private/edgepack-mlp")
        assert path.stat().st_uid == user
        assert path.stat().st_mode & 0o777 == 0o700
    assert list(Path("/var/cache/private/edgepack-mlp/edgepack/releases").iterdir())
    told = sh(f"systemd-analyze security --no-pager {SERVICE}", check=False)
    (exposure,) = re.findall(r"exposure level for \S+: ([0-9.]+)", told)
    assert float(exposure) <= 0.5
    return {"exposure": exposure, "memory_mib": used >> 20, "memory_max_mib": most >> 20}


def nothing_refused_by_the_filter_and_no_request_lost_by_a_restart() -> dict[str, Any]:
    folder = UNITS / f"{SERVICE}.d"
    folder.mkdir()
    (folder / "stricter.conf").write_text(STRICTER)
    sh("systemctl daemon-reload")
    before = main_pid()
    with load(pause_s=0.01) as seen:
        time.sleep(1)
        for _ in range(2):
            sh(f"systemctl restart {SERVICE}")
        time.sleep(1)
    assert main_pid() != before
    assert seen["lost"] == [], seen
    for path in ("/metrics", "/openapi.json", "/v2", "/"):
        assert ask(path)[0] == 200, path
    assert shown("NRestarts") == "0"
    return seen


def handed_over_without_a_lost_request_before_reload_returns() -> dict[str, Any]:
    before, since = main_pid(), time.time()
    place("mlp-1.1.0")
    with load(pause_s=1.5) as seen:  # which takes time from the one that starts
        time.sleep(1)
        start = time.monotonic()
        sh(f"systemctl reload {SERVICE}")
        seen["reload_s"] = round(time.monotonic() - start, 1)
        assert version() == "1.1.0"
        time.sleep(1)
    assert main_pid() != before
    wait("the status of the new one", lambda: "serving mlp 1.1.0" in shown("StatusText"), 20)
    assert sh(f"systemctl is-active {SERVICE}") == "active"
    assert seen["lost"] == [], seen
    wait("the end of the old one", lambda: not Path(f"/proc/{before}").exists(), 100)
    assert "reception only permitted" not in journal(since)
    return seen


def fed_by_the_new_one() -> dict[str, Any]:
    before = main_pid()
    time.sleep(3 * WATCHDOG_S)
    assert main_pid() == before
    assert shown("NRestarts") == "0"
    return {"watchdog_s": WATCHDOG_S, "waited_s": 3 * WATCHDOG_S}


def restarted_after_the_new_one_dies_beside_the_old() -> dict[str, Any]:
    place("mlp-1.0.0")
    with closing(socket.create_connection(("127.0.0.1", PORT))) as idle:
        # a client that stays connected, so that the old process stays too
        idle.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: 127.0.0.1:8000\r\n\r\n")
        assert idle.recv(65536).startswith(b"HTTP/1.1 200")
        old = main_pid()
        sh(f"systemctl reload {SERVICE}")
        new = main_pid()
        assert new != old
        assert Path(f"/proc/{old}/cmdline").read_bytes()
        os.kill(new, signal.SIGKILL)
        waited = wait("a restart", lambda: shown("NRestarts") == "1", 20)
    assert ask() == (200, {"ready": True})
    assert version() == "1.0.0"
    return {"restarted_after_s": waited}


def restarted_when_it_hangs() -> dict[str, Any]:
    before = int(shown("NRestarts"))
    wait("a server that is up", lambda: shown("SubState") == "running")
    os.kill(main_pid(), signal.SIGSTOP)
    waited = wait("a restart", lambda: int(shown("NRestarts")) == before + 1, 2 * WATCHDOG_S + 20)
    assert ask() == (200, {"ready": True})
    return {"watchdog_s": WATCHDOG_S, "restarted_after_s": waited}


def drained_and_asked_again_through_the_socket() -> dict[str, Any]:
    wait("a server that is up", lambda: shown("SubState") == "running")
    with closing(socket.create_connection(("127.0.0.1", PORT))) as begun:
        head = "POST /predict HTTP/1.1\r\nHost: 127.0.0.1:8000\r\nContent-Length: %d\r\n\r\n"
        begun.sendall((head % len(PREDICT)).encode() + PREDICT[:100])
        time.sleep(1)
        sh(f"systemctl stop --no-block {SERVICE}")
        wait("stopping", lambda: shown("SubState") == "stop-sigterm", 20)
        begun.sendall(PREDICT[100:])
        begun.settimeout(60)
        assert begun.recv(65536).startswith(b"HTTP/1.1 200")
    wait("an end", lambda: shown("ActiveState") == "inactive", 60)
    assert shown("Result") == "success"
    assert sh(f"systemctl is-active {SOCKET}") == "active"
    assert ask() == (200, {"ready": True})  # which has started it
    return {}


def not_started_over_and_over_with_a_changed_byte() -> dict[str, Any]:
    sh(f"systemctl stop {SOCKET} {SERVICE}")
    sh(f"systemctl clean --what=cache {SERVICE}")  # else the release that was verified is served
    flip()
    since = time.time()
    sh(f"systemctl start {SERVICE}", check=False)
    assert shown("ExecMainStatus") == "8"
    assert shown("ActiveState") == "failed"
    wait("a closed socket", lambda: shown("ActiveState", SOCKET) == "inactive", 20)
    try:
        ask()
        raise AssertionError("somebody answers")
    except ConnectionRefusedError:
        pass
    time.sleep(5)
    said = journal(since)
    # its content is looked at first where there is one core, its checksum where there are more
    assert said.count("does not unpack") + said.count("the checksum of `") == 1, said
    assert shown("NRestarts") == "0"
    place("mlp-1.0.0")
    sh(f"systemctl start {SERVICE}")
    assert ask() == (200, {"ready": True})
    return {}


def refused_successor_leaves_the_old_one() -> dict[str, Any]:
    before = main_pid()
    place("mlp-1.1.0")
    releases = Path("/var/cache/private/edgepack-mlp/edgepack/releases")
    for path in releases.iterdir():  # what was verified earlier would be served
        if path.is_dir() and b'"1.1.0"' in (path / "manifest.json").read_bytes():
            shutil.rmtree(path)
    flip()
    sh(f"systemctl reload {SERVICE}")
    assert main_pid() == before
    assert sh(f"systemctl is-active {SERVICE}") == "active"
    text = shown("StatusText")
    assert text.startswith("serving mlp 1.0.0 on "), text
    assert "another release does not start: it ended with status 8" in text, text
    assert version() == "1.0.0"
    place("mlp-1.0.0")
    sh(f"systemctl stop {SOCKET} {SERVICE}")
    return {"status": text}


def certificate(folder: Path, name: str) -> None:
    sh(
        "umask 077; openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 90"
        f" -keyout {folder}/tls.key -out {folder}/tls.crt -subj /CN={name}"
        " -addext subjectAltName=DNS:localhost,IP:127.0.0.1"
    )


def ask_closed(folder: Path, key: str) -> tuple[int, bytes]:
    context = ssl.create_default_context(cafile=str(folder / "tls.crt"))
    context.load_cert_chain("/srv/client/tls.crt", "/srv/client/tls.key")
    client = http.client.HTTPSConnection("127.0.0.1", 8443, timeout=PATIENCE_S, context=context)
    with closing(client):
        fields = {"Authorization": f"Bearer {key}"} if key else {}
        client.request("POST", "/predict", PREDICT, fields)
        reply = client.getresponse()
        return reply.status, reply.read()


def closed_by_credentials() -> dict[str, Any]:
    folder, client = Path("/etc/edgepack/kept"), Path("/srv/client")
    for path in (folder, client):
        path.mkdir(parents=True, mode=0o700)
    certificate(folder, "camera-7")
    certificate(client, "line-3")
    shutil.copy(client / "tls.crt", folder / "client-ca.crt")
    sh(f"(umask 077; openssl rand -hex 32 > {folder}/capture.key)")
    place("kept-1.0.0", "kept")
    told = sh(f"python3 {BUNDLES}/kept.edgepack new-key line-3 --file {folder}/keys.json")
    (key,) = re.findall(r"^(epk_\S+)$", told, re.MULTILINE)
    install("kept")
    assert ask_closed(folder, key)[0] == 200
    assert ask_closed(folder, "")[0] == 401
    try:
        context = ssl.create_default_context(cafile=str(folder / "tls.crt"))
        stranger = http.client.HTTPSConnection("127.0.0.1", 8443, timeout=60, context=context)
        with closing(stranger):
            stranger.request("GET", "/v2")
            stranger.getresponse()
        raise AssertionError("a client without a certificate is answered")
    except (ssl.SSLError, OSError) as error:
        refused = str(error)
    time.sleep(6)  # by then what was kept is on the disk
    captures = f"python3 {BUNDLES}/kept.edgepack captures list --capture-key {folder}/capture.key"
    listed = json.loads(sh(f"{captures} --dir /var/lib/edgepack-kept --json"))
    assert listed, listed
    # a new certificate, as the guide says
    certificate(folder, "camera-8")
    sh("systemctl restart edgepack-kept.service")
    assert ask_closed(folder, key)[0] == 200
    told = sh("systemd-analyze security --no-pager edgepack-kept.service", check=False)
    (exposure,) = re.findall(r"exposure level for \S+: ([0-9.]+)", told)
    return {"refused": refused, "exposure": exposure, "captures": str(listed)[:200]}


CHECKS = (
    installed_as_its_comments_say,
    confined,
    nothing_refused_by_the_filter_and_no_request_lost_by_a_restart,
    handed_over_without_a_lost_request_before_reload_returns,
    fed_by_the_new_one,
    restarted_after_the_new_one_dies_beside_the_old,
    restarted_when_it_hangs,
    drained_and_asked_again_through_the_socket,
    not_started_over_and_over_with_a_changed_byte,
    refused_successor_leaves_the_old_one,
    closed_by_credentials,
)


def main() -> None:
    for check in CHECKS:
        start = time.monotonic()
        found, failed = None, None
        try:
            found = check()
        except Exception:  # noqa: BLE001 - told to the test outside
            failed = traceback.format_exc()
        took = round(time.monotonic() - start, 1)
        line = {"check": check.__name__, "found": found, "failed": failed, "seconds": took}
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()
    said = sh("journalctl --no-pager -o short-precise -u 'edgepack-*'", check=False)
    sys.stdout.write(json.dumps({"journal": said}) + "\n")


if __name__ == "__main__":
    main()
