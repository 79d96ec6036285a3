"""Gives the template of the page that a server shows to people its style, script and policy."""

from __future__ import annotations

import base64
import hashlib
from typing import Final

from packager.resources import data_dir

# What the page may do, as far as a `meta` element can say it; the server adds who may frame it.
_POLICY: Final = (
    "default-src 'none'; script-src 'sha256-{script}'; style-src 'sha256-{style}'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)


def page_values() -> dict[str, str]:
    """Return what `server/page.html.j2` names: the same for every model.

    The page holds nothing of a model: where the server wants keys, what the model is takes a key
    too, so the page asks `/page.json` for it and shows it as text.
    """
    style, script = _source("page.css"), _source("page.js")
    policy = _POLICY.format(style=_digest(style), script=_digest(script))
    return {"policy": policy, "style": style, "script": script}


def _source(name: str) -> str:
    """Return a file beside the template, without what only its readers need."""
    text = (data_dir("templates") / "server" / name).read_text(encoding="utf-8")
    lines = (line.strip() for line in text.splitlines())
    return "\n".join(line for line in lines if line and not line.startswith(("//", "/*"))) + "\n"


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
