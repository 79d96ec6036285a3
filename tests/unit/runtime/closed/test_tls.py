"""TLS through a real server and real clients: versions, certificates, stalls, large bodies."""

from __future__ import annotations

import dataclasses
import shutil
import socket
import ssl
import struct
import subprocess
import time
from typing import TYPE_CHECKING, Any, Self

import pytest

from runtime.app import App
from runtime.connection import Connection
from runtime.options import ServeOptions
from tests.unit.runtime.live_server import (
    Client,
    LiveServer,
    OpenRelease,
    infer_body,
    request,
    serving,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.unit.runtime.closed.authority import Authority, Pair

READY = "/v2/health/ready"
INFER = "/v2/models/relu/infer"


@dataclasses.dataclass
class TlsClient(Client):
    """One encrypted connection."""

    context: ssl.SSLContext | None = None
    session: ssl.SSLSession | None = None
    receive_bytes: int = 0  # what the kernel keeps for a client that does not read

    def __enter__(self) -> Self:
        plain = socket.socket()
        plain.settimeout(self.timeout_s)
        if self.receive_bytes:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.receive_bytes)
        plain.connect(("127.0.0.1", self.port))
        assert self.context is not None
        try:
            self.socket = self.context.wrap_socket(
                plain, server_hostname="127.0.0.1", session=self.session
            )
        except BaseException:
            plain.close()
            raise
        return self

    @property
    def secured(self) -> ssl.SSLSocket:
        assert isinstance(self.socket, ssl.SSLSocket)
        return self.socket


def options(pair: Pair, **changes: Any) -> ServeOptions:
    return ServeOptions(tls_cert=str(pair.cert), tls_key=str(pair.key))._replace(**changes)


@pytest.fixture(scope="module")
def pair(authority: Authority) -> Pair:
    return authority.issue("tls-server")


@pytest.fixture(scope="module")
def live(
    authority: Authority, pair: Pair, release: OpenRelease, engine: Any
) -> Iterator[LiveServer]:
    with serving(App(release, engine), options(pair)) as server:
        yield server


@pytest.fixture(scope="module")
def live_1_2(pair: Pair, release: OpenRelease, engine: Any) -> Iterator[LiveServer]:
    with serving(App(release, engine), options(pair, tls_min="1.2")) as server:
        yield server


def client(live: LiveServer, context: ssl.SSLContext, **changes: Any) -> TlsClient:
    return TlsClient(live.port, context=context, **changes)


def relu_request(rows: int) -> tuple[bytes, bytes]:
    """Return a binary request of `rows` times 4 kB, and the tensor that it carries."""
    data = struct.pack("<4f", 1.0, 2.0, 3.0, 4.0) * (rows * 256)
    document = {
        "inputs": [
            {
                "name": "x", "shape": [1, rows, 1024], "datatype": "FP32",
                "parameters": {"binary_data_size": len(data)},
            }
        ],
        "outputs": [{"name": "y", "parameters": {"binary_data": True}}],
    }  # fmt: skip
    body, fields = infer_body(document, data)
    return request("POST", INFER, body, fields), data


def test_it_speaks_tls_1_3_and_says_so_in_its_url(live: LiveServer, authority: Authority) -> None:
    assert live.url.startswith("https://127.0.0.1:")
    with client(live, authority.context()) as one:
        assert one.secured.version() == "TLSv1.3"
        assert one.secured.compression() is None
        for _ in range(3):
            assert one.ask("GET", READY).json() == {"ready": True}


def test_an_older_version_is_refused(live: LiveServer, authority: Authority) -> None:
    context = authority.context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError, match=r"(?i)version"), client(live, context):
        pass
    with client(live, authority.context()) as one:
        assert one.ask("GET", READY).status == 200
        text = one.ask("GET", "/metrics").body.decode()
    assert 'edgepack_tls_handshakes_failed_total{reason="' in text


