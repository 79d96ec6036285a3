"""A device reached by OpenSSH: runs commands in a folder there that is gone afterwards."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import shutil
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final, Self
from urllib.parse import parse_qsl, unquote, urlsplit

from packager.errors import (
    BackendMissing,
    DeviceUnreachable,
    ExternalToolError,
    InputOutputError,
    TargetError,
    UsageError,
)
from packager.process import Child, Completed, background, run

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_CONNECT_S: Final = 20
_OPEN_S: Final = 60.0
_CLOSE_S: Final = 30.0
_COPY_S: Final = 3600.0
_SPARE_S: Final = 60.0
_SSH_FAILED: Final = 255
_NO_PROGRAM: Final = 127
_LATE: Final = 124
_FORM: Final = "ssh://[USER@]HOST[:PORT][?python=PATH]"
_USER: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.$-]*")
_HOST: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*|(?=.*:)[0-9A-Fa-f:.]+(%[A-Za-z0-9]+)?")
_ABSENT: Final = re.compile(r"No such file|not a regular file")
# Ours come first, and the first value of an option wins: the user's own configuration decides the
# rest, host keys above all.
_OPTIONS: Final = (
    "BatchMode=yes", "ControlMaster=no", "ControlPath=none", "ClearAllForwardings=yes",
    "ForwardAgent=no", "ForwardX11=no", f"ConnectTimeout={_CONNECT_S}", "ServerAliveInterval=15",
    "ServerAliveCountMax=4", "LogLevel=ERROR",
)  # fmt: skip

# Makes the folder, says where it is, and removes it once our side of the connection is gone. What
# still writes there is ended by its own watcher, which misses the folder.
_KEEPER: Final = """\
import os, shutil, sys, tempfile, time
folder = tempfile.mkdtemp(prefix="edgepack-")
print("edgepack-folder " + folder, flush=True)
sys.stdin.buffer.read()
gone = folder + ".gone"
os.rename(folder, gone)
for _ in range(100):
    shutil.rmtree(gone, ignore_errors=True)
    if not os.path.exists(gone):
        break
    time.sleep(0.2)
"""
# Runs one command and ends it, with all it started, when the connection or the folder is gone:
# sshd tells nobody, it only closes the pipes.
_WATCHER: Final = """\
import json, os, select, signal, subprocess, sys, time
wanted = json.loads(sys.argv[1])
started = time.monotonic()
try:
    child = subprocess.Popen(
        wanted["argv"], stdin=subprocess.DEVNULL, cwd=wanted["folder"], start_new_session=True,
        env=dict(os.environ, **wanted["environment"]))
except OSError as fault:
    sys.stderr.write("%s: %s\\n" % (wanted["argv"][0], fault.strerror))
    sys.exit(127)
connection = select.poll()
connection.register(1, 0)
late = False
while child.poll() is None:
    late = time.monotonic() - started > wanted["timeout_s"]
    if late or connection.poll(200) or not os.path.isdir(wanted["folder"]):
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(child.pid, number)
            except ProcessLookupError:
                pass
            try:
                child.wait(5)
            except subprocess.TimeoutExpired:
                pass
code = child.wait()
sys.exit(124 if late else 128 - code if code < 0 else min(code, 254))
"""


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where a device is, as `ssh://user@host:port?python=/usr/bin/python3` says it.

    Attributes:
        host: A name, a number, or an alias of the user's ssh configuration.
        user: Empty: as the user's ssh configuration says.
        port: 0: as the user's ssh configuration says.
        python: The interpreter there.
    """

    host: str
    user: str = ""
    port: int = 0
    python: str = "python3"

    @classmethod
    def from_url(cls, url: str) -> Self:
        """Read an `ssh://` address.

        Raises:
            UsageError: it is of another form, or holds a password.
        """
        try:
            parts = urlsplit(url)
            port = parts.port or 0
        except ValueError as fault:
            raise UsageError(f"`{url}` is no address: {fault}", accepted=_FORM) from fault
        if parts.password is not None:
            raise UsageError(
                "an address with a password is not taken: anybody may read it from the command",
                accepted=_FORM,
                hint=f"ssh-copy-id {parts.username}@{parts.hostname}",
            )
        # Not `parts.hostname`, which is in lower case: aliases tell capitals apart.
        host = parts.netloc.rpartition("@")[2]
        host = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
        user = unquote(parts.username or "")
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        known = set(query) <= {"python"} and query.get("python", "python3")
        if (
            parts.scheme != "ssh"
            or not _HOST.fullmatch(host)
            or (user and not _USER.fullmatch(user))
            or parts.path not in ("", "/")
            or parts.fragment
            or not known
            or known.startswith("-")
        ):
            raise UsageError(f"`{url}` is no address of a device", accepted=_FORM)
        return cls(host=host, user=user, port=port, python=known)

    @property
    def login(self) -> str:
        """`user@host`, or the host alone."""
        return f"{self.user}@{self.host}" if self.user else self.host

    def command(self) -> str:
        """Return the command with which a person reaches the device."""
        return shlex.join(["ssh", *(["-p", str(self.port)] if self.port else []), self.login])


