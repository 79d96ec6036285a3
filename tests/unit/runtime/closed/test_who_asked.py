"""The access log names who asked, and has a line for refusals too, over every protocol."""

from __future__ import annotations

import shutil
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from runtime.app import App
from runtime.closed.newkey import add
from runtime.logs import log
from runtime.options import ServeOptions
from tests.unit.runtime.closed.test_tls import options
from tests.unit.runtime.live_server import LiveServer, OpenRelease, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.unit.runtime.closed.authority import Authority

METADATA = "/inference.GRPCInferenceService/ServerMetadata"


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Return the access log's lines as they come."""
    found: list[dict[str, Any]] = []
    monkeypatch.setattr(log, "has_access", True)
    monkeypatch.setattr(log, "access", lambda **fields: found.append(fields))
    return found


@contextmanager
def serving_both(release: OpenRelease, engine: Any, asked: ServeOptions) -> Iterator[LiveServer]:
    manifest = {**release.manifest, "server": {**release.manifest["server"], "grpc": True}}
    app = App(OpenRelease(folder=release.folder, manifest=manifest), engine)
    with serving(app, asked) as live:
        yield live


def who(lines: list[dict[str, Any]]) -> list[tuple[str, str, int, str | None]]:
    return [(one["protocol"], one["route"], one["status"], one.get("key")) for one in lines]


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_a_client_certificate_s_name_is_in_the_log_over_every_protocol(
    authority: Authority, release: OpenRelease, engine: Any, lines: list[dict[str, Any]]
) -> None:
    pair = authority.issue("who", client=True, common="line-3")
    asked = options(authority.issue("server"), tls_client_ca=str(authority.cert))
    with serving_both(release, engine, asked) as live:
        for version in ("--http1.1", "--http2"):
            for path in ("/v2", "/none"):
                subprocess.run(
                    ["curl", "-sS", version, "--cacert", authority.cert, "--cert", pair.cert,
                     "--key", pair.key, f"https://127.0.0.1:{live.port}{path}"],
                    check=True, timeout=30, stdout=subprocess.DEVNULL,
                )  # fmt: skip
        trust = grpc.ssl_channel_credentials(
            authority.cert.read_bytes(), pair.key.read_bytes(), pair.text
        )
        with grpc.secure_channel(f"127.0.0.1:{live.port}", trust) as channel:
            channel.unary_unary(METADATA)(b"", timeout=30)
    assert who(lines) == [
        ("HTTP/1.1", "server_metadata", 200, "line-3"),
        ("HTTP/1.1", "unknown", 404, "line-3"),
        ("HTTP/2", "server_metadata", 200, "line-3"),
        ("HTTP/2", "unknown", 404, "line-3"),
        ("gRPC", "ServerMetadata", 0, "line-3"),
    ]


def test_a_wrong_key_is_not_logged_as_the_one_that_came_before_it(
    tmp_path: Path, release: OpenRelease, engine: Any, lines: list[dict[str, Any]]
) -> None:
    key, _ = add(str(tmp_path / "keys.json"), "camera")
    asked = ServeOptions(keys=str(tmp_path / "keys.json"))
    with serving_both(release, engine, asked) as live, live.client() as client:
        for sent in (key, "wrong", key):
            client.ask("GET", "/v2", b"", {"Authorization": f"Bearer {sent}"})
        client.ask("GET", "/v2/health/live")
    assert who(lines) == [
        ("HTTP/1.1", "server_metadata", 200, "camera"),
        ("HTTP/1.1", "server_metadata", 401, ""),
        ("HTTP/1.1", "server_metadata", 200, "camera"),
        ("HTTP/1.1", "live", 200, ""),
    ]


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_what_is_refused_over_http2_is_in_the_log_as_over_http1(
    tmp_path: Path, release: OpenRelease, engine: Any, lines: list[dict[str, Any]]
) -> None:
    key, _ = add(str(tmp_path / "keys.json"), "camera")
    asked = ServeOptions(keys=str(tmp_path / "keys.json"))
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    found: dict[str, Any] = {}
    with serving_both(release, engine, asked) as live:
        for version in ("--http1.1", "--http2-prior-knowledge"):
            lines.clear()
            for path, *fields in (
                ("/v2",),
                ("/none", f"Authorization: Bearer {key}"),
                ("/v2", "Host: evil.example"),
                ("/metrics", f"X-API-Key: {key}", f"traceparent: 00-{trace}-{'1' * 16}-01"),
                ("/v2", "Content-Length: 1,1"),
            ):
                words = [word for field in fields for word in ("-H", field)]
                subprocess.run(
                    ["curl", "-sS", version, *words, live.url + path], check=True, timeout=30,
                    stdout=subprocess.DEVNULL,
                )  # fmt: skip
            protocol = lines[0]["protocol"]
            assert [one.get("trace_id") for one in lines if one.get("trace_id")] == [trace]
            found[protocol] = [one[1:] for one in who(lines)]
    assert found["HTTP/1.1"] == [
        ("server_metadata", 401, ""),
        ("unknown", 404, "camera"),
        ("refused", 421, ""),
        ("metrics", 403, ""),
        ("malformed", 400, None),
    ]
    assert found["HTTP/2"] == found["HTTP/1.1"]
