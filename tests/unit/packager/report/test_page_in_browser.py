"""The report in a real browser: nothing is fetched, and everyone can read it."""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.browser import violations, wider

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.browser

TAB, ENTER = ("Tab", 9), ("Enter", 13, "\r")


@pytest.fixture
def file(tmp_path: Path, render: Callable[..., str], record: Any) -> Path:
    path = tmp_path / "report.html"
    path.write_text(render(record), encoding="utf-8")
    return path


@pytest.fixture
def short_file(tmp_path: Path, render: Callable[..., str], short_record: Any) -> Path:
    path = tmp_path / "short.html"
    path.write_text(render(short_record), encoding="utf-8")
    return path


@pytest.fixture
def hostile_file(tmp_path: Path, render: Callable[..., str], hostile: Any) -> Path:
    text = hostile["search"]["command"]
    manifest = {"name": text, "version": text, "target": {"name": text}, "model": {"source": text}}
    path = tmp_path / "hostile.html"
    path.write_text(render(hostile, manifest), encoding="utf-8")
    return path


@pytest.fixture
def empty_file(tmp_path: Path, render: Callable[..., str]) -> Path:
    path = tmp_path / "empty.html"
    path.write_text(render({"bundle": {}}, {"name": "x"}), encoding="utf-8")
    return path


def test_the_page_asks_for_nothing_and_complains_about_nothing(page: Any, file: Path) -> None:
    page.open(file)
    assert page.requests == [file.as_uri()]
    assert page.complaints == []
    assert page.ask("document.title") == "efficientnet for cpu-x86_64-vnni: edgepack report"
    assert (
        page.ask("document.querySelectorAll('script, img, iframe, object, link[href^=h]').length")
        == 0
    )
    drawn = (
        "[...document.querySelectorAll('svg')].every(s => s.getBoundingClientRect().height > 50)"
    )
    assert page.ask("document.querySelectorAll('svg').length") == 5
    assert page.ask(drawn)
    # The policy let our own style in.
    assert page.ask("getComputedStyle(document.querySelector('.cards')).display") == "grid"