def test_1_2_by_option_has_only_strong_suites(live_1_2: LiveServer, authority: Authority) -> None:
    context = authority.context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with client(live_1_2, context) as one:
        name, version, _ = one.secured.cipher() or ("", "", 0)
        assert version == "TLSv1.2"
        assert name.startswith("ECDHE-")
        assert "GCM" in name or "CHACHA20" in name
        assert one.ask("GET", READY).status == 200
    context.set_ciphers("AES128-SHA:AES256-GCM-SHA384:ECDHE-ECDSA-AES128-SHA")
    with pytest.raises(ssl.SSLError), client(live_1_2, context):
        pass
    with client(live_1_2, authority.context()) as one:
        assert one.secured.version() == "TLSv1.3"


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
def test_1_1_is_refused_even_then(live_1_2: LiveServer, authority: Authority) -> None:
    context = authority.context()
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.raises(ssl.SSLError), client(live_1_2, context):
        pass


def test_the_protocol_is_agreed_on_in_the_handshake(live: LiveServer, authority: Authority) -> None:
    context = authority.context()
    context.set_alpn_protocols(["h2", "http/1.1"])
    with client(live, context) as one:
        # this bundle has no gRPC, so HTTP/2 is not offered
        assert one.secured.selected_alpn_protocol() == "http/1.1"
        assert one.ask("GET", READY).status == 200


def test_a_client_that_speaks_plain_http_is_told(live: LiveServer, authority: Authority) -> None:
    with Client(live.port) as plain:
        plain.send(request("GET", READY))
        reply = plain.read()
        assert (reply.status, reply.error) == (400, "this port speaks TLS (use https://)")
        assert plain.is_closed()
    with client(live, authority.context()) as one:
        assert one.ask("GET", READY).status == 200


@pytest.mark.parametrize("noise", [b"\x16\x03\x01\x00\x05hello", b"\0" * 64, b"PRI * HTTP/2.0\r\n"])
def test_noise_instead_of_a_handshake_ends_the_connection(live: LiveServer, noise: bytes) -> None:
    with Client(live.port) as plain:
        plain.send(noise)
        plain.socket.shutdown(socket.SHUT_WR)
        while plain.socket.recv(4096):
            pass


def test_a_handshake_that_stalls_is_ended(
    monkeypatch: pytest.MonkeyPatch, pair: Pair, release: OpenRelease, engine: Any,
    authority: Authority,
) -> None:  # fmt: skip
    monkeypatch.setattr("runtime.connection.HEAD_TIMEOUT_S", 0.2)
    monkeypatch.setattr("runtime.server.TICK_S", 0.05)
    with serving(App(release, engine), options(pair)) as live:
        stalled = [Client(live.port) for _ in range(20)]
        for one in stalled:
            one.__enter__()
        stalled[1].send(b"\x16")
        stalled[2].send(b"\x16\x03\x01\x02\x00\x01\x00")
        for one in stalled:
            assert one.is_closed()
            one.__exit__()
        monkeypatch.setattr("runtime.connection.HEAD_TIMEOUT_S", 2.0)
        with client(live, authority.context()) as silent:
            assert silent.is_closed()  # after the handshake the time for a head runs


def test_a_connection_past_the_limit_is_told_over_tls(
    pair: Pair, release: OpenRelease, engine: Any, authority: Authority
) -> None:
    app = App(release, engine)
    app.limits = app.limits._replace(connections=1)
    with serving(app, options(pair)) as live, client(live, authority.context()) as first:
        assert first.ask("GET", READY).status == 200
        with client(live, authority.context()) as second:
            assert second.read().error == "too many connections"
            assert second.is_closed()
        assert first.ask("GET", READY).status == 200


def test_bodies_of_many_records_arrive_whole_both_ways(
    live: LiveServer, authority: Authority
) -> None:
    sent, data = relu_request(1024)
    with client(live, authority.context()) as one:
        for _ in range(2):
            one.send(sent)
            assert one.read().body.endswith(data)


def test_a_body_in_pieces_of_any_size_arrives_whole(live: LiveServer, authority: Authority) -> None:
    sent, data = relu_request(1)
    with client(live, authority.context()) as one:
        for size in (1, 7, 500, 16384):
            for at in range(0, len(sent), size) if size > 1 else range(200):
                one.send(sent[at : at + size])
            if size == 1:
                one.send(sent[200:])
            assert one.read().body.endswith(data)


