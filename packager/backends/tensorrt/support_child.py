"""Asks the TensorRT-RTX parser about every node of one ONNX file, and writes its answer as JSON."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any, Final

_MOST_LINES: Final = 40


def main(argv: list[str]) -> int:
    """Read `MODEL.onnx`, write `ANSWER.json` and return the exit status."""
    source, answer = argv
    Path(answer).write_text(json.dumps(ask(source)), encoding="utf-8")
    return 0


def ask(path: str) -> dict[str, Any]:
    """Return what the parser says of a model: its errors by node, and the nodes that it takes.

    The parser first checks every node by its operator and attributes and names all that it lacks;
    only where none is left does it build the network, and then stops at the first that fails. So a
    model without unsupported nodes is one that parsed to its end.
    """
    # By name: it has no type stubs, and is not on every host.
    tensorrt_rtx: Any = importlib.import_module("tensorrt_rtx")
    kept = _log_of(tensorrt_rtx)
    builder = tensorrt_rtx.Builder(kept)
    if builder is None:
        raise SystemExit("the builder of tensorrt_rtx cannot be made")
    network = builder.create_network(0)
    parser = tensorrt_rtx.OnnxParser(network, kept)
    # The path lets the parser find weights that lie beside the file.
    parsed = parser.supports_model_v2(Path(path).read_bytes(), path)
    return {
        "version": tensorrt_rtx.__version__,
        "parsed": bool(parsed),
        "taken": sorted(
            node for at in range(parser.num_subgraphs) for node in parser.get_subgraph_nodes(at)
        ),
        "errors": [_error(parser.get_error(at)) for at in range(parser.num_errors)],
        "log": kept.lines[-_MOST_LINES:],
    }


def _error(error: Any) -> dict[str, Any]:
    return {
        "code": str(error.code()).rpartition(".")[2],
        "text": error.desc(),
        "node": error.node(),
        "name": error.node_name(),
        "operator": error.node_operator(),
    }


def _log_of(vendor: Any) -> Any:
    class Kept(vendor.ILogger):  # type: ignore[misc]
        """Keeps what the library says of warnings and errors."""

        def __init__(self) -> None:
            vendor.ILogger.__init__(self)
            self.lines: list[str] = []

        def log(self, severity: Any, text: str) -> None:
            if severity <= vendor.ILogger.WARNING:
                self.lines.append(text)

    return Kept()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
