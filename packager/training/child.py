"""Runs the training in the child process: reads the request, writes the variants or the error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from packager.errors import EdgepackError, InputOutputError, ModelUnsupported
from packager.importers.request import ERROR_FILE
from packager.training.wire import PROGRESS_FILE, REQUEST_FILE, RESULT_FILE, TrainingRequest


def main(folder: str) -> int:
    """Make the variants that `folder/training.json` asks for and return the exit status."""
    workdir = Path(folder)
    request = TrainingRequest.read(workdir / REQUEST_FILE)
    fault: EdgepackError
    try:
        from packager.training.variants import make_variants

        with (workdir / PROGRESS_FILE).open("a", encoding="utf-8") as stream:

            def tell(kind: str, wire: dict[str, Any]) -> None:
                stream.write(json.dumps({"kind": kind, **wire}) + "\n")
                stream.flush()

            found = make_variants(request, workdir, tell)
        (workdir / RESULT_FILE).write_text(json.dumps(found), encoding="utf-8")
    except EdgepackError as raised:
        fault = raised
    except MemoryError:
        fault = ModelUnsupported(
            f"training `{request.source.source}` needs more memory than there is"
        )
    except OSError as raised:
        text = raised.strerror or str(raised)
        fault = InputOutputError(f"training `{request.source.source}` failed: {text}")
    else:
        return 0
    wire = {
        "class": type(fault).__name__,
        "message": fault.message,
        "accepted": fault.accepted,
        "hint": fault.hint,
    }
    (workdir / ERROR_FILE).write_text(json.dumps(wire), encoding="utf-8")
    return fault.exit_code
