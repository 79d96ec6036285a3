"""A server that is closed: keys, client certificates, pages, files that change under load."""

from __future__ import annotations

import json
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from runtime.app import App
from runtime.closed.newkey import add, revoke
from runtime.errors import UsageFault
from runtime.options import ServeOptions
from runtime.scheduling import Scheduler
from runtime.server import Server
from tests.unit.runtime.closed.authority import DAY, NOW, Authority, Pair
from tests.unit.runtime.closed.test_tls import READY, TlsClient, options
from tests.unit.runtime.live_server import Client, LiveServer, OpenRelease, request, serving

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[4]
MODEL = "/v2/models/relu"
ROW = json.dumps(
    {"inputs": [{"name": "x", "shape": [1, 1, 2], "datatype": "FP32", "data": [-1, 2]}]}
).encode()


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


class Keyring:
    """A keys file and the keys in it."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "keys.json")
        self.infer, _ = add(self.path, "camera")
        self.metrics, _ = add(self.path, "prometheus", scopes=["metrics"])
        self.single, _ = add(self.path, "single", concurrency=1)
        self.seldom, _ = add(self.path, "seldom", rate=0.001)
        self.expired, _ = add(self.path, "late", days=1, clock=lambda: NOW.timestamp() - 1e6)


@pytest.fixture(scope="module")
def keyring(tmp_path_factory: pytest.TempPathFactory) -> Keyring:
    return Keyring(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def live(keyring: Keyring, release: OpenRelease, engine: Any) -> Iterator[LiveServer]:
    with serving(App(release, engine), ServeOptions(keys=keyring.path)) as server:
        yield server


def test_health_is_told_to_everyone_and_nothing_else(live: LiveServer, keyring: Keyring) -> None:
    with live.client() as client:
        for path in (READY, "/v2/health/live"):
            assert client.ask("GET", path).status == 200
        for method, path in (
            ("GET", "/v2"), ("GET", MODEL), ("GET", "/openapi.json"), ("GET", "/metrics"),
            ("POST", f"{MODEL}/infer"), ("POST", "/predict"), ("GET", "/none"), ("PUT", "/predict"),
        ):  # fmt: skip
            reply = client.ask(method, path)
            assert (reply.status, reply.fields["www-authenticate"]) == (401, "Bearer"), path
            assert reply.error.startswith("this server needs a valid key")
            assert "relu" not in reply.error


def test_each_key_opens_what_it_is_for(live: LiveServer, keyring: Keyring) -> None:
    with live.client() as client:
        answer = client.ask("POST", f"{MODEL}/infer", ROW, bearer(keyring.infer))
        assert answer.json()["outputs"][0]["data"] == [0, 2]
        assert client.ask("GET", MODEL, b"", bearer(keyring.metrics)).status == 200
        assert client.ask("GET", "/none", b"", bearer(keyring.metrics)).status == 404
        assert client.ask("GET", "/metrics", b"", {"X-API-Key": keyring.metrics}).status == 200
        assert client.ask("GET", "/metrics", b"", bearer(keyring.infer)).status == 403
        assert client.ask("POST", "/predict", ROW, bearer(keyring.metrics)).status == 403
        for key in ("wrong", keyring.expired, keyring.infer[:-1], keyring.infer.upper()):
            assert client.ask("POST", "/predict", ROW, bearer(key)).status == 401
        for text in (f"Basic {keyring.infer}", keyring.infer):
            assert client.ask("GET", MODEL, b"", {"Authorization": text}).status == 401
        assert client.ask("GET", f"{MODEL}?key={keyring.infer}").status == 401


def test_the_same_head_is_looked_at_every_time(live: LiveServer, keyring: Keyring) -> None:
    with live.client() as client:
        key, _ = add(keyring.path, "once")
        live.server._reload()
        assert client.ask("GET", MODEL, b"", bearer(key)).status == 200
        revoke(keyring.path, "once")
        live.server._reload()
        assert client.ask("GET", MODEL, b"", bearer(key)).status == 401


def test_past_the_rate_it_is_told_when_to_come_back(live: LiveServer, keyring: Keyring) -> None:
    with live.client() as client:
        first = client.ask("POST", f"{MODEL}/infer", ROW, bearer(keyring.seldom))
        second = client.ask("POST", f"{MODEL}/infer", ROW, bearer(keyring.seldom))
        assert (first.status, second.status) == (200, 429)
        assert 900 < int(second.fields["retry-after"]) <= 1000
        text = client.ask("GET", "/metrics", b"", bearer(keyring.metrics)).body.decode()
        assert 'edgepack_rejected_total{reason="rate"}' in text


def test_a_slot_is_held_until_the_answer_or_the_end(live: LiveServer, keyring: Keyring) -> None:
    whole = request("POST", f"{MODEL}/infer", ROW, bearer(keyring.single))
    with live.client() as one, live.client() as other:
        one.send(whole[:-5])
        other.ask("GET", "/v2/health/live")  # behind it, so the head above is read by now
        other.send(whole)
        reply = other.read()
        assert (reply.status, reply.fields["retry-after"]) == (429, "1")
        one.send(whole[-5:])
        assert one.read().status == 200
        other.send(whole)
        assert other.read().status == 200
        one.send(whole[:-5])
        other.ask("GET", "/v2/health/live")
        other.send(whole)
        assert other.read().status == 429
        one.socket.close()
        while (reply := other.ask("POST", f"{MODEL}/infer", ROW, bearer(keyring.single))).status:
            if reply.status == 200:
                break


def test_a_body_without_a_key_is_not_waited_for(live: LiveServer) -> None:
    with live.client() as client:
        client.send(request("POST", "/predict", b"", {"Content-Length": "100000"}))
        reply = client.read()
        assert (reply.status, reply.fields["connection"]) == (401, "close")


def test_many_wrong_keys_are_told_to_wait(
    release: OpenRelease, engine: Any, tmp_path: Path
) -> None:
    keyring = Keyring(tmp_path)
    asked = ServeOptions(keys=keyring.path)
    with serving(App(release, engine), asked) as live, live.client() as client:
        statuses = [client.ask("GET", MODEL, b"", bearer(f"wrong-{n}")).status for n in range(12)]
        assert statuses == [401] * 10 + [429] * 2
        assert client.ask("GET", MODEL, b"", bearer(keyring.infer)).status == 200


def test_the_name_of_a_key_goes_with_the_request(
    live: LiveServer, keyring: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    callers = _record_callers(monkeypatch)
    with live.client() as client:
        client.ask("POST", f"{MODEL}/infer", ROW, bearer(keyring.infer))
    assert callers == ["camera"]


def _record_callers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    callers: list[str] = []
    submit = Scheduler.submit

    def recorded(self: Scheduler, *arguments: Any, **named: Any) -> Any:
        callers.append(named["caller"])
        return submit(self, *arguments, **named)

    monkeypatch.setattr(Scheduler, "submit", recorded)
    return callers


# Client certificates


@pytest.fixture(scope="module")
def mutual(authority: Authority, release: OpenRelease, engine: Any) -> Iterator[LiveServer]:
    asked = options(authority.issue("mutual"), tls_client_ca=str(authority.cert))
    with serving(App(release, engine), asked) as server:
        yield server


def test_a_client_without_a_certificate_is_refused(
    mutual: LiveServer, authority: Authority
) -> None:
    # in TLS 1.3 the client is done before the server has looked, so it hears of it when it reads
    with (
        pytest.raises((ssl.SSLError, ConnectionError), match=r"(?i)certificate|reset|pipe"),
        TlsClient(mutual.port, context=authority.context()) as client,
    ):
        client.ask("GET", READY)


def test_a_certificate_of_another_authority_or_past_its_time_is_refused(
    mutual: LiveServer, authority: Authority, tmp_path: Path
) -> None:
    foreign = Authority(tmp_path, "Foreign").issue("client", client=True)
    late = authority.issue("late-client", client=True, not_after=NOW - 2 * DAY)
    server_own = authority.issue("not-for-clients")
    for pair in (foreign, late, server_own):
        with (
            pytest.raises((ssl.SSLError, ConnectionError)),
            TlsClient(mutual.port, context=authority.context(pair)) as client,
        ):
            client.ask("GET", READY)


def test_a_certificate_says_who_asks(
    mutual: LiveServer, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    callers = _record_callers(monkeypatch)
    for stem, common, name in (
        ("client-a", "gateway-7", "x.example.com"),
        ("client-b", "", "line-3.example.com"),
        ("client-c", "two\nlines\u2028", "x.example.com"),
    ):
        pair = authority.issue(stem, name, common=common, client=True)
        with TlsClient(mutual.port, context=authority.context(pair)) as client:
            assert client.ask("POST", f"{MODEL}/infer", ROW).status == 200
    assert callers == ["gateway-7", "line-3.example.com", "twolines"]


def test_a_key_names_the_caller_even_where_a_certificate_is_shown(
    authority: Authority, release: OpenRelease, engine: Any, keyring: Keyring,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    callers = _record_callers(monkeypatch)
    asked = options(authority.issue("both"), tls_client_ca=str(authority.cert), keys=keyring.path)
    pair = authority.issue("client-d", common="gateway-7", client=True)
    with (
        serving(App(release, engine), asked) as live,
        TlsClient(live.port, context=authority.context(pair)) as client,
    ):
        assert client.ask("POST", f"{MODEL}/infer", ROW).status == 401
        assert client.ask("POST", f"{MODEL}/infer", ROW, bearer(keyring.infer)).status == 200
    assert callers == ["camera"]


# Pages


def test_a_listed_page_may_ask_and_read(
    release: OpenRelease, engine: Any, keyring: Keyring
) -> None:
    origin = "https://app.example.com"
    asked = ServeOptions(keys=keyring.path, allow_origins=(origin,))
    preflight = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    with serving(App(release, engine), asked) as live, live.client() as client:
        reply = client.ask("OPTIONS", f"{MODEL}/infer", b"", preflight)
        assert (reply.status, reply.body) == (204, b"")
        assert "content-length" not in reply.fields
        assert reply.fields["access-control-allow-origin"] == origin
        assert reply.fields["access-control-allow-methods"] == "GET, HEAD, POST"
        assert "Authorization" in reply.fields["access-control-allow-headers"]
        assert reply.fields["vary"] == "Origin"
        assert "access-control-allow-credentials" not in reply.fields
        for key, status in ((keyring.infer, 200), ("wrong", 401)):
            fields = {"Origin": origin, **bearer(key)}
            reply = client.ask("POST", f"{MODEL}/infer", ROW, fields)
            assert (reply.status, reply.fields["access-control-allow-origin"]) == (status, origin)
            assert "Retry-After" in reply.fields["access-control-expose-headers"]
        plain = client.ask("POST", f"{MODEL}/infer", ROW, bearer(keyring.infer))
        assert "access-control-allow-origin" not in plain.fields
        assert plain.fields["vary"] == "Origin"
        for foreign in ("https://app.example.com.evil.example", "http://app.example.com", "null"):
            for method in ("OPTIONS", "POST"):
                reply = client.ask(method, f"{MODEL}/infer", b"", {**preflight, "Origin": foreign})
                assert reply.status == 403
                assert "access-control-allow-origin" not in reply.fields


def test_no_page_may_where_none_is_listed(live: LiveServer, keyring: Keyring) -> None:
    fields = {"Origin": "https://app.example.com", "Access-Control-Request-Method": "POST"}
    with live.client() as client:
        for method in ("OPTIONS", "POST"):
            reply = client.ask(method, "/predict", ROW, {**fields, **bearer(keyring.infer)})
            assert reply.status == 403
            assert not [name for name in reply.fields if name.startswith("access-control")]


def test_names_of_the_certificate_are_answered_for(
    authority: Authority, release: OpenRelease, engine: Any, tmp_path: Path
) -> None:
    files = Pair(cert=tmp_path / "n.crt", key=tmp_path / "n.key")
    pair = authority.issue("n", "camera.example.com", "*.lan", "127.0.0.1", replace=files)
    with serving(App(release, engine), options(pair, names=("alias",))) as live:

        def statuses(*hosts: str) -> list[int]:
            with TlsClient(live.port, context=authority.context()) as client:
                return [
                    client.ask("GET", READY, b"", {"Host": f"{host}:{live.port}"}).status
                    for host in hosts
                ]

        good = ("camera.example.com", "CAMERA.example.com", "a.lan", "alias", "127.0.0.1")
        assert statuses(*good) == [200] * 5
        assert (
            statuses("evil.example", "x.camera.example.com", "a.b.lan", ".lan", "lan") == [421] * 5
        )
        authority.issue("n", "new.example.com", "127.0.0.1", replace=pair)
        live.server._reload()
        live.server._loop.from_thread(lambda: live.server._tick(_Nothing()))
        while statuses("new.example.com") != [200]:  # the test's own time limit ends this
            pass
        assert statuses("camera.example.com") == [421]


class _Nothing:
    def resume(self) -> None:
        """Stand for the listener, which a tick resumes."""


# Files that change


def test_what_ends_soon_is_told_and_measured(
    authority: Authority, release: OpenRelease, engine: Any, capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:  # fmt: skip
    end = (NOW + 5 * DAY).replace(microsecond=0)
    keys = str(tmp_path / "keys.json")
    key, _ = add(keys, "camera", scopes=["metrics"], days=3.5)
    app = App(release, engine)
    asked = options(authority.issue("soon", not_after=end), keys=keys)
    with serving(app, asked) as live:
        with TlsClient(live.port, context=authority.context()) as client:
            text = client.ask("GET", "/metrics", b"", bearer(key)).body.decode()
        live.server._loop.from_thread(lambda: live.server._tick(_Nothing()))
        told = ""
        while "the key `camera` expires in 3 days" not in told:
            told += capfd.readouterr().err
    assert re.search(
        rf"^edgepack_tls_certificate_not_after_seconds {int(end.timestamp())}$", text, re.MULTILINE
    )
    assert told.count("the TLS certificate expires on") == 1


# Where it may listen


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"host": "0.0.0.0"}, "without TLS they could read and change everything"),  # noqa: S104
        ({"host": "::"}, "without TLS they could read and change everything"),
        ({"host": "192.0.2.1"}, "without TLS they could read and change everything"),
        ({"host": "0.0.0.0", "keys": "k"}, "they could read the keys"),  # noqa: S104
        ({"host": "0.0.0.0", "keys": "k", "insecure": True}, "they could read the keys"),  # noqa: S104
        ({"tls_key": "k"}, "TLS needs a certificate"),
        ({"tls_client_ca": "k"}, "TLS needs a certificate"),
        ({"names": ("a b",)}, "`a b` is no host name"),
        ({"allow_origins": ("*",)}, "`*` is no origin"),
        ({"allow_origins": ("https://a.example/",)}, "is no origin"),
    ],
)
def test_what_would_be_open_by_accident_is_refused(
    release: OpenRelease, engine: Any, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageFault) as caught:
        Server(App(release, engine), ServeOptions(port=0)._replace(**changes))
    assert message in caught.value.message
    assert caught.value.hint


def test_a_server_without_tls_and_keys_imports_nothing_of_them(old_python: Path) -> None:
    program = (
        "import sys; from runtime import server, access, connection, options, main\n"
        "print([m for m in sys.modules if m == 'ssl' or m.startswith('runtime.closed')])"
    )
    done = subprocess.run(
        [old_python, "-c", program], cwd=ROOT, env={"PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.stdout == "[]\n", done.stderr


# A process of its own


PROGRAM = """
import sys
from runtime.app import App
from runtime.arguments import parse
from runtime.engine import open_engine
from runtime.errors import DeviceError
from runtime.main import COMMANDS
from runtime.options import serve_options
from runtime.server import serve
import json

