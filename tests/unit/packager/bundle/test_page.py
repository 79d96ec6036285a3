"""The rendered page: one file that asks for nothing from elsewhere, always the same."""

from __future__ import annotations

import base64
import hashlib
import re

import pytest

from packager.bundle import page as page_module
from packager.bundle.page import page_values
from packager.bundle.render import render, render_server
from tests.unit.packager.bundle.test_render import X, Y, manifest


def rendered() -> str:
    return render_server(manifest([X], [Y], page=True))["server/page.html"].decode()


def digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def test_the_policy_lets_in_exactly_the_style_and_the_script_of_the_page() -> None:
    text = rendered()
    (style,) = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)
    assert policy is not None
    said = policy[1].replace("&#x27;", "'")
    assert f"style-src 'sha256-{digest(style)}'" in said
    assert f"script-src 'sha256-{digest(script)}'" in said
    assert said.startswith("default-src 'none'; ")
    assert "unsafe" not in said
    assert "connect-src 'self'" in said


def test_nothing_outside_is_named_and_nothing_is_markup_that_runs() -> None:
    text = rendered()
    assert not re.search(r"https?:|//[a-z]|@import|\burl\(", text)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b", text)
    assert not re.search(r"<[^>]* (style|on[a-z]+)=", text)
    assert re.findall(r'src="[^"]*"', text) == []
    assert re.findall(r'<link [^>]*href="([^"]*)"', text) == ["data:,"]


def test_the_page_is_the_same_for_every_model_and_small() -> None:
    other = manifest([{**X, "name": "</script>"}], [Y], page=True) | {"name": "other"}
    assert render_server(other)["server/page.html"].decode() == rendered()
    assert rendered() == rendered()
    assert len(rendered().encode()) < 41_000


def test_without_the_page_there_is_no_file_and_no_route() -> None:
    files = render_server(manifest([X], [Y], page=False))
    assert "server/page.html" not in files
    assert b"page" not in files["server/app.py"]
    routes = render_server(manifest([X], [Y], page=True))["server/app.py"].decode()
    assert '("/", "page")' in routes
    assert '("/page.json", "page_facts")' in routes


def test_a_script_that_would_end_its_element_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module, "_source", lambda name: "x = '</script>'")
    with pytest.raises(TypeError, match="cannot hold markup"):
        render("server/page.html.j2", **page_values())
