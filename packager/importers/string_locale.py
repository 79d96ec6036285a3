"""Gives StringNormalizer a locale that every glibc system has, so that it loads on devices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from packager.importers.graph_walk import nodes

if TYPE_CHECKING:
    import onnx

EVERYWHERE: Final = "C.UTF-8"
_ENGINE_DEFAULT: Final = "en_US.UTF-8"
# Their letter i changes case in its own way, so another locale would answer differently.
_OWN_CASE_RULES: Final = ("tr", "az", "lt")


def use_common_locale(model: onnx.ModelProto, notes: list[str]) -> None:
    """Replace UTF-8 locales of StringNormalizer by C.UTF-8.

    The engine refuses to load a model whose locale is not installed, and its default
    `en_US.UTF-8` is missing on most devices. glibc takes the case of letters from the same table
    for both, so the answers stay the same.
    """
    changed = set()
    for node in nodes(model):
        if node.op_type != "StringNormalizer" or node.domain not in ("", "ai.onnx"):
            continue
        found = next((a for a in node.attribute if a.name == "locale"), None)
        name = found.s.decode("utf-8", "replace") if found is not None else _ENGINE_DEFAULT
        plain = name.lower().replace("-", "")
        if name == EVERYWHERE or not plain.endswith("utf8") or plain[:2] in _OWN_CASE_RULES:
            continue
        if found is None:
            found = node.attribute.add()
            found.name = "locale"
            found.type = found.STRING
        found.s = EVERYWHERE.encode()
        changed.add(name)
    notes.extend(
        f"text is normalised under the locale {EVERYWHERE} instead of {name}"
        for name in sorted(changed)
    )
