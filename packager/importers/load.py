"""Imports what the user named: settles what it is and has a limited child process convert it."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from packager import errors, process
from packager.errors import (
    BackendMissing,
    EdgepackError,
    InputOutputError,
    ModelUnsupported,
    UsageError,
)
from packager.importers.request import (
    ERROR_FILE,
    MODEL_FILE,
    REQUEST_FILE,
    RESULT_FILE,
    SCRATCH_FOLDER,
    Imported,
    ImportLimits,
    ImportRequest,
)
from packager.model import data_file

if TYPE_CHECKING:
    from packager.console import Reporter
    from packager.model import Model
    from packager.recipe import Recipe

FORMS = (
    "`path/to/file.py:make_model`, `package.module:make_model`, `model.pt2` or `model.onnx`, "
    "where `make_model()` returns (module, {input name: example tensor})"
)
_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_IDENTIFIER = re.compile(r"[A-Za-z_]\w*")
_PICKLE_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle", ".joblib")
_PICKLE_HINT = """\
write a factory and give `model.py:make_model` instead:
    def make_model():
        net = Net()
        net.load_state_dict(torch.load({name!r}, weights_only=True))
        return net, {{"x": torch.zeros(1, 3, 224, 224)}}"""
_TITLES = {"torch": "torch module", "exported-program": "exported program", "onnx": "ONNX file"}
_LOG_FILE = "import.log"
_CRASH_LINES = 6
_LOCATION = re.compile(rb"\x0a\x08location\x12(.)(.)", re.DOTALL)
# Up to here external data is inlined; beyond it is copied from file to file.
_INLINED_BYTES = 1 << 31
_MOST_HASHED_BYTES = 1 << 34
_LARGE_FACTOR = 3
# Thread pools and arenas reserve address space for every core, which the memory limit counts.
_FEW_THREADS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}


class _TimeoutError(EdgepackError):
    """The child reached its wall-clock limit."""


def parse_source(word: str) -> ImportRequest:
    """Return the request for what the user named, without opening more than its first bytes.

    Raises:
        UsageError: the word has none of the accepted forms, or names nothing that exists.
        ModelUnsupported: a pickle, or an empty file.
        InputOutputError: the file cannot be read.
    """
    head, colon, tail = word.rpartition(":")
    if colon and _IDENTIFIER.fullmatch(tail) and head:
        return _factory_request(head, tail)
    path = Path(word)
    suffix = path.suffix.lower()
    if suffix == ".py":
        raise UsageError(
            f"`{word}` names a Python file but no factory function in it",
            accepted=FORMS,
            hint=f"`{word}:make_model`",
        )
    kinds = {".onnx": "onnx", ".pt2": "exported-program"}
    if suffix not in kinds and suffix not in _PICKLE_SUFFIXES:
        raise UsageError(f"`{word}` is no model that edgepack reads", accepted=FORMS)
    magic = _first_bytes(path, word)
    if suffix in _PICKLE_SUFFIXES or _is_pickle(path, magic, suffix):
        raise ModelUnsupported(
            f"`{word}` is a pickled checkpoint, and pickled checkpoints are not executed",
            accepted=FORMS,
            hint=_PICKLE_HINT.format(name=path.name),
        )
    return ImportRequest(kind=kinds[suffix], source=path.name, path=str(path.resolve()))


def _factory_request(head: str, factory: str) -> ImportRequest:
    folder = str(Path.cwd())
    if head.endswith(".py"):
        path = Path(head)
        _first_bytes(path, head)
        return ImportRequest(
            kind="torch",
            source=f"{path.name}:{factory}",
            path=str(path.resolve()),
            factory=factory,
            folder=folder,
        )
    if _DOTTED.fullmatch(head):
        return ImportRequest(
            kind="torch",
            source=f"{head}:{factory}",
            module=head,
            factory=factory,
            folder=folder,
        )
    raise UsageError(f"`{head}:{factory}` is no model that edgepack reads", accepted=FORMS)


def _first_bytes(path: Path, word: str) -> bytes:
    try:
        if path.is_dir():
            raise UsageError(f"`{word}` is a folder", accepted=FORMS)
        if path.exists() and not path.is_file():
            raise ModelUnsupported(f"`{word}` is not a regular file")
        with path.open("rb") as stream:
            magic = stream.read(16)
    except FileNotFoundError as fault:
        raise UsageError(f"there is no file `{word}`", accepted=FORMS) from fault
    except OSError as fault:
        raise InputOutputError(f"`{word}` cannot be read: {fault.strerror}") from fault
    if not magic:
        raise ModelUnsupported(f"`{word}` is empty")
    return magic


def _is_pickle(path: Path, magic: bytes, suffix: str) -> bool:
    """Return whether the content is a pickle: a bare one, or torch's zip with `data.pkl`."""
    if magic[0] == 0x80 and 2 <= magic[1] <= 5:
        return True
    if magic[:4] != b"PK\x03\x04":
        return False
    import zipfile

    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.split("/", 1)[-1] for name in archive.namelist()]
    except (zipfile.BadZipFile, OSError):
        return False
    return "data.pkl" in names and not any(name.startswith("models/") for name in names)


