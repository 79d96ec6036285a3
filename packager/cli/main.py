"""The `edgepack` command: the group, and the one place where errors become exit codes."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import tempfile
import time
import traceback
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

import packager
from packager.console import Console
from packager.errors import EdgepackError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

_BUG = 70
_INTERRUPTED = 130
# How long an import that was in the way of an interruption has before the next try.
_RETRY_S = 0.02
_COMMANDS = (
    "demo", "inspect", "targets", "compress", "build", "report", "predict", "run", "bench",
    "verify", "export", "doctor",
)  # fmt: skip


class _Lazy(click.Group):
    """A group whose commands are imported when they are named."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"packager.cli.{cmd_name}").command
        return command


@click.group(
    cls=_Lazy,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog='Shell completion: eval "$(_EDGEPACK_COMPLETE=bash_source edgepack)" (or zsh, fish).',
)
@click.version_option(packager.__version__, prog_name="edgepack")
def command() -> None:
    """From a trained model to one offline bundle that a device serves."""


def main() -> NoReturn:
    """Run the command line and exit with the code of the error's class."""
    console = Console()
    try:
        with _interruptible():
            command.main(prog_name="edgepack", standalone_mode=False)
    except EdgepackError as fault:
        console.error(fault.message, accepted=fault.accepted, hint=fault.hint)
        code = fault.exit_code
    except click.exceptions.NoArgsIsHelpError as fault:
        click.echo(fault.format_message(), err=True)
        code = 2
    except click.UsageError as fault:
        console.error(_lower(fault.format_message()), accepted=None, hint=_help_hint(fault))
        code = 2
    except click.ClickException as fault:
        console.error(_lower(fault.format_message()), accepted=None, hint=None)
        code = fault.exit_code
    except click.exceptions.Exit as leave:
        code = leave.exit_code
    except BrokenPipeError:
        # The reader of our output left (`edgepack targets | head`): nothing to tell anybody.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except (KeyboardInterrupt, click.Abort):
        console.error("interrupted; nothing half-written was left", accepted=None, hint=None)
        code = _INTERRUPTED
    except OSError as fault:
        where = f"`{fault.filename}`: " if fault.filename else ""
        console.error(
            f"{where}{(fault.strerror or str(fault)).lower()}",
            accepted=None,
            hint=_disk_hint(fault),
        )
        code = 10
    except Exception:  # noqa: BLE001 - the last border: our own bug, kept in a file
        console.error(
            f"this is a bug in edgepack; the traceback is in {_write_crash()}",
            accepted=None,
            hint="report it with that file",
        )
        code = _BUG
    else:
        code = 0
    sys.exit(code)


class _Interruption(KeyboardInterrupt):
    """SIGINT or SIGTERM.

    A subclass because CPython kills a process with SIGINT, whatever exit status was asked for,
    once a plain KeyboardInterrupt has passed through `exec` (dataclasses and namedtuples use it).
    """


@contextmanager
def _interruptible() -> Iterator[None]:
    """Make one interruption of SIGINT and SIGTERM, whatever it turns into on its way out.

    A child in the same foreground group that died of the signal looks like a failed build: after
    a signal, every failure is the interruption. A native module interrupted while it loads may
    end the process with SIGSEGV (seen with ONNX Runtime's), so imports are let through first.
    """
    signalled = False

    def stop(signum: int, frame: FrameType | None) -> None:
        nonlocal signalled
        again = signalled and signum != signal.SIGALRM
        signalled = True
        if _imports(frame) and not again:
            signal.setitimer(signal.ITIMER_REAL, _RETRY_S)
            return
        raise _Interruption

    # A shell without job control starts background jobs with SIGINT ignored: that stays.
    wanted = [
        number for number in (signal.SIGALRM, signal.SIGINT, signal.SIGTERM)
        if signal.getsignal(number) is not signal.SIG_IGN
    ]  # fmt: skip
    before = {number: signal.getsignal(number) for number in wanted}
    try:
        for number in wanted:
            signal.signal(number, stop)
        yield
    except Exception:  # a signal turns into whatever the code that it met makes of it
        if signalled:
            raise _Interruption from None
        raise
    finally:
        # What is left is to say how it ended, and no second signal cuts that short.
        for number, handler in before.items():
            signal.signal(number, signal.SIG_IGN if signalled else handler)


def _imports(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _lower(message: str) -> str:
    message = message.rstrip(".").replace("'", "`")
    return message[:1].lower() + message[1:]


def _help_hint(fault: click.UsageError) -> str | None:
    return f"{fault.ctx.command_path} --help" if fault.ctx is not None else None


def _disk_hint(fault: OSError) -> str | None:
    import errno

    if fault.errno == errno.ENOSPC:
        return "free some space, or build elsewhere with `-o DIR` and `--cache-dir DIR`"
    return None


def _write_crash() -> Path:
    handle, name = tempfile.mkstemp(prefix=f"edgepack-crash-{int(time.time())}-", suffix=".log")
    with os.fdopen(handle, "w", encoding="utf-8") as stream:
        stream.write(f"edgepack {packager.__version__}, {sys.version}\n{sys.argv}\n\n")
        stream.write(traceback.format_exc())
    return Path(name)
