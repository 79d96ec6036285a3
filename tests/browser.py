"""A real browser for tests: headless Chromium, spoken to over two pipes; and what axe-core says."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import json
import os
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator


class Page:
    """One tab, spoken to in the DevTools protocol.

    Attributes:
        requests: Every address that was asked for.
        complaints: What the console, the log and uncaught exceptions said.
    """

    def __init__(self, browser: Browser) -> None:
        self._browser = browser
        self.requests: list[str] = []
        self.complaints: list[str] = []
        target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        attached = browser.call("Target.attachToTarget", targetId=target, flatten=True)
        self._target, self._session = target, attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> Any:
        return self._browser.call(method, page=self, **parameters)

    def open(self, place: Path | str, *, width: int = 1100, scheme: str = "light") -> None:
        """Show a file or an address, and wait until it is loaded."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=800, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip
        self.media(scheme=scheme)
        self.call("Page.navigate", url=place if isinstance(place, str) else place.as_uri())
        self._browser.wait("Page.loadEventFired", self)

    def media(self, *, scheme: str = "light", kind: str = "screen") -> None:
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", media=kind, features=features)

    def ask(self, expression: str) -> Any:
        """Return the value of an expression in the page; promises are awaited."""
        answer = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def press(self, key: str, code: int, text: str = "") -> None:
        for kind in ("keyDown", "keyUp"):
            typed = {"text": text} if text and kind == "keyDown" else {}
            self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key,
                windowsVirtualKeyCode=code, **typed,
            )  # fmt: skip

    def take(self, event: dict[str, Any]) -> None:
        details = event["params"]
        if event["method"] == "Network.requestWillBeSent":
            self.requests.append(details["request"]["url"])
        elif event["method"] in _COMPLAINTS:
            self.complaints.append(json.dumps(details)[:500])

    @property
    def session(self) -> str:
        return self._session

    def close(self) -> None:
        self._browser.call("Target.closeTarget", targetId=self._target)


_COMPLAINTS = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
# Chromium reads commands from descriptor 3 and answers on 4; no port is opened.
_START = (
    "import os, sys\n"
    "read, write, *argv = sys.argv[1:]\n"
    "os.dup2(int(read), 3), os.dup2(int(write), 4)\n"
    "os.execvp(argv[0], argv)\n"
)


class Browser:
    """A headless Chromium that ends with the block."""

    def __init__(self, program: str, profile: Path) -> None:
        ours_in, theirs_out = os.pipe()
        theirs_in, ours_out = os.pipe()
        # Above 4, so that moving one to its place does not overwrite the other.
        theirs = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (theirs_in, theirs_out)]
        # No connection ahead of its request: a server that stops waits for who has just connected.
        (profile / "Default").mkdir(parents=True)
        (profile / "Default" / "Preferences").write_text(
            '{"net": {"network_prediction_options": 2}}', encoding="utf-8"
        )
        self._log = (profile.parent / "chromium.log").open("wb")
        self._child = subprocess.Popen(
            [
                sys.executable, "-c", _START, *map(str, theirs), program,
                "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
                "--disable-component-update", "--disable-sync", "--no-first-run",
                "--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank",
            ],
            pass_fds=theirs, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log,
            start_new_session=True,
        )  # fmt: skip
        for descriptor in (theirs_in, theirs_out, *theirs):
            os.close(descriptor)
        self._in, self._out = ours_in, ours_out
        self._rest = b""
        self._count = 0
        self._pages: dict[str, Page] = {}
        self._seen: list[tuple[str, str]] = []

    def page(self) -> Page:
        made = Page(self)
        self._pages[made.session] = made
        return made

    def call(self, method: str, *, page: Page | None = None, **parameters: Any) -> Any:
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": parameters}
        if page is not None:
            message["sessionId"] = page.session
        _write_all(self._out, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._count:
            self._take(answer)
        assert "error" not in answer, (method, answer["error"])
        return answer["result"]

    def wait(self, event: str, page: Page) -> None:
        while (event, page.session) not in self._seen:
            self._take(self._next())
        self._seen.remove((event, page.session))

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._child.pid, signal.SIGKILL)
        self._child.wait()
        os.close(self._in)
        os.close(self._out)
        self._log.close()

    def _take(self, event: dict[str, Any]) -> None:
        session = event.get("sessionId", "")
        if session in self._pages and "method" in event:
            self._pages[session].take(event)
            if event["method"] == "Page.loadEventFired":
                self._seen.append((event["method"], session))

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._in], [], [], 60)
            assert ready, "the browser does not answer"
            content = os.read(self._in, 1 << 20)
            assert content, "the browser is gone"
            self._rest += content
        message, _, self._rest = self._rest.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found


def _write_all(descriptor: int, content: bytes) -> None:
    while content:
        content = content[os.write(descriptor, content) :]


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("chromium is not installed")
    started = Browser(program, tmp_path_factory.mktemp("browser") / "profile")
    yield started
    started.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    opened = browser.page()
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def axe() -> str:
    """Return the script of axe-core, which a package carries."""
    spec = importlib.util.find_spec("axe_playwright_python")
    if spec is None or spec.origin is None:
        pytest.skip("axe-playwright-python is not installed")
    return Path(spec.origin).with_name("axe.min.js").read_text(encoding="utf-8")


def violations(page: Page, axe: str) -> list[str]:
    """Return the barriers that axe-core finds in the page as it is now."""
    page.ask(axe + ";1")
    found = page.ask("axe.run(document, {resultTypes: ['violations']}).then(r => r.violations)")
    return [
        f"{v['id']}: {n['html'][:120]} {n['failureSummary']}" for v in found for n in v["nodes"]
    ]


def wider(page: Page) -> list[str]:
    """Return the elements that stick out of the window, outside regions that scroll themselves."""
    assert page.ask("document.documentElement.scrollWidth <= innerWidth")
    found: list[str] = page.ask(
        "[...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll table, .skip') &&"
        " e.getBoundingClientRect().right > innerWidth + 0.5).map(e => e.outerHTML.slice(0, 80))"
    )
    return found
