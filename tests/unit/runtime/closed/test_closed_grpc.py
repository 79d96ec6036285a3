"""gRPC and HTTP/2 behind TLS and keys, with the field's own clients."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from runtime.app import App
from runtime.closed.newkey import add
from tests.unit.runtime.closed.test_tls import options
from tests.unit.runtime.live_server import LiveServer, OpenRelease, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.unit.runtime.closed.authority import Authority

SERVICE = "/inference.GRPCInferenceService/"


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


@pytest.fixture
def live(
    authority: Authority, release: OpenRelease, engine: Any, key_file: Path
) -> Iterator[LiveServer]:
    add(str(key_file), "first")
    manifest = {**release.manifest, "server": {**release.manifest["server"], "grpc": True}}
    asked = options(authority.issue("grpc"), keys=str(key_file))
    both = App(OpenRelease(folder=release.folder, manifest=manifest), engine)
    with serving(both, asked) as server:
        yield server


def test_a_call_needs_a_key_and_health_needs_none(
    live: LiveServer, authority: Authority, key_file: Path
) -> None:
    key, _ = add(str(key_file), "camera")
    live.server._reload()
    trust = grpc.ssl_channel_credentials(authority.cert.read_bytes())
    with grpc.secure_channel(f"127.0.0.1:{live.port}", trust) as channel:
        ready = channel.unary_unary(SERVICE + "ServerReady")
        metadata = channel.unary_unary(SERVICE + "ServerMetadata")
        infer = channel.unary_unary(SERVICE + "ModelInfer")
        assert ready(b"", timeout=30) == b"\x08\x01"
        good = (("authorization", f"Bearer {key}"),)
        assert b"edgepack" in metadata(b"", timeout=30, metadata=good)
        for call in (metadata, infer):
            for wrong in ((), (("authorization", "Bearer wrong"),), (("x-api-key", key[1:]),)):
                with pytest.raises(grpc.RpcError) as caught:
                    call(b"", timeout=30, metadata=wrong)
                assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
                assert "needs a valid key" in caught.value.details()


def test_a_key_for_metrics_may_not_infer(
    live: LiveServer, authority: Authority, key_file: Path
) -> None:
    key, _ = add(str(key_file), "prometheus", scopes=["metrics"])
    live.server._reload()
    trust = grpc.ssl_channel_credentials(authority.cert.read_bytes())
    with grpc.secure_channel(f"127.0.0.1:{live.port}", trust) as channel:
        infer = channel.unary_unary(SERVICE + "ModelInfer")
        with pytest.raises(grpc.RpcError) as caught:
            infer(b"", timeout=30, metadata=(("authorization", f"Bearer {key}"),))
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


def test_http_2_tells_nothing_without_a_key_either(
    live: LiveServer, authority: Authority, key_file: Path
) -> None:
    key, _ = add(str(key_file), "single", concurrency=1)
    live.server._reload()

    def statuses(*fields: str) -> list[str]:
        argv = [
            "curl",
            "-sS",
            "--http2",
            "--cacert",
            str(authority.cert),
            "-o",
            "-",
            "-w",
            "%{http_code}",
        ]
        for field in fields:
            argv += ["-H", field]
        url = f"https://127.0.0.1:{live.port}"
        found = []
        for path in ("/v2/health/ready", "/none", "/metrics", "/v2"):
            done = subprocess.run(
                [*argv, url + path], capture_output=True, text=True, check=False, timeout=60
            )
            found.append(done.stdout[-3:])
        return found

    assert statuses() == ["200", "401", "401", "401"]
    # thrice, as what is refused must give its slot back
    for _ in range(3):
        assert statuses(f"Authorization: Bearer {key}") == ["200", "404", "403", "200"]