def import_model(
    recipe: Recipe, *, workdir: Path, reporter: Reporter, limits: ImportLimits | None = None
) -> Model:
    """Import the recipe's model into `workdir`.

    The conversion runs in a child process; nothing of the model is parsed or executed here.

    Args:
        recipe: Names the model, its shapes and the ranges of its dynamic dimensions.
        workdir: An existing folder; it gets `model.onnx`, `model.json` and `import.log`.
        reporter: Told what happens.
        limits: Time and memory of the child.

    Raises:
        UsageError: the word has no accepted form, or a shape or dimension that cannot be.
        ModelUnsupported: the model cannot be imported, converted or trusted.
        BackendMissing: torch is needed and not installed.
        InputOutputError: a file that cannot be read or written.
    """
    limits = limits or ImportLimits()
    request = replace(
        parse_source(recipe.model), shapes=recipe.shapes, dims=recipe.dims, limits=limits
    )
    if request.kind != "onnx":
        require_torch()
    workdir = workdir.resolve()
    reporter.stage(f"import {_TITLES[request.kind]} `{request.source}`")
    try:
        data = data_file(workdir / MODEL_FILE).name
        for name in (REQUEST_FILE, MODEL_FILE, data, RESULT_FILE, ERROR_FILE):
            (workdir / name).unlink(missing_ok=True)
        request.write(workdir / REQUEST_FILE)
        done = _run_child(request, workdir)
    except OSError as fault:
        raise InputOutputError(
            f"`{workdir}` cannot be written: {(fault.strerror or str(fault)).lower()}"
        ) from fault
    finally:
        shutil.rmtree(workdir / SCRATCH_FOLDER, ignore_errors=True)
        (workdir / REQUEST_FILE).unlink(missing_ok=True)
    error_file, result_file = workdir / ERROR_FILE, workdir / RESULT_FILE
    if error_file.is_file():
        wire = json.loads(error_file.read_text(encoding="utf-8"))
        error_file.unlink()
        kind: type[EdgepackError] = getattr(errors, wire["class"])
        raise kind(wire["message"], accepted=wire["accepted"], hint=wire["hint"])
    if done.returncode != 0 or not result_file.is_file():
        raise _crash(request, done)
    found = Imported.read(result_file)
    for note in found.provenance.notes:
        reporter.note(note)
    return found.as_model(workdir / MODEL_FILE, name=recipe.name)


def source_digest(recipe: Recipe) -> str | None:
    """Return the SHA-256 of a file source with its external data, for the stage cache.

    None for a factory: its weights are known only after it has run, and `Provenance` has their
    digest then; and where more lies beside an ONNX file than a model may hold. Where the external
    data cannot be resolved the import itself will say so.
    """
    request = parse_source(recipe.model)
    if request.kind == "torch":
        return None
    digest = hashlib.sha256()
    path = Path(request.path)
    beside = _external_files(path, request.kind)
    if sum(file.stat().st_size for file in beside) > _MOST_HASHED_BYTES:
        return None  # refused, or a few tensors out of a file of many
    for member in (path, *beside):
        digest.update(member.name.encode() + b"\0")
        with member.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def _external_files(path: Path, kind: str) -> list[Path]:
    """Return the files that an ONNX file's external data lies in, without parsing it.

    Every reference holds the key `location` in one fixed form; a name that only looks like one,
    or leads elsewhere, matches no file beside the model.
    """
    if kind != "onnx":
        return []
    content = path.read_bytes()
    names = set()
    for match in _LOCATION.finditer(content):
        length, start = match[1][0], match.end()
        if length >= 0x80:  # a length of two bytes
            length = (length & 0x7F) | match[2][0] << 7
        else:
            start -= 1
        names.add(content[start : start + length].decode("utf-8", "replace"))
    return sorted(path.parent / name for name in names if _lies_beside(path, name))


