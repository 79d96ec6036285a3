"""Turns what torch's exporters say into a reason, the user's line, and what to change."""

from __future__ import annotations

import re
from typing import Any, Final, Self

from packager.importers.blame import frame_in_text, user_frame

_OPERATOR: Final = re.compile(r"op(?:overload)?='([\w.:]+)'", re.IGNORECASE)
_SYMBOLIC: Final = re.compile(r"operator '?([\w.:]+)'? (?:to ONNX|is not)")
_FIXED: Final = re.compile(
    r"specialized .*?constant \((\d+)\)|to be equal to (?:the )?constant (\d+)"
)
_DIMENSION: Final = re.compile(r"(?:Constraints violated|unique name) \((\w+)\)|dimension (\w+) ")
_SUGGESTED: Final = re.compile(r"Suggested fixes:\s*(.+?)(?:\n\n|$)", re.DOTALL)
_DATA: Final = (
    "GuardOnDataDependentSymNode",
    "data-dependent",
    "Data-dependent",
    "dynamic control flow",
    "Dynamic control flow",
    "PendingUnbackedSymbolNotFound",
)


class Refusal(Exception):  # noqa: N818 - one rung's outcome, not yet an error
    """Why a rung did not pass.

    Attributes:
        kind: `branch`, `dimension`, `operator`, `answers` or `other`, by how telling it is.
        where: The user's line, None where it is not known.
        hint: What to change.
    """

    _WEIGHTS: Final = {"branch": 4, "dimension": 3, "operator": 3, "answers": 2, "other": 1}

    def __init__(
        self,
        reason: str,
        *,
        kind: str = "other",
        where: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(reason + (f" at {where}" if where else ""))
        self.reason = reason
        self.kind = kind
        self.where = where
        self.hint = hint

    @property
    def weight(self) -> tuple[int, bool]:
        """Order of tellingness."""
        return self._WEIGHTS[self.kind], self.where is not None

    @classmethod
    def branch(cls, where: str | None) -> Self:
        """Return the refusal of Python control flow that depends on data."""
        return cls(
            "its Python code depends on the values of a tensor",
            kind="branch",
            where=where,
            hint="rewrite that line with tensor operations (`torch.where`, masking) or "
            "`torch.cond`; `.item()`, `int()`, `bool()` and `if` on a tensor cannot be exported",
        )


def explain(fault: BaseException, *, program: Any = None) -> Refusal:
    """Return the refusal for an exporter's exception.

    Args:
        fault: What it raised.
        program: The exported program, whose nodes remember the user's lines.
    """
    chain = _chain(fault)
    text = "\n".join(f"{type(link).__name__}: {link}" for link in chain)
    where = next((w for w in map(frame_in_text, map(str, chain)) if w), None)
    where = where or next((w for w in map(user_frame, chain) if w), None)
    operator = _OPERATOR.search(text) or _SYMBOLIC.search(text)
    if "No ONNX function found" in text or "UnsupportedOperatorError" in text:
        name = operator[1] if operator else "an operator"
        return Refusal(
            f"the operator `{name}` has no ONNX form",
            kind="operator",
            where=_node_line(program, name) or where,
            hint=f"write what `{name}` does with other operators, or drop it from `forward`",
        )
    if any(word in text for word in _DATA):
        return Refusal.branch(where)
    if "Constraints violated" in text or "specialized" in text or "ConstraintViolation" in text:
        return _dimension_refusal(text, where)
    first = _telling_line(chain)
    return Refusal(first, where=where)


def _dimension_refusal(text: str, where: str | None) -> Refusal:
    name = next((m[1] or m[2] for m in _DIMENSION.finditer(text)), "batch")
    fixed = _FIXED.search(text)
    if fixed:
        size = fixed[1] or fixed[2]
        return Refusal(
            f"its code works only with dimension `{name}` = {size}",
            kind="dimension",
            where=where,
            hint=f"declare it: `--dim {name}={size}`, or take the size from `x.shape` in the code",
        )
    suggested = _SUGGESTED.search(text)
    detail = " ".join(suggested[1].split())[:300] if suggested else ""
    return Refusal(
        f"its code does not work over the whole range of dimension `{name}`"
        + (f" (torch suggests: {detail})" if detail else ""),
        kind="dimension",
        where=where,
        hint=f"narrow the range, as `--dim {name}=2..8`, or declare it static: `--dim {name}=1`",
    )


def _chain(fault: BaseException) -> list[BaseException]:
    links: list[BaseException] = []
    link: BaseException | None = fault
    while link is not None and link not in links:
        links.append(link)
        link = link.__cause__ or link.__context__
    return links


def _telling_line(chain: list[BaseException]) -> str:
    """Return the innermost cause's first line that says something."""
    root = chain[-1]
    for line in str(root).splitlines():
        if line.strip():
            return f"{type(root).__name__}: {line.strip()[:300]}"
    return type(root).__name__


def _node_line(program: Any, operator: str) -> str | None:
    """Return the user's line that made the first node of an operator."""
    if program is None:
        return None
    for node in program.graph.nodes:
        if node.op == "call_function" and operator.replace("::", ".") in str(node.target):
            return frame_in_text(node.meta.get("stack_trace") or "")
    return None