def test_a_client_that_reads_late_gets_everything(
    live: LiveServer, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent, data = relu_request(1024)
    paused = []
    pause_writing = Connection.pause_writing
    monkeypatch.setattr(
        Connection, "pause_writing", lambda self: (paused.append(1), pause_writing(self))
    )
    with client(live, authority.context(), receive_bytes=65536) as slow:
        slow.send(sent)
        with client(live, authority.context()) as other:
            while not paused:  # the test's own time limit ends this
                assert other.ask("GET", READY).status == 200
        got = bytearray()
        while not got.endswith(data):
            piece = slow.secured.recv(1000 + len(got) % 5000)
            assert piece
            got += piece
        assert slow.ask("GET", READY).status == 200


def test_requests_sent_ahead_are_answered_in_order(live: LiveServer, authority: Authority) -> None:
    sent, data = relu_request(16)
    small = request("GET", READY)
    with client(live, authority.context()) as one:
        one.send((sent + small) * 12)  # more than is read ahead, so reading pauses and goes on
        for _ in range(12):
            assert one.read().body.endswith(data)
            assert one.read().json() == {"ready": True}


def test_the_end_is_announced_and_half_closed_clients_are_answered(
    live: LiveServer, authority: Authority
) -> None:
    context = authority.context()
    with client(live, context) as one:
        one.send(request("GET", READY, fields={"Connection": "close"}))
        assert one.read().status == 200
        assert one.secured.recv(1) == b""  # raises where `close_notify` is missing
    with client(live, context) as half:
        half.send(request("GET", READY))
        # a bare FIN, as many clients end
        socket.socket.shutdown(half.secured, socket.SHUT_WR)
        assert half.read().status == 200


def test_clients_that_vanish_leave_nothing_behind(live: LiveServer, authority: Authority) -> None:
    sent, _ = relu_request(256)
    context = authority.context()
    for at in (0, 100, len(sent) // 2, len(sent)):
        with client(live, context) as one:
            one.send(sent[:at])
            one.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with client(live, context) as one:
        for _ in range(200):
            if live.app.metrics.connections == 1:
                break
            time.sleep(0.01)
            assert one.ask("GET", READY).status == 200
        assert live.app.metrics.connections == 1


def test_a_session_is_resumed(live: LiveServer, authority: Authority) -> None:
    context = authority.context()
    with client(live, context) as one:
        assert one.ask("GET", READY).status == 200
        session = one.secured.session
    with client(live, context, session=session) as again:
        assert again.ask("GET", READY).status == 200
        assert again.secured.session_reused


@pytest.mark.skipif(shutil.which("openssl") is None, reason="`openssl` is not installed")
@pytest.mark.parametrize(
    ("version", "letter", "told"),
    [
        ("-tls1_3", "K", "KEYUPDATE"),
        ("-tls1_3", "k", "KEYUPDATE"),
        ("-tls1_2", "R", "RENEGOTIATING"),
    ],
)  # fmt: skip
def test_new_keys_are_harmless_and_renegotiation_is_refused(
    live_1_2: LiveServer, authority: Authority, version: str, letter: str, told: str
) -> None:
    argv = [
        "openssl", "s_client", version, "-crlf", "-CAfile", str(authority.cert),
        "-connect", f"127.0.0.1:{live_1_2.port}",
    ]  # fmt: skip
    ask = request("GET", READY).decode().replace("\r\n", "\n")
    process = subprocess.Popen(
        argv, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdin is not None
    assert process.stdout is not None
    seen = []
    try:
        for typed, wanted in ((ask, "ready"), (f"{letter}\n", told), (ask, "ready")):
            process.stdin.write(typed.encode())
            seen.append("")
            while wanted not in seen[-1]:
                piece = process.stdout.read(4096).decode()
                if not piece:
                    break
                seen[-1] += piece
    except BrokenPipeError:
        pass  # it ends by itself where it is refused
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()
    assert '{"ready":true}' in seen[0]
    if letter == "R":
        assert "no renegotiation" in "".join(seen)
    else:
        assert '{"ready":true}' in seen[2]
    with TlsClient(live_1_2.port, context=authority.context()) as one:
        assert one.ask("GET", READY).status == 200