def _lies_beside(path: Path, name: str) -> bool:
    if not name or "\0" in name or name.startswith("/") or ".." in name.split("/"):
        return False
    try:
        return (path.parent / name).is_file()
    except OSError:
        return False


def require_torch() -> None:
    """Raise BackendMissing where torch is not installed."""
    if importlib.util.find_spec("torch") is None:
        raise BackendMissing(
            "torch is not installed, and this model needs it",
            hint="pip install 'edgepack[torch]'",
        )


def _run_child(request: ImportRequest, workdir: Path) -> process.Completed:
    limits = request.limits
    scratch = workdir / SCRATCH_FOLDER
    scratch.mkdir(exist_ok=True)
    environment = {
        **os.environ,
        "TMPDIR": str(scratch),
        "TORCHINDUCTOR_CACHE_DIR": str(scratch),
        "PYTHONIOENCODING": "utf-8",
    }
    child_limits = None
    wall_s = limits.torch_wall_s
    if request.kind == "onnx":
        environment |= _FEW_THREADS
        wall_s = limits.onnx_wall_s
        path = Path(request.path)
        beside = sum(file.stat().st_size for file in _external_files(path, "onnx"))
        inlined = path.stat().st_size + min(beside, _INLINED_BYTES)
        mapped = min(beside, _MOST_HASHED_BYTES) - min(beside, _INLINED_BYTES)
        size_mib = (limits.memory_factor * inlined + _LARGE_FACTOR * mapped) >> 20
        child_limits = process.Limits(
            memory_mib=limits.memory_mib + size_mib,
            cpu_s=max(1, int(wall_s)),
        )
    try:
        return process.run(
            child_argv("packager.importers.child", workdir),
            timeout_s=wall_s,
            check=False,
            cwd=Path(request.folder) if request.folder else workdir,
            env=environment,
            limits=child_limits,
            log=workdir / _LOG_FILE,
            error=_TimeoutError,
        )
    except _TimeoutError as fault:
        raise ModelUnsupported(
            f"importing `{request.source}` took longer than {wall_s:g} s and was ended"
        ) from fault


def child_argv(module: str, workdir: Path) -> list[str]:
    """Return the command that runs `main(workdir)` of one of our modules on the user's code.

    `-P` keeps the current folder off the import path: a model's folder may hold an `onnx.py`.
    `-B` leaves no `__pycache__` beside the user's files.
    """
    root = str(Path(errors.__file__).resolve().parent.parent)
    program = (
        f"import sys\nif {root!r} not in sys.path: sys.path.insert(0, {root!r})\n"
        f"from {module} import main\nsys.exit(main(sys.argv[1]))"
    )
    return [sys.executable, "-P", "-B", "-c", program, str(workdir)]


def _crash(request: ImportRequest, done: process.Completed) -> EdgepackError:
    """Return the error for a child that ended without a word."""
    if done.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        return ModelUnsupported(
            f"importing `{request.source}` used more time or memory than it may, and was ended"
        )
    if "No space left on device" in done.stderr:
        return InputOutputError(f"importing `{request.source}` failed: no space left on the disk")
    lines = done.stderr.rstrip().splitlines()[-_CRASH_LINES:]
    last = "".join(f"\n  | {line}" for line in lines) or " without a word"
    how = f"signal {-done.returncode}" if done.returncode < 0 else f"exit {done.returncode}"
    return ModelUnsupported(f"importing `{request.source}` crashed the converter ({how}){last}")
