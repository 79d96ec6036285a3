"""Which nodes the TensorRT-RTX parser takes: the host's first answer for every target."""

from __future__ import annotations

import importlib.util
import json
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from packager.errors import ExternalToolError
from packager.process import Limits, python_argv, run

MODULE: Final = "tensorrt_rtx"
_CHILD: Final = "packager.backends.tensorrt.support_child"
_TIMEOUT_S: Final = 300.0
# Address space, not memory: the libraries alone reserve some gigabytes.
_MEMORY_MIB: Final = 16 * 1024
_LONGEST_REASON: Final = 200


@dataclass(frozen=True, kw_only=True)
class Unsupported:
    """A node that a parser does not take, by its place in the file, and why.

    Attributes:
        index: In `graph.node`; a node inside a branch or loop has the place of its outermost node.
        operator: Of the node at that place.
        code: The parser's own word for the kind of error, or ours.
    """

    index: int
    name: str
    operator: str
    reason: str
    code: str = ""

    def __str__(self) -> str:
        return f"`{self.name}` ({self.operator}): {self.reason}"


@dataclass(frozen=True, kw_only=True)
class Support:
    """What a parser says of one model.

    Attributes:
        parser: Its name and version.
        parsed: The whole model was parsed to its end.
        unsupported: By place; where `parsed` is False more may come to light once these are gone.
        general: Errors that the parser lays to no node, as an input's dtype.
    """

    parser: str
    parsed: bool
    unsupported: tuple[Unsupported, ...] = ()
    general: tuple[str, ...] = ()


def support_map(
    onnx_path: Path, *, timeout_s: float = _TIMEOUT_S, memory_mib: int = _MEMORY_MIB
) -> Support | None:
    """Return which nodes the RTX parser takes, found in a child process; None without tensorrt_rtx.

    Args:
        onnx_path: ONNX file.
        timeout_s: Wall-clock limit of the child.
        memory_mib: Limit of the child's address space.

    Raises:
        ExternalToolError: the child crashed, ran out of time or memory, or said nothing.
    """
    if importlib.util.find_spec(MODULE) is None:
        return None
    import onnx

    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        run(
            python_argv(_CHILD, onnx_path.resolve(), answer),
            timeout_s=timeout_s,
            limits=Limits(memory_mib=memory_mib),
            hint="`pip uninstall tensorrt-rtx-cu13` builds without the parser's answer",
        )
        try:
            wire = json.loads(answer.read_text(encoding="utf-8"))
        except (OSError, ValueError) as fault:
            raise ExternalToolError(
                f"the parser of {MODULE} gave no answer about `{onnx_path.name}`"
            ) from fault
    nodes = onnx.load(onnx_path, load_external_data=False).graph.node
    return read_answer(wire, nodes)


def read_answer(wire: dict[str, Any], nodes: Any) -> Support:
    """Return the child's answer as data.

    Args:
        wire: What `support_child.ask` returned.
        nodes: `graph.node` of the model that was asked about.
    """
    found: dict[int, Unsupported] = {}
    general = []
    for error in wire["errors"]:
        index = int(error["node"])
        reason = plain_reason(error["text"], error["operator"])
        if not 0 <= index < len(nodes):
            general.append(reason)
            continue
        node = nodes[index]
        if error["operator"] not in ("", node.op_type):
            reason = f"`{error['name']}` ({error['operator']}) inside it: {reason}"
        found.setdefault(
            index,
            Unsupported(
                index=index,
                name=node.name,
                operator=node.op_type,
                reason=reason,
                code=error["code"],
            ),
        )
    return Support(
        parser=f"{MODULE} {wire['version']}",
        parsed=bool(wire["parsed"]),
        unsupported=tuple(found[index] for index in sorted(found)),
        general=tuple(general),
    )


def plain_reason(text: str, operator: str) -> str:
    """Return a parser's error as part of a sentence, without its source's conditions.

    The parser prints the C++ condition that did not hold; its words are inside quotes or behind a
    colon.
    """
    text = " ".join(text.split())
    if text in ("", "false"):
        return f"the parser has no `{operator}`" if operator else "the parser refuses it"
    quoted = re.search(r'&&\s*"(.+?)"', text)
    if quoted:
        text = quoted.group(1)
    elif text.startswith("Assertion failed: "):
        _, colon, words = text.removeprefix("Assertion failed: ").partition(": ")
        text = words if colon else text
    text = text.strip().rstrip(".!")
    return text if len(text) <= _LONGEST_REASON else text[: _LONGEST_REASON - 1].rstrip() + "…"