class Remote:
    """A device and a folder on it, until `close`.

    Every command is a connection of its own. Where one is interrupted, or this process ends in any
    way, what runs there is ended and the folder removed.

    Args:
        address: The device.
        config: A configuration of ssh in the place of the user's own.
    """

    def __init__(self, address: Address, *, config: Path | None = None) -> None:
        self.address = address
        self._config = config
        self._folder: PurePosixPath | None = None
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Self:
        """Connect and make the folder.

        Raises:
            BackendMissing: OpenSSH is not installed here.
            DeviceUnreachable: no connection, or no agreement on keys.
            TargetError: the device has no such Python.
        """
        if shutil.which("ssh") is None or shutil.which("scp") is None:
            raise BackendMissing(
                "`ssh` and `scp` are not installed", hint="apt install openssh-client"
            )
        with contextlib.ExitStack() as opening:
            folder = opening.enter_context(tempfile.TemporaryDirectory(prefix="edgepack-"))
            log = Path(folder) / "keeper.log"
            argv = self._ssh([self.address.python, "-c", _KEEPER])
            keeper = opening.enter_context(background(argv, log=log, hold_stdin=True))
            opening.callback(_let_go, keeper)
            self._folder = self._await_folder(keeper, log)
            self._open = opening.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the folder."""
        self.close()

    def close(self) -> None:
        """Remove the folder there, with whatever still runs in it; nothing happens twice."""
        self._folder = None
        self._open.close()

    @property
    def folder(self) -> PurePosixPath:
        """The folder there; relative names are below it."""
        if self._folder is None:
            raise ValueError("the connection is not open")
        return self._folder

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout_s: float,
        check: bool = True,
        environment: Mapping[str, str] | None = None,
        on_line: Callable[[str], None] | None = None,
    ) -> Completed:
        """Run a command in the folder, to its end.

        Args:
            argv: The command as a list; no shell sees it.
            timeout_s: Wall-clock limit there.
            check: Raise when the exit status is not 0.
            environment: Variables to add.
            on_line: Given each line of output soon after it is written.

        Returns:
            Exit status above 128: ended by a signal.

        Raises:
            DeviceUnreachable: the connection failed, before or meanwhile.
            ExternalToolError: out of time, or failed (with `check`).
            TargetError: the program is not on the device.
        """
        wanted = {
            "argv": list(argv),
            "folder": str(self.folder),
            "environment": dict(environment or {}),
            "timeout_s": timeout_s,
        }
        done = run(
            self._ssh([self.address.python, "-", json.dumps(wanted)]),
            timeout_s=timeout_s + _SPARE_S,
            check=False,
            stdin=_WATCHER.encode(),
            on_line=on_line,
            error=DeviceUnreachable,
        )
        # Shown to people as they would type it.
        done = replace(done, argv=(*shlex.split(self.address.command()), *argv))
        if done.returncode == _SSH_FAILED:
            raise self._unreachable(done.stderr)
        if done.returncode == _LATE:
            raise ExternalToolError(
                f"`{argv[0]}` on `{self.address.login}` took longer than {timeout_s:g} s"
            )
        if done.returncode == _NO_PROGRAM:
            raise self._no_program(argv[0], done.stderr)
        if check and done.returncode != 0:
            last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
            raise ExternalToolError(
                f"`{argv[0]}` failed on `{self.address.login}` (exit {done.returncode})"
                + "".join(f": {line}" for line in last)
            )
        return done

    def put(self, source: Path, name: str) -> str:
        """Copy a file there and return its path there.

        Raises:
            DeviceUnreachable: the connection failed.
            InputOutputError: the device does not take it, as where its disk is full.
        """
        there = str(self.folder / name)
        self._copy(str(source.absolute()), self._spell(there), f"`{source.name}` cannot be copied")
        return there

    def get(self, name: str, target: Path) -> None:
        """Copy a file from there to `target`.

        Raises:
            DeviceUnreachable: the connection failed.
            InputOutputError: there is no such file, or it cannot be written here.
        """
        there = str(self.folder / name)
        self._copy(self._spell(there), str(target.absolute()), f"`{name}` cannot be fetched")

    def _copy(self, source: str, target: str, what: str) -> None:
        port = ["-P", str(self.address.port)] if self.address.port else []
        done = run(
            ["scp", *self._options(), *port, "-q", source, target],
            timeout_s=_COPY_S, check=False, error=DeviceUnreachable,
        )  # fmt: skip
        if done.returncode == 0:
            return
        if done.returncode == _SSH_FAILED and not _ABSENT.search(done.stderr):
            raise self._unreachable(done.stderr)
        reason = _last_line(done.stderr).rpartition(": ")[2].lower()
        raise InputOutputError(
            f"{what} ({self.address.login}): {reason}",
            hint=f"{self.address.command()} df -h {PurePosixPath(self.folder).parent}",
        )

    def _spell(self, there: str) -> str:
        host = f"[{self.address.host}]" if ":" in self.address.host else self.address.host
        user = f"{self.address.user}@" if self.address.user else ""
        return f"{user}{host}:{there}"

    def _options(self) -> list[str]:
        words = [] if self._config is None else ["-F", str(self._config)]
        for option in _OPTIONS:
            words += ["-o", option]
        return words

    def _ssh(self, argv: Sequence[str]) -> list[str]:
        port = ["-p", str(self.address.port)] if self.address.port else []
        words = ["ssh", *self._options(), *port, "-T", "-o", "RemoteCommand=none"]
        return [*words, "--", self.address.login, shlex.join(argv)]

    def _await_folder(self, keeper: Child, log: Path) -> PurePosixPath:
        deadline = time.monotonic() + _OPEN_S
        while True:
            ended = keeper.poll() is not None
            text = log.read_text(encoding="utf-8", errors="replace")
            found = re.search(r"^edgepack-folder (/.+)\n", text, re.MULTILINE)
            if found:
                return PurePosixPath(found[1])
            if ended and keeper.returncode == _NO_PROGRAM:
                raise self._no_program(self.address.python, text)
            if ended and keeper.returncode == _SSH_FAILED:
                raise self._unreachable(text)
            if ended:
                raise InputOutputError(
                    f"`{self.address.login}` gives no folder to work in: {_last_line(text)}",
                    hint=f"{self.address.command()} df -h /tmp",
                )
            if time.monotonic() > deadline:
                raise DeviceUnreachable(
                    f"`{self.address.login}` took longer than {_OPEN_S:g} s to answer",
                    hint=self.address.command(),
                )
            time.sleep(0.05)

    def _no_program(self, program: str, said: str) -> TargetError:
        return TargetError(
            f"`{self.address.login}` cannot run `{program}`: {_last_line(said)}",
            hint=f"name its interpreter: `ssh://{self.address.login}?python=PATH`"
            if program == self.address.python
            else None,
        )

    def _unreachable(self, said: str) -> DeviceUnreachable:
        """Return what ssh said as one sentence with what mends it."""
        login, reach = self.address.login, self.address.command()
        port = f"-p {self.address.port} " if self.address.port else ""
        for phrase, sentence, hint in (
            ("HOST IDENTIFICATION HAS CHANGED", "answers with another host key than the known one",
             f"if the device was set up anew: `ssh-keygen -R {self._known_as()}`"),
            ("Host key verification failed", "has a host key that is not known here", reach),
            ("Permission denied", "does not take any of our keys",
             f"ssh-copy-id {port}{login}"),
            ("Could not resolve", "has a name that cannot be resolved", reach),
            ("Connection refused", "refuses connections: no SSH server listens there", reach),
            ("No route to host", "is not reachable: no route to it", reach),
            ("timed out", "does not answer", reach),
            ("not responding", "stopped answering", reach),
        ):  # fmt: skip
            if phrase in said:
                return DeviceUnreachable(f"`{login}` {sentence}", hint=hint)
        return DeviceUnreachable(
            f"the connection to `{login}` failed: {_last_line(said)}", hint=reach
        )

    def _known_as(self) -> str:
        if self.address.port in (0, 22):
            return self.address.host
        return f"'[{self.address.host}]:{self.address.port}'"


def _let_go(keeper: Child) -> None:
    """Let the keeper remove its folder and end; what stays is killed by `background`."""
    if keeper.stdin is not None:
        keeper.stdin.close()
    deadline = time.monotonic() + _CLOSE_S
    while keeper.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else "it said nothing"
