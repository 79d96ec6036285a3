"""The device's command line: serve, predict, verify, detect, unpack, bench, captures."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any, Callable, Dict, List, Mapping, NoReturn, Optional, Sequence

from .arguments import Command, Option, describe, parse, positive, whole
from .errors import DeviceError, UsageFault


def _one_of(*words: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in words:
            raise ValueError(text)
        return text

    return read


_JSON = Option(("--json",), "", "print the result as JSON", default=False)
_THREADS = Option(
    ("--threads",), "N", "intra-op threads; 0: one per core", whole(0, 1024), "0 to 1024"
)
COMMANDS: Dict[str, Command] = {
    "serve": Command(
        "answer over HTTP until SIGTERM or Ctrl-C",
        (
            Option(("--host",), "ADDRESS", "where to listen", default="127.0.0.1"),
            Option(
                ("--port",), "N", "0 takes a free one", whole(0, 65535), "0 to 65535", default=8000
            ),
            _THREADS,
            Option(("--workers",), "N", "threads that run the model", whole(1, 256), "1 to 256"),
            Option(
                ("--queue",), "N", "requests that may wait for them", whole(1, 65536), "1 to 65536"
            ),
            Option(
                ("--deadline",), "S", "seconds a request may wait", positive, "a number above 0"
            ),
            Option(("--tls-cert",), "FILE", "certificate chain, PEM"),
            Option(("--tls-key",), "FILE", "its private key, PEM"),
            Option(("--tls-client-ca",), "FILE", "ask clients for a certificate of this authority"),
            Option(
                ("--tls-min",), "V", "the oldest version of TLS, 1.2 or 1.3", _one_of("1.2", "1.3"),
                "1.2 or 1.3", default="1.3",
            ),
            Option(("--keys",), "FILE", "only those who have one of these API keys may ask"),
            Option(
                ("--insecure",), "", "listen beyond this machine without TLS", default=False
            ),
            Option(("--name",), "HOST", "a name clients call this server by", default=[]),
            Option(("--allow-origin",), "URL", "pages of this origin may ask", default=[]),
            Option(("--page",), "", "leave out the page at /", default=True),
            Option(
                ("--log",), "FORM", "the log as text or json", _one_of("text", "json"),
                "text or json", default="text",
            ),
            Option(("--access-log",), "", "one line a request", default=False),
            Option(("--capture-dir",), "DIR", "where kept requests go, if the bundle keeps any"),
            Option(("--capture-key",), "FILE", "the key that they are encrypted with"),
            Option(
                ("--retune",), "", "build TensorRT's engine anew, even one that was rejected",
                default=False,
            ),
        ),
    ),
    "predict": Command(
        "run one inference per input file",
        (
            Option(
                ("-i", "--input"), "FILE", ".npz, .npy, or a file for /predict",
                default=[],
            ),
            Option(("-o", "--output"), "FILE", "write the outputs to an .npz by their names"),
            Option(
                ("--top",), "K", "classes shown per row", whole(1, 10_000), "1 to 10000", default=5
            ),
            _THREADS,
            _JSON,
        ),
    ),
    "verify": Command(
        "compare every byte with the manifest, and run the golden samples",
        (
            Option(("--self-test",), "", "leave the samples out", default=True),
            _JSON,
        ),
        operand="PATH?",
    ),
    "detect": Command("tell what this device is", (_JSON,)),
    "unpack": Command("write the files into a new folder", operand="DIR"),
    "bench": Command(
        "measure latency, throughput, memory and start",
        (
            Option(("--runs",), "N", "stop after N runs", whole(1, 10**9), "a number above 0"),
            Option(
                ("--seconds",), "S", "length of each part", positive, "a number above 0",
                default=3.0,
            ),
            _THREADS,
            _JSON,
        ),
    ),
    "captures": Command(
        "list, export, drift, delete or verify what a server has kept here",
        (
            Option(("--dir",), "DIR", "where it is, else $STATE_DIRECTORY"),
            Option(("--capture-key",), "FILE", "the key that it is encrypted with"),
            Option(("--before",), "DATE", "delete: all from before, as 2026-01-31"),
            Option(("--request",), "ID", "delete: the requests of this id"),
            Option(("--expired",), "", "delete: what has been kept for its time", default=False),
            Option(("--all",), "", "delete: everything", default=False),
            Option(("-o", "--output"), "FILE", "export: the .npz to write"),
            Option(("--outputs",), "", "export: the answers too", default=False),
            _JSON,
        ),
        operand="ACTION",
    ),
    "new-key": Command(
        "make an API key for a server's callers, or revoke one",
        (
            Option(("--file",), "FILE", "the keys file, made where it is missing"),
            Option(("--scopes",), "LIST", "of infer, metrics, admin", default="infer"),
            Option(("--days",), "N", "how long it is good", positive, "a number above 0",
                   default=90.0),
            Option(("--rate",), "N", "requests a second", positive, "a number above 0"),
            Option(("--concurrency",), "N", "requests at once", whole(1, 65536), "1 to 65536"),
            Option(("--revoke",), "NAME", "take all keys of this name out"),
        ),
        operand="NAME?",
    ),
    "build-engine": Command(
        "build the engine of a request, in this process", operand="REQUEST FOLDER", hidden=True
    ),
}  # fmt: skip


def main(argv: Sequence[str], root: Optional[str]) -> int:
    """Run one command and return the exit status.

    Args:
        argv: The words after the program's name.
        root: The bundle file or release folder that runs; None where only `verify PATH` and
            `detect` make sense.
    """
    try:
        signal.signal(signal.SIGTERM, _terminate)
        parsed = parse(argv, COMMANDS)
        if parsed is None:
            program = "python3 %s" % os.path.basename(root or "BUNDLE")
            print("\n".join(describe(program, COMMANDS)))
            return 0
        name, values = parsed
        if root is not None and os.path.isdir(root):
            from .release import forget_compiled_main

            forget_compiled_main(root)
        _RUN[name](root, values)
        sys.stdout.flush()
    except DeviceError as fault:
        return _explain(fault.message, fault.hint, fault.exit_code)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read us has gone; the interpreter would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as fault:
        where = "`%s`: " % fault.filename if fault.filename else ""
        return _explain(where + (fault.strerror or str(fault)).lower(), None, 10)
    except Exception as fault:  # noqa: BLE001 - the last border: our own bug, kept in a file
        return _explain("this is a bug in edgepack", _keep_traceback(fault), 70)
    return 0


def serve(root: Optional[str], values: Dict[str, Any]) -> None:
    """Serve the release until told to stop."""
    from .serving import run_server

    run_server(_need(root), values)


def predict(root: Optional[str], values: Dict[str, Any]) -> None:
    """Run one inference per input file and print the answers."""
    from .predict import run_predict

    if not values["input"]:
        raise UsageFault("`predict` needs an input", "-i FILE.npz")
    path = _need(root)
    lines = run_predict(
        path,
        values["input"],
        output=values["output"],
        top=values["top"],
        threads=values["threads"],
        as_json=values["json"],
    )
    print("\n".join(lines))


def verify(root: Optional[str], values: Dict[str, Any]) -> None:
    """Check integrity and, where this device fits, the golden samples."""
    from .verify import run_verify

    path = values["path"] or root
    result = run_verify(_need(path), values["self_test"], running=path == root)
    _show(result, ["%-10s %s" % (key.replace("_", " "), result[key]) for key in result], values)


def detect(root: Optional[str], values: Dict[str, Any]) -> None:
    """Tell what this device is, and which engine the bundle will use on it."""
    from .detect import describe as lines
    from .detect import detect_device, detect_gpu

    facts, gpu = detect_device(), detect_gpu()
    if gpu:
        facts["gpu"] = gpu
    shown = lines(facts)
    manifest = {} if gpu is None else _read_manifest(root)
    if gpu is not None and manifest.get("tensorrt"):
        from .nvidia.device import describe_outlook, engine_outlook

        facts["tensorrt"] = outlook = engine_outlook(manifest, gpu)
        shown += describe_outlook(outlook)
    _show(facts, shown, values)


def unpack(root: Optional[str], values: Dict[str, Any]) -> None:
    """Write the bundle's files into a new folder."""
    from .release import unpack as unpack_release

    path, folder = _need(root), values["dir"]
    if os.path.isdir(path):
        raise UsageFault("this release is unpacked already, in `%s`" % path)
    manifest = unpack_release(path, folder)
    print("%s %s in %s" % (manifest.fields["name"], manifest.fields["version"], folder))


