"""Wrong keys and weak TLS against a bundle that serves behind both, over both protocols."""

from __future__ import annotations

import json
import socket
import ssl
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from runtime.closed.newkey import add, revoke
from tests.hostile import corpus_grpc
from tests.hostile.corpus_http import INFER, X
from tests.hostile.http2_client import Http2Client
from tests.unit.runtime.closed.authority import Authority
from tests.unit.runtime.closed.test_tls import TlsClient
from tests.unit.runtime.small_bundle import serving_process

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

BODY = json.dumps({"inputs": [X]}).encode()
READY = "/v2/health/ready"


@dataclass(frozen=True, kw_only=True)
class Closed:
    """A bundle behind TLS and keys."""

    port: int
    process: subprocess.Popen[str]
    authority: Authority
    keys: dict[str, str]

    def client(self) -> TlsClient:
        return TlsClient(self.port, context=self.authority.context())

    def connected(self, source: str, *, h2: bool = False) -> ssl.SSLSocket:
        """Connect from an address of one's own: who guesses keys is slowed down by address."""
        context = self.authority.context()
        context.set_alpn_protocols(["h2"] if h2 else ["http/1.1"])
        address = ("127.0.0.1", self.port)
        plain = socket.create_connection(address, timeout=15, source_address=(source, 0))
        return context.wrap_socket(plain, server_hostname="127.0.0.1")

    def answers_well(self) -> bool:
        with self.client() as client:
            fields = {"Authorization": f"Bearer {self.keys['good']}"}
            return client.ask("POST", INFER, BODY, fields).status == 200


@pytest.fixture(scope="module")
def closed(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Closed]:
    folder = tmp_path_factory.mktemp("closed")
    authority = Authority(folder)
    pair = authority.issue("server")
    path = str(folder / "keys.json")
    yesterday = time.time() - 2 * 86400
    keys = {
        "good": add(path, "camera")[0],
        "metrics": add(path, "prometheus", scopes=["metrics"])[0],
        "expired": add(path, "late", days=1, clock=lambda: yesterday)[0],
        "revoked": add(path, "gone")[0],
    }
    revoke(path, "gone")
    options = ("--tls-cert", str(pair.cert), "--tls-key", str(pair.key), "--keys", path)
    with serving_process(bundle, folder / "cache", *options) as (process, port):
        yield Closed(port=port, process=process, authority=authority, keys=keys)


# Fields of a request, with `{name}` for a key; the status over HTTP. gRPC has 401 as 16, 403 as 7.
KEYS = {
    "no key": ({}, 401),
    "an empty field": ({"authorization": ""}, 401),
    "no key behind the word": ({"authorization": "Bearer"}, 401),
    "blanks for a key": ({"authorization": "Bearer    "}, 401),
    "a wrong key": ({"authorization": "Bearer wrong"}, 401),
    "an expired key": ({"authorization": "Bearer {expired}"}, 401),
    "a revoked key": ({"authorization": "Bearer {revoked}"}, 401),
    "a key cut short": ({"authorization": "Bearer {short}"}, 401),
    "a key and a letter": ({"authorization": "Bearer {good}a"}, 401),
    "a key in capitals": ({"authorization": "Bearer {capitals}"}, 401),
    "a key in quotes": ({"authorization": 'Bearer "{good}"'}, 401),
    "two keys in one field": ({"authorization": "Bearer {good} {good}"}, 401),
    "a list of keys": ({"authorization": "Bearer wrong, Bearer {good}"}, 401),
    "a key without the word": ({"authorization": "{good}"}, 401),
    "a key as a password": ({"authorization": "Basic {good}"}, 401),
    "a key of 8000 letters": ({"authorization": "Bearer " + "a" * 8000}, 401),
    "a key that is not ASCII": ({"authorization": "Bearer \xe4\xf6\xfc"}, 401),
    "a key in a cookie": ({"cookie": "key={good}"}, 401),
    "a name for a key": ({"authorization": "Bearer camera"}, 401),
    "injection": ({"authorization": "Bearer ' OR 1=1 --"}, 401),
    "a forged user": ({"x-forwarded-user": "camera", "x-remote-user": "camera"}, 401),
    "a forged address": ({"x-forwarded-for": "127.0.0.1", "x-real-ip": "127.0.0.1"}, 401),
    "a key for metrics": ({"authorization": "Bearer {metrics}"}, 403),
    "a key for metrics, by its other field": ({"x-api-key": "{metrics}"}, 403),
    "a wrong key by its other field": ({"x-api-key": "wrong"}, 401),
}


def filled(closed: Closed, name: str) -> dict[str, str]:
    good = closed.keys["good"]
    known = {**closed.keys, "short": good[:-1], "capitals": good.swapcase()}
    return {key: value.format(**known) for key, value in KEYS[name][0].items()}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", KEYS)
