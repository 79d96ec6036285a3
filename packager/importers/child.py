"""Runs one import in the child process: reads the request, writes the model or the error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from packager.errors import EdgepackError, InputOutputError, ModelUnsupported
from packager.importers.request import (
    ERROR_FILE,
    MODEL_FILE,
    REQUEST_FILE,
    RESULT_FILE,
    Imported,
    ImportRequest,
)
from packager.model import data_file

if TYPE_CHECKING:
    from collections.abc import Callable


def main(folder: str) -> int:
    """Import what `folder/request.json` asks for and return the exit status."""
    workdir = Path(folder)
    request = ImportRequest.read(workdir / REQUEST_FILE)
    try:
        found = _importer(request.kind)(request, workdir)
        found.write(workdir / RESULT_FILE)
    except EdgepackError as fault:
        return _fail(workdir, fault)
    except MemoryError:
        return _fail(
            workdir,
            ModelUnsupported(
                f"`{request.source}` needs more memory than an import of its size may take"
            ),
        )
    except OSError as fault:
        text = fault.strerror or str(fault)
        return _fail(workdir, InputOutputError(f"importing `{request.source}` failed: {text}"))
    return 0


def _importer(kind: str) -> Callable[[ImportRequest, Path], Imported]:
    if kind == "onnx":
        from packager.importers.onnx_file import import_onnx

        return import_onnx
    if kind == "exported-program":
        from packager.importers.exported_program import import_exported_program

        return import_exported_program
    from packager.importers.torch_module import import_torch_module

    return import_torch_module


def _fail(workdir: Path, fault: EdgepackError) -> int:
    for file in (workdir / MODEL_FILE, data_file(workdir / MODEL_FILE)):
        file.unlink(missing_ok=True)
    wire = {
        "class": type(fault).__name__,
        "message": fault.message,
        "accepted": fault.accepted,
        "hint": fault.hint,
    }
    (workdir / ERROR_FILE).write_text(json.dumps(wire), encoding="utf-8")
    return fault.exit_code
