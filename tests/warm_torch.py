"""A process that has imported torch and its exporter, and forks into each child that needs them.

Most of a small import through torch is the import of torch and of its exporter. Tests of what the
child does with a model take a fork of this process for the child; that a child of its own start
gives the same bytes is shown by the tests which compare the two, and by every end-to-end test.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_ROOT = Path(__file__).resolve().parent.parent
_OPTIONS = ("-P", "-B", "-c")


def warmed(plain: Any, server: subprocess.Popen[str]) -> types.SimpleNamespace:
    """Return the module `subprocess` with a `Popen` that forks the server where it can.

    Args:
        plain: The module, for everything else.
        server: What `serving` yields.
    """

    def start(argv: Sequence[str], **options: Any) -> Any:
        ours = tuple(argv[1:4]) == _OPTIONS and options.get("preexec_fn") is None
        return _Forked(server, argv, **options) if ours else plain.Popen(argv, **options)

    return types.SimpleNamespace(**{**vars(plain), "Popen": start})


@contextlib.contextmanager
def serving() -> Iterator[subprocess.Popen[str]]:
    """Start the process; it ends when its input does."""
    with subprocess.Popen(
        [sys.executable, *_OPTIONS[:2], __file__],
        # With no pool of threads there is none that a fork would lack.
        env={**os.environ, "PYTHONPATH": str(_ROOT), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    ) as server:  # fmt: skip
        yield server


class _Forked:
    """As much of `subprocess.Popen` as `packager.process` uses, for a child of the server."""

    def __init__(
        self,
        server: subprocess.Popen[str],
        argv: Sequence[str],
        *,
        stdin: int,
        stdout: Any,
        stderr: Any,
        cwd: str | Path | None,
        env: Mapping[str, str] | None,
        **_: Any,
    ) -> None:
        assert stdin == subprocess.DEVNULL
        self._answers = server.stdout
        self.returncode: int | None = None
        self.stdin = None
        wanted = {
            "argv": ["-c", *argv[5:]],
            "program": argv[4],
            "streams": [f"/proc/{os.getpid()}/fd/{s.fileno()}" for s in (stdout, stderr)],
            "folder": str(cwd or Path.cwd()),
            "environment": dict(os.environ if env is None else env),
        }
        assert server.stdin is not None
        server.stdin.write(json.dumps(wanted) + "\n")
        server.stdin.flush()
        self.pid = self._read()

    def _read(self) -> int:
        assert self._answers is not None
        return int(self._answers.readline())

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end and return the status, negative for a signal."""
        if self.returncode is None:
            assert self._answers is not None
            if not select.select([self._answers.fileno()], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("a child of the warm process", timeout or 0)
            self.returncode = self._read()
        return self.returncode

    def poll(self) -> int | None:
        """Return the status where the child has ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode


def _serve() -> None:
    """Fork a child for each line of the input; tell its number, and its status once it ended."""
    _warm_up()
    for line in sys.stdin:
        wanted = json.loads(line)
        child = os.fork()
        if child == 0:
            _become(wanted)
            exec(wanted["program"], {"__name__": "__main__"})  # noqa: S102 - `python -c` does
            return
        _tell(child)
        _, status = os.waitpid(child, 0)
        _tell(os.waitstatus_to_exitcode(status))


def _tell(number: int) -> None:
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


def _warm_up() -> None:
    """Import what a child imports, and what the first export imports and registers."""
    import torch

    import packager.importers.child
    import packager.importers.torch_module
    import packager.training.child  # noqa: F401

    rows = torch.export.Dim("rows", min=1, max=8)
    program = torch.export.export(
        torch.nn.Linear(2, 2), (torch.zeros(2, 2),), dynamic_shapes={"input": {0: rows}}
    )
    torch.onnx.export(program, dynamo=True, verbose=False)


def _become(wanted: dict[str, Any]) -> None:
    """Take the place of a process started for this alone."""
    import tempfile

    os.setsid()
    for number, path in ((0, os.devnull), *enumerate(wanted["streams"], 1)):
        stream = os.open(path, os.O_RDWR | os.O_APPEND)
        os.dup2(stream, number)
        os.close(stream)
    sys.stderr = os.fdopen(2, "w", buffering=1, encoding="utf-8", closefd=False)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    os.environ.clear()
    os.environ.update(wanted["environment"])
    tempfile.tempdir = None
    os.chdir(wanted["folder"])
    sys.argv = wanted["argv"]


if __name__ == "__main__":
    _serve()