def test_over_http_1_a_wrong_key_gets_no_further(closed: Closed, name: str) -> None:
    client = TlsClient(closed.port)
    client.socket = closed.connected(f"127.0.1.{list(KEYS).index(name) + 1}")
    with client.socket:
        reply = client.ask("POST", INFER, BODY, filled(closed, name))
        assert reply.status == KEYS[name][1]
        assert reply.error
        assert "logits" not in reply.error
        assert ("www-authenticate" in reply.fields) == (reply.status == 401)
    assert closed.answers_well()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", KEYS)
def test_over_grpc_a_wrong_key_gets_no_further(closed: Closed, name: str) -> None:
    def call(fields: dict[str, str]) -> bytes:
        more = [(key.encode(), value.strip().encode("latin-1")) for key, value in fields.items()]
        return corpus_grpc.call(corpus_grpc.WHOLE, "ModelInfer", *more)

    connected = closed.connected(f"127.0.2.{list(KEYS).index(name) + 1}", h2=True)
    with Http2Client(closed.port, connected=connected) as client:
        client.send(call(filled(closed, name)))
        ending = client.ending()
        assert ending.grpc[0] == {401: 16, 403: 7}[KEYS[name][1]]
        assert ending.grpc[1]
        assert not ending.body
    connected = closed.connected(f"127.0.2.{list(KEYS).index(name) + 1}", h2=True)
    with Http2Client(closed.port, connected=connected) as client:
        client.send(call({"authorization": f"Bearer {closed.keys['good']}"}))
        assert client.ending().grpc == (0, "")


@pytest.mark.timeout(60)
def test_who_guesses_keys_is_told_to_wait_and_others_are_not(closed: Closed) -> None:
    statuses = []
    client = TlsClient(closed.port)
    client.socket = closed.connected("127.0.3.1")
    with client.socket:
        for number in range(100):
            fields = {"Authorization": f"Bearer guess-{number}"}
            reply = client.ask("POST", INFER, BODY, fields)
            statuses.append(reply.status)
    assert set(statuses) == {401, 429}
    assert "retry-after" in reply.fields
    assert closed.answers_well()


HELLO = bytes.fromhex("16030100050100000101")
# What is not TLS of today, sent to where TLS is expected.
NOISE = {
    "plain HTTP": b"GET /v2 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "plain HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex("000000040000000000"),
    "SSL 2": bytes.fromhex("802b0100020012000000100100800200800300800400800500800600400700c0"),
    "SSL 3": bytes.fromhex("160300002d010000290300") + bytes(38),
    "noise": bytes(range(256)) * 4,
    "nothing but zeros": bytes(4096),
    "a record of 64 KiB": bytes.fromhex("160301ffff") + bytes(65535),
    "an empty record": bytes.fromhex("1603010000"),
    "empty records": bytes.fromhex("1603010000") * 200,
    "an alert first": bytes.fromhex("15030100020228"),
    "data first": bytes.fromhex("17030300100000") + bytes(14),
    "a hello cut off": HELLO,
    "a change of ciphers first": bytes.fromhex("140303000101"),
    "a heartbeat": bytes.fromhex("1803020003014000"),
}  # fmt: skip


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", NOISE)
def test_what_is_no_tls_is_cut(closed: Closed, name: str) -> None:
    with socket.create_connection(("127.0.0.1", closed.port), timeout=15) as client:
        client.sendall(NOISE[name])
        client.shutdown(socket.SHUT_WR)
        said = b""
        try:
            while data := client.recv(4096):
                said += data
        except ConnectionResetError:
            pass
    assert b"HTTP/1.1 2" not in said
    assert b"logits" not in said
    assert closed.answers_well()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("version", ["TLSv1", "TLSv1_1", "TLSv1_2"])
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_an_older_tls_is_refused(closed: Closed, version: str) -> None:
    context = closed.authority.context()
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.maximum_version = ssl.TLSVersion[version]
    with pytest.raises(ssl.SSLError, match="alert protocol version"):
        TlsClient(closed.port, context=context).__enter__()
    assert closed.answers_well()


@pytest.mark.timeout(60)
def test_nobody_goes_on_in_plain_text_after_the_handshake(closed: Closed) -> None:
    client = closed.client().__enter__()
    try:
        client.send(b"GET " + READY.encode())
        plain = socket.socket(fileno=client.socket.detach())
        with plain:
            plain.settimeout(15)
            plain.sendall(b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            said = b""
            try:
                while data := plain.recv(4096):
                    said += data
            except ConnectionResetError:
                pass
        assert b"HTTP/1.1 200" not in said
    finally:
        client.socket.close()
    assert closed.answers_well()


def test_nothing_of_all_this_ended_the_process(closed: Closed) -> None:
    assert closed.answers_well()
    assert closed.process.poll() is None
    with closed.client() as client:
        fields = {"Authorization": f"Bearer {closed.keys['metrics']}"}
        metrics = client.ask("GET", "/metrics", b"", fields).body.decode()
    assert 'code="5' not in metrics