class Release:
    folder, manifest = sys.argv[1], json.loads(sys.argv[2])

try:
    options = serve_options(parse(sys.argv[3:], COMMANDS)[1])
    serve(App(Release, open_engine(Release)), options)
except DeviceError as fault:
    sys.exit(fault.message)
"""


@contextmanager
def process_of(
    python: Path, release: OpenRelease, *words: str, **environment: str
) -> Iterator[tuple[subprocess.Popen[str], int]]:
    argv = [
        python, "-c", PROGRAM, release.folder, json.dumps(release.manifest), "serve",
        "--port", "0", *words,
    ]  # fmt: skip
    process = subprocess.Popen(
        list(map(str, argv)), cwd=ROOT, env={"PYTHONDONTWRITEBYTECODE": "1", **environment},
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        match = re.fullmatch(r".*https://127\.0\.0\.1:(\d+)\n", line)
        assert match, line + process.stderr.read()
        yield process, int(match[1])
    finally:
        process.kill()
        process.communicate(timeout=30)


def test_a_new_certificate_under_load_loses_no_request(
    authority: Authority, release: OpenRelease
) -> None:
    pair = authority.issue("renewed")
    words = ("--tls-cert", str(pair.cert), "--tls-key", str(pair.key))
    with process_of(Path(sys.executable), release, *words) as (process, port):
        assert process.stderr is not None
        stop = threading.Event()
        faults: list[object] = []
        counts = [0, 0]
        context = authority.context()

        def ask_on_one_connection() -> None:
            with TlsClient(port, context=context) as client:
                while not stop.is_set():
                    reply = client.ask("POST", f"{MODEL}/infer", ROW)
                    counts[0] += 1
                    if reply.status != 200:
                        faults.append(reply)

        def ask_on_new_connections() -> None:
            while not stop.is_set():
                with TlsClient(port, context=context) as client:
                    if client.ask("GET", READY).status != 200:
                        faults.append("not ready")
                    counts[1] += 1

        def guarded(work: Any) -> None:
            try:
                work()
            except Exception as error:  # noqa: BLE001 - whatever it is, the request was lost
                faults.append(error)

        def serial() -> int:
            with TlsClient(port, context=context) as client:
                found = client.secured.getpeercert() or {}
                return int(str(found["serialNumber"]), 16)

        def wait_for(told: str) -> None:
            assert process.stderr is not None
            while told not in (line := process.stderr.readline()):
                assert line, "it has ended"

        threads = [
            threading.Thread(target=guarded, args=(work,))
            for work in (ask_on_one_connection, ask_on_new_connections)
        ]
        for thread in threads:
            thread.start()
        try:
            seen = {serial()}
            for _ in range(3):
                authority.issue("renewed", replace=pair)
                process.send_signal(signal.SIGHUP)
                wait_for("reloaded certificate")
                seen.add(serial())
            assert len(seen) == 4
            good = pair.text
            pair.cert.write_bytes(b"broken")
            process.send_signal(signal.SIGHUP)
            wait_for(f"kept the old certificate: `{pair.cert}` is no certificate")
            assert serial() in seen
            # without a signal the change is seen all the same
            pair.cert.write_bytes(good)
            authority.issue("renewed", replace=pair)
            while serial() in seen:  # the test's own time limit ends this
                assert not faults
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert faults == []
        assert min(counts) > 0


def test_credentials_close_it_under_every_cpython(
    old_python: Path, authority: Authority, release: OpenRelease, tmp_path: Path
) -> None:
    for name, folder in (("tls", tmp_path), ("client", tmp_path.parent)):
        folder.mkdir(exist_ok=True)
        files = Pair(cert=folder / f"{name}.crt", key=folder / f"{name}.key")
        pair = authority.issue(name, replace=files, client=name == "client")
    (tmp_path / "client-ca.crt").write_bytes(authority.cert.read_bytes())
    key, _ = add(str(tmp_path / "keys.json"), "camera")
    context = authority.context(pair)
    with process_of(old_python, release, CREDENTIALS_DIRECTORY=str(tmp_path)) as (process, port):
        with TlsClient(port, context=context) as client:
            assert client.secured.version() == "TLSv1.3"
            assert client.ask("POST", f"{MODEL}/infer", ROW).status == 401
            row = json.dumps({"data": [[[0.5] * 256] * 256]}).encode()[:60000]
            assert client.ask("POST", "/predict", row, bearer(key)).status == 400
            answer = client.ask("POST", f"{MODEL}/infer", ROW, bearer(key))
            assert answer.json()["outputs"][0]["data"] == [0, 2]
            (tmp_path / "keys.json").write_text('{"keys": []}')
            process.send_signal(signal.SIGHUP)
            assert process.stderr is not None
            while "keys file" not in (line := process.stderr.readline()):
                assert line, "it has ended"
            assert client.ask("POST", f"{MODEL}/infer", ROW, bearer(key)).status == 401
            # a bare FIN must do, whatever this CPython calls it
            client.send(request("GET", READY))
            socket.socket.shutdown(client.secured, socket.SHUT_WR)
            assert client.read().status == 200
        with (
            pytest.raises((ssl.SSLError, ConnectionError)),
            TlsClient(port, context=authority.context()) as client,
        ):
            client.ask("GET", READY)
        with Client(port) as plain:
            plain.send(request("GET", READY))
            assert plain.read().status == 400
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def test_curl_is_served(authority: Authority, release: OpenRelease, engine: Any) -> None:
    pair = authority.issue("curl")
    with serving(App(release, engine), options(pair)) as live:
        done = subprocess.run(
            ["curl", "-sS", "--tlsv1.3", "--cacert", authority.cert, "-H",
             "Content-Type: application/json", "-d", '{"data": [[[-1, 5]]]}',
             f"https://127.0.0.1:{live.port}/predict"],
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
    assert json.loads(done.stdout)["result"] == [[[0, 5]]], done.stderr