def bench(root: Optional[str], values: Dict[str, Any]) -> None:
    """Measure the release on this device."""
    from .bench import run_bench

    result = run_bench(
        _need(root),
        seconds=values["seconds"],
        runs=values["runs"],
        threads=values["threads"],
    )
    _show(result, ["%-18s %s" % (key, result[key]) for key in result], values)


def captures(root: Optional[str], values: Dict[str, Any]) -> None:
    """Look after what a server has kept of its requests."""
    try:
        from .privacy.command import run_captures
    except ModuleNotFoundError as fault:
        raise UsageFault("this bundle keeps no requests", "`[privacy]` in its recipe") from fault
    result, lines = run_captures(values)
    _show(result, lines, values)


def new_key(root: Optional[str], values: Dict[str, Any]) -> None:
    """Make or revoke an API key."""
    from .closed.newkey import run_new_key

    run_new_key(values)


def build_engine(root: Optional[str], values: Dict[str, Any]) -> None:
    """Build an engine; its caller reads what this says as JSON lines."""
    try:
        from .nvidia.child import run_build
    except ModuleNotFoundError as fault:
        raise UsageFault("this bundle is for a target without TensorRT") from fault
    run_build(values["request"], values["folder"])


_RUN: Dict[str, Callable[[Optional[str], Dict[str, Any]], None]] = {
    "serve": serve,
    "predict": predict,
    "verify": verify,
    "detect": detect,
    "unpack": unpack,
    "bench": bench,
    "captures": captures,
    "new-key": new_key,
    "build-engine": build_engine,
}


