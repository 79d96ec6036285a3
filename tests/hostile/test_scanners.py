"""Well-known attack tools against a serving bundle: slowhttptest, and sslyze for its TLS."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.hostile.corpus_http import INFER
from tests.hostile.playing import ask_well
from tests.unit.runtime.closed.authority import Authority
from tests.unit.runtime.small_bundle import serving_process

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
# Wants an older cryptography than these tests, so it has an environment of its own.
SSLYZE = "sslyze==6.3.1"
CONNECTIONS = "200"
DURATION_S = "25"
_COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")

SLOW_MODES = {
    "heads": (["-H", "-i", "1"], "/v2", "No open connections left"),
    "bodies": (["-B", "-i", "1", "-s", "8192"], INFER, "No open connections left"),
    # what a slow reader asked for lies in the kernel, so it may stay for as long as an idle one
    "reading": (
        ["-X", "-k", "10", "-n", "1", "-w", "10", "-y", "20", "-z", "5"], "/openapi.json", "",
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.skipif(not shutil.which("slowhttptest"), reason="`slowhttptest` is not installed")
@pytest.mark.parametrize("mode", SLOW_MODES)
def test_slowhttptest_does_not_take_the_service_away(port: int, mode: str) -> None:
    options, path, ended = SLOW_MODES[mode]
    url = f"http://127.0.0.1:{port}{path}"
    done = subprocess.run(
        ["slowhttptest", "-c", CONNECTIONS, "-r", CONNECTIONS, "-l", DURATION_S, "-p", "5",
         *options, "-u", url],
        capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip
    said = _COLOURS.sub("", done.stdout)
    assert "service available:   YES" in said, said[-2000:]
    assert "service available:   NO" not in said
    assert re.search(rf"connected: +{CONNECTIONS}", said), "the attack did not take place"
    assert ended in said
    ask_well(port)


@pytest.fixture(scope="session")
def sslyze() -> Path:
    """Return the Python of sslyze's environment, which is made once per checkout."""
    folder = ROOT / ".cache" / "tests" / SSLYZE.replace("==", "-")
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as fresh:
            target = Path(fresh) / "sslyze"
            done = subprocess.run(
                [sys.executable, "-m", "pip", "install", "-q", "--target", target, SSLYZE],
                capture_output=True, text=True, check=False, timeout=240,
            )  # fmt: skip
            if done.returncode != 0:
                pytest.skip(f"{SSLYZE} cannot be installed: {done.stderr[-200:]}")
            try:
                target.rename(folder)
            except OSError:  # another worker was quicker
                assert folder.is_dir()
    return folder


@pytest.fixture
def tls_port(bundle: Path, tmp_path: Path) -> Iterator[int]:
    pair = Authority(tmp_path).issue("server")
    options = ("--tls-cert", str(pair.cert), "--tls-key", str(pair.key))
    with serving_process(bundle, tmp_path / "cache", *options) as (_, port):
        yield port


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.timeout(300)
def test_sslyze_finds_tls_1_3_and_nothing_weak(sslyze: Path, tls_port: int, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    done = subprocess.run(
        [
            sys.executable, "-m", "sslyze", "--sslv2", "--sslv3", "--tlsv1", "--tlsv1_1",
            "--tlsv1_2", "--tlsv1_3", "--early_data", "--heartbleed", "--openssl_ccs", "--robot",
            "--reneg", "--compression", "--elliptic_curves", "--mozilla_config", "disable",
            "--json_out", report, f"127.0.0.1:{tls_port}",
        ],
        env={"PYTHONPATH": str(sslyze)},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert report.is_file(), done.stdout + done.stderr
    (server,) = json.loads(report.read_text(encoding="utf-8"))["server_scan_results"]
    found: dict[str, Any] = {
        key: value["result"] for key, value in server["scan_result"].items() if value["result"]
    }
    versions = {
        key: [suite["cipher_suite"]["name"] for suite in result["accepted_cipher_suites"]]
        for key, result in found.items()
        if key.endswith("_cipher_suites")
    }
    assert set(versions.pop("tls_1_3_cipher_suites")) == {
        "TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256",
    }  # fmt: skip
    assert len(versions) == 5
    assert not any(versions.values())
    assert not found["tls_1_3_early_data"]["supports_early_data"]
    assert not found["tls_compression"]["supports_compression"]
    assert not found["heartbleed"]["is_vulnerable_to_heartbleed"]
    assert not found["openssl_ccs_injection"]["is_vulnerable_to_ccs_injection"]
    assert not found["session_renegotiation"]["is_vulnerable_to_client_renegotiation_dos"]
    assert found["robot"]["robot_result"].startswith("NOT_VULNERABLE")
    curves = {curve["name"] for curve in found["elliptic_curves"]["supported_curves"]}
    assert "X25519" in curves
    assert not [name for name in curves if re.search(r"1(60|92)|224|sect|brainpool", name)]