@pytest.mark.parametrize("width", [320, 360, 1100])
@pytest.mark.parametrize("which", ["file", "hostile_file", "empty_file"])
def test_nothing_is_wider_than_the_window(
    page: Any, request: pytest.FixtureRequest, which: str, width: int
) -> None:
    page.open(request.getfixturevalue(which), width=width)
    page.ask("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert wider(page) == []


@pytest.mark.parametrize(
    ("which", "width", "scheme"),
    [("short_file", 1100, "light"), ("short_file", 360, "dark"), ("hostile_file", 360, "light"),
     ("empty_file", 1100, "dark")],
)  # fmt: skip
def test_axe_finds_no_barrier(
    page: Any, request: pytest.FixtureRequest, axe: str, *, which: str, width: int, scheme: str
) -> None:
    page.open(request.getfixturevalue(which), width=width, scheme=scheme)
    page.ask("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert violations(page, axe) == []


CONTRASTS = """
(() => {
  const parse = c => c.match(/[\\d.]+/g).slice(0, 3).map(Number);
  const light = c => { const [r, g, b] = parse(c).map(v => { v /= 255;
    return v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; });
    return .2126 * r + .7152 * g + .0722 * b; };
  const ratio = (a, b) => { const [x, y] = [light(a), light(b)].sort((p, q) => q - p);
    return (x + .05) / (y + .05); };
  const page = getComputedStyle(document.body).backgroundColor;
  const found = {};
  const note = (key, value) => { found[key] = Math.min(found[key] ?? 99, value); };
  for (const text of document.querySelectorAll('svg text')) {
    const shape = text.classList.contains('number') ? text.previousElementSibling : null;
    const under = shape ? getComputedStyle(shape).fill : page;
    note('text ' + (text.getAttribute('class') ?? ''), ratio(getComputedStyle(text).fill, under));
  }
  for (const shape of document.querySelectorAll('svg .bar, svg .point.chosen'))
    note('fill ' + shape.getAttribute('class'), ratio(getComputedStyle(shape).fill, page));
  for (const line of document.querySelectorAll('svg .limit, svg .front, svg .point'))
    note('line ' + line.getAttribute('class'), ratio(getComputedStyle(line).stroke, page));
  return found;
})()
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_plots_have_contrast_in_both_schemes(page: Any, file: Path, scheme: str) -> None:
    page.open(file, scheme=scheme)
    found = page.ask(CONTRASTS)
    assert len(found) > 8
    # WCAG 2.2: 4.5 for text (1.4.3), 3 for what a plot is made of (1.4.11).
    weak = {k: v for k, v in found.items() if v < (4.5 if k.startswith("text") else 3)}
    assert weak == {}


def test_dark_is_another_page_than_light(page: Any, file: Path) -> None:
    colours = "(s => [s.backgroundColor, s.color])(getComputedStyle(document.body))"
    page.open(file)
    light = page.ask(colours)
    page.media(scheme="dark")
    dark = page.ask(colours)
    assert light[0] == "rgb(255, 255, 255)"
    assert light[0] != dark[0]
    assert light[1] != dark[1]
    page.media(scheme="dark", kind="print")
    assert page.ask(colours) == light


def test_every_control_is_reached_by_tab_and_shows_it(page: Any, file: Path) -> None:
    page.open(file)
    page.ask("window.seen = []; 1")
    controls = page.ask(
        "[...document.querySelectorAll('a[href], summary, [tabindex=\"0\"]')]"
        ".filter(e => e.checkVisibility()).length"
    )
    assert controls > 20
    look = """(() => { const e = document.activeElement, s = getComputedStyle(e);
        const box = e.getBoundingClientRect(); seen.push(e);
        return [e.tagName, s.outlineStyle, parseFloat(s.outlineWidth), box.left >= 0,
                box.bottom > 0 && box.top < innerHeight]; })()"""
    reached = []
    for _ in range(controls):
        page.press(*TAB)
        reached.append(page.ask(look))
    assert page.ask("new Set(seen).size") == controls
    assert {tuple(state[1:]) for state in reached} == {("solid", 3, True, True)}
    assert reached[0][0] == "A"
    assert {tag for tag, *_ in reached} == {"A", "DIV", "SUMMARY"}


def test_the_skip_link_leads_to_the_report_and_a_summary_opens(page: Any, file: Path) -> None:
    page.open(file)
    page.press(*TAB)
    page.press(*ENTER)
    assert page.ask("document.activeElement.id") == "main"
    page.ask("document.querySelector('summary').focus(); 1")
    assert page.ask("document.querySelector('details').open") is False
    page.press(*ENTER)
    assert page.ask("document.querySelector('details').open") is True


def test_headings_are_in_order_and_landmarks_are_named(page: Any, file: Path) -> None:
    page.open(file)
    levels = page.ask("[...document.querySelectorAll('h1,h2,h3,h4')].map(h => +h.tagName[1])")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    tree = page.call("Accessibility.getFullAXTree")["nodes"]
    roles = [(n["role"]["value"], n.get("name", {}).get("value", "")) for n in tree if "role" in n]
    for role in ("banner", "main", "contentinfo", "navigation"):
        assert [r for r, _ in roles].count(role) == 1, role
    regions = {name for role, name in roles if role == "region"}
    assert {"Candidates", "Sensitivity of the layers", "Make it again"} <= regions
    assert all(regions)
    pictures = [name for role, name in roles if role in ("image", "img")]
    assert len(pictures) == 5
    assert all(pictures)
    assert "table" in {role for role, _ in roles}


def test_hostile_names_stay_text(page: Any, hostile_file: Path) -> None:
    page.open(hostile_file)
    assert page.requests == [hostile_file.as_uri()]
    assert page.complaints == []
    assert page.ask("document.title") != "owned"
    assert page.ask("document.querySelectorAll('script, img, style').length") == 1
    assert page.ask("document.querySelectorAll('svg').length") == 5
    text = page.ask("document.body.innerText")
    assert "<img src=x onerror=" in text
    assert "{{ 7 * 7 }}" in text
    assert "\\u202e" in text
    assert not {"\u202e", "\u2066", "\x1b", "\u200b"} & set(text)
    assert page.ask("getComputedStyle(document.body).display") == "block"


def test_it_prints_with_every_table_open(page: Any, file: Path) -> None:
    page.open(file)
    heights = "[...document.querySelectorAll('details table')].map(t => t.offsetHeight)"
    page.media(kind="print")
    assert min(page.ask(heights)) > 100
    assert page.ask("getComputedStyle(document.querySelector('nav')).display") == "none"
    printed = page.call("Page.printToPDF", preferCSSPageSize=False)
    assert len(json.dumps(printed["data"])) > 20_000
