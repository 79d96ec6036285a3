"""Bundles that several end-to-end tests share, and a way to serve one."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator
    from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Served:
    """A server that runs: its address, and what to ask it."""

    url: str
    process: subprocess.Popen[str]

    @property
    def address(self) -> str:
        """Host and port, as tritonclient wants them."""
        return self.url.removeprefix("http://")

    def get(self, path: str) -> Any:
        """Return the JSON behind a path."""
        with urllib.request.urlopen(self.url + path, timeout=30) as response:
            return json.loads(response.read())

    def post(self, path: str, body: Any) -> Any:
        """Return the JSON answer to a JSON body."""
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return json.loads(response.read())
        except urllib.error.HTTPError as fault:
            raise AssertionError(f"{fault.code}: {fault.read().decode()}") from fault


@pytest.fixture(scope="session")
def serve(edgepack_session: Any) -> Callable[[Path], Any]:
    """Return a context manager that serves a bundle with `edgepack run` on a free port."""

    @contextlib.contextmanager
    def serving(bundle: Path) -> Iterator[Served]:
        process = edgepack_session.start("run", bundle, "--port", "0")
        seen = []
        try:
            for line in process.stderr:
                seen.append(line)
                match = re.search(r"http://\S+:\d+", line)
                if match:
                    break
            else:
                pytest.fail(f"the server ended: {''.join(seen)}")
            yield Served(url=match[0], process=process)
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
        finally:
            process.kill()
            process.communicate()

    return serving


@pytest.fixture(scope="session")
def build(
    edgepack_session: Any, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., dict[str, Any]]:
    """Return a function that builds one bundle and returns what `build --json` printed."""

    def built(*arguments: str | Path) -> dict[str, Any]:
        out = tmp_path_factory.mktemp("dist")
        done = edgepack_session("build", *arguments, "-o", out, "--json", check=True)
        (result,) = json.loads(done.stdout)
        return result

    return built
