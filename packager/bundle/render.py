"""Renders templates: strict, and values enter only through a filter: `py`, `json`, `sh`, `html`."""

from __future__ import annotations

import html
import json
import shlex
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from packager.bundle.openapi import openapi_values
from packager.bundle.page import page_values
from packager.bundle.sequence import client_signature
from packager.resources import data_dir

if TYPE_CHECKING:
    from collections.abc import Mapping

    import jinja2

    from packager.model import Signature

# What tensors may have where the signature sets no limit; the runtime's own default is the same.
UNBOUNDED_BYTES: Final = 16 << 20
# The largest request may take this part of the memory; a server holds four of that size at most.
_REQUESTS_IN_MEMORY: Final = 16
_ITEM_BYTES: Final = {
    "float64": 8, "int64": 8, "uint64": 8, "float32": 4, "int32": 4, "uint32": 4,
    "float16": 2, "bfloat16": 2, "int16": 2, "uint16": 2, "int8": 1, "uint8": 1, "bool": 1,
}  # fmt: skip


class _Literal(str):
    """Text that went through a filter."""

    __slots__ = ()


def render(template: str, **values: object) -> str:
    """Return a rendered template.

    Args:
        template: Its path below `templates/`.
        values: What the template names; nothing it names may be missing.

    Raises:
        jinja2.UndefinedError: the template names something that is not given.
        TypeError: the template lets a value in without a filter.
    """
    return _environment().get_template(template).render(**values)


def render_server(manifest: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the generated files of a bundle by path: its start, its routes, its interface.

    Args:
        manifest: The manifest's fields; `files` and `golden` are not looked at.
    """
    signature = client_signature(manifest)
    server = manifest["server"]
    major, minor = manifest["target"]["python"].split(".")[:2]
    rendered = {
        "__main__.py": render("__main__.py.j2", minimum=(int(major), int(minor))),
        "server/app.py": render(
            "server/app.py.j2",
            routes=_routes(manifest),
            json_bytes=server["max_json_kb"] * 1024,
            binary_bytes=min(_max_tensor_bytes(signature), _share_of_memory(manifest)),
        ),
    }
    if server["openapi"]:
        text = render("server/openapi.json.j2", **openapi_values(manifest, signature))
        # reads it back, so that a template's slip cannot ship, and settles the layout
        rendered["server/openapi.json"] = json.dumps(json.loads(text), indent=1) + "\n"
    if server.get("page"):
        rendered["server/page.html"] = render("server/page.html.j2", **page_values())
    return {path: text.encode() for path, text in rendered.items()}


def _routes(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return path and endpoint of everything that was asked for."""
    model = f"/v2/models/{manifest['name']}"
    routes = [
        ("/v2", "server_metadata"),
        ("/v2/health/live", "live"),
        ("/v2/health/ready", "ready"),
    ]
    for base in (model, f"{model}/versions/{manifest['version']}"):
        routes += [
            (base, "model_metadata"),
            (f"{base}/ready", "ready"),
            (f"{base}/infer", "infer"),
            (f"{base}/infer_stream", "infer_stream"),
        ]
    optional = {
        "plain": ("/predict", "predict"),
        "metrics": ("/metrics", "metrics"),
        "openapi": ("/openapi.json", "openapi"),
    }
    routes += [route for option, route in optional.items() if manifest["server"][option]]
    if manifest["server"].get("page"):
        routes += [("/", "page"), ("/page.json", "page_facts")]
    return routes


def _share_of_memory(manifest: Mapping[str, Any]) -> int:
    """Return what one request may take of the device: a batch of photos could be gigabytes."""
    memory_bytes: int = manifest["target"]["memory_mib"] << 20
    return max(memory_bytes // _REQUESTS_IN_MEMORY, UNBOUNDED_BYTES)


def _max_tensor_bytes(signature: Signature) -> int:
    """Return the most bytes that all inputs of one request can have together."""
    total = 0
    for spec in signature.inputs:
        size = _ITEM_BYTES.get(spec.dtype)
        if size is None:
            return UNBOUNDED_BYTES
        for dim in spec.shape:
            largest = dim.max if dim.size is None else dim.size
            if largest is None:
                return UNBOUNDED_BYTES
            size *= largest
        total += size
    return total


def _as_python(value: object) -> _Literal:
    """Return a literal that CPython 2.7 and 3.8 read alike: plain types, ASCII only."""
    if isinstance(value, str):
        text = ascii(value)
        # double quotes, as the house's style has them, wherever nothing needs another escape
        plain = text[0] == "'" and '"' not in text and "\\" not in text
        return _Literal(f'"{text[1:-1]}"' if plain else text)
    if isinstance(value, bool | int | float | None):
        return _Literal(repr(value))
    if isinstance(value, tuple):
        items = [_as_python(item) for item in value]
        return _Literal(f"({', '.join(items)}{',' if len(items) == 1 else ''})")
    raise TypeError(f"no literal for {type(value).__name__}")


def _as_json(value: object) -> _Literal:
    return _Literal(json.dumps(value, allow_nan=False))


def _as_members(value: Mapping[str, Any]) -> _Literal:
    """Return what stands between the braces of a JSON object."""
    return _Literal(_as_json(value)[1:-1])


def _as_shell(value: object) -> _Literal:
    text = str(value)
    if "\0" in text or "\n" in text:
        raise TypeError("a shell word of one line cannot hold a line end")
    return _Literal(shlex.quote(text))


def _as_line(value: object) -> _Literal:
    """Let a text of one line in, as a comment holds it."""
    text = str(value)
    if not text.isprintable():
        raise TypeError("a line cannot hold a line end or a control character")
    return _Literal(text)


def _as_unit(value: object) -> _Literal:
    """Return a value, or a command's words, as systemd.syntax(7) and systemd.service(5) read it."""
    if not isinstance(value, tuple | list):
        return _Literal(_as_line(value).replace("%", "%%"))
    words = []
    for word in value:
        text = _as_line(word).replace("%", "%%").replace("$", "$$")
        if not text or not set(text).isdisjoint(" \"'\\;"):
            text = '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
        words.append(text)
    return _Literal(" ".join(words))


def _as_html(value: object) -> _Literal:
    return _Literal(html.escape(str(value), quote=True))


def _as_it_is(value: object) -> _Literal:
    """Let our own style or script in, which may not end its element."""
    text = str(value)
    if "</" in text or "<!--" in text:
        raise TypeError("a style or a script cannot hold markup")
    return _Literal(text)


def _refuse_unfiltered(value: object) -> object:
    if not isinstance(value, _Literal):
        raise TypeError(f"a template lets {value!r} in without `py`, `json` or `sh`")
    return value


@cache
def _environment() -> jinja2.Environment:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(data_dir("templates")),
        undefined=jinja2.StrictUndefined,
        finalize=_refuse_unfiltered,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 - what enters is quoted by its filter
    )
    environment.filters.update(
        py=_as_python,
        json=_as_json,
        members=_as_members,
        sh=_as_shell,
        line=_as_line,
        unit=_as_unit,
        html=_as_html,
        verbatim=_as_it_is,
    )
    return environment