def _read_manifest(root: Optional[str]) -> Mapping[str, Any]:
    if root is None:
        return {}
    if not os.path.isdir(root):
        from .archive import read_manifest

        return read_manifest(root).fields
    from .manifest import parse_manifest

    with open(os.path.join(root, "manifest.json"), "rb") as stream:
        return parse_manifest(stream.read()).fields


def _need(root: Optional[str]) -> str:
    if root is None:
        raise UsageFault("there is no bundle to work on", "python3 X.edgepack COMMAND")
    return root


def _show(result: Dict[str, Any], lines: List[str], values: Dict[str, Any]) -> None:
    if values["json"]:
        import json

        print(json.dumps(result, ensure_ascii=False, indent=2))
    else:
        print("\n".join(lines))


def _explain(message: str, hint: Optional[str], code: int) -> int:
    text = "error: %s\n" % message
    if hint:
        text += "\nhint: %s\n" % hint
    sys.stderr.write(text)
    sys.stderr.flush()
    return code


def _keep_traceback(error: BaseException) -> Optional[str]:
    import tempfile

    from .secrecy import bare_traceback

    text = bare_traceback(error)
    try:
        descriptor, path = tempfile.mkstemp(prefix="edgepack-", suffix=".log")
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="replace") as stream:
            stream.write(text)
    except OSError:
        sys.stderr.write(text)
        return None
    return "please report it with the traceback in %s" % path


def _terminate(number: int, frame: Any) -> NoReturn:
    # As an exception, so that nothing half-written stays behind.
    raise SystemExit(143)
