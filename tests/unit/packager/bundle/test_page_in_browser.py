"""The page in a real browser, before live servers of real models: everyone can ask and read."""

from __future__ import annotations

import itertools
import json
import time
import wave
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.browser import axe, browser, page, violations, wider
from tests.unit.packager.bundle.small_servers import (
    PHOTO,
    colour_photos,
    colour_words,
    echo,
    loudness,
    save,
    served,
    several_types,
    table_rows,
    value,
)
from tests.unit.runtime.live_server import tensor

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ("axe", "browser", "page")  # fixtures
pytestmark = pytest.mark.browser

TAB, ENTER, SPACE, DOWN = ("Tab", 9), ("Enter", 13, "\r"), (" ", 32, " "), ("ArrowDown", 40)


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory, engine_library: Path) -> Iterator[str]:
    with several_types(tmp_path_factory.mktemp("several"), engine_library) as url:
        yield url


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory, engine_library: Path) -> Iterator[str]:
    with colour_photos(tmp_path_factory.mktemp("colours"), engine_library) as url:
        yield url


@pytest.fixture(scope="module")
def boxes(tmp_path_factory: pytest.TempPathFactory, engine_library: Path) -> Iterator[str]:
    """Serve a detector that always finds one box in its letterbox of 32 × 32."""
    folder = tmp_path_factory.mktemp("boxes")
    found = np.array([[4, 12, 28, 20]], np.float32)
    constants = [
        numpy_helper.from_array(array, f"c_{name}")
        for name, array in (
            ("boxes", found), ("scores", np.array([0.9], np.float32)),
            ("classes", np.array([1])), ("batch", np.array([0])),
        )
    ]  # fmt: skip
    kinds = {"boxes": (1, [1, 4]), "scores": (1, [1]), "classes": (7, [1]), "batch": (7, [1])}
    save(
        folder / "model.onnx",
        [
            *(helper.make_node("Identity", [f"c_{name}"], [name]) for name in kinds),
            helper.make_node("Shape", ["photo"], ["size"]),
        ],
        [value("photo", TensorProto.UINT8, ["n", "h", "w", 3])],
        [*(value(name, *kind) for name, kind in kinds.items()), value("size", 7, [4])],
        *constants,
    )
    (folder / "labels.txt").write_text("cat\ndog\n")
    some = {"name": None, "min": 0, "max": None, "opt": None}
    with served(
        folder, engine_library, inputs=[PHOTO],
        outputs=[
            tensor("boxes", "float32", some, 4), tensor("scores", "float32", some),
            tensor("classes", "int64", some), tensor("batch", "int64", some),
            tensor("size", "int64", 4),
        ],
        images={"photo": {"size": [32, 32], "letterbox": True}}, name="boxes",
        results=[{"kind": "boxes", "classes": "classes", "boxes": "boxes", "scores": "scores",
                  "batch": "batch", "labels": "labels.txt", "as": "labels"}],
    ) as url:  # fmt: skip
        yield url


def until(page: Any, expression: str) -> Any:
    """Return the value of an expression as soon as it is true."""
    for _ in range(200):
        found = page.ask(expression)
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError((expression, page.ask("document.body.innerText"), page.complaints))


def visit(page: Any, url: str, **options: Any) -> None:
    page.open(f"{url}/", **options)
    until(page, "document.getElementById('state').className")


def fill(page: Any, selector: str, text: str) -> None:
    page.ask(
        f"(e => {{ e.value = {json.dumps(text)};"
        " for (const kind of ['input', 'change']) e.dispatchEvent(new Event(kind)); })"
        f"(document.querySelector({json.dumps(selector)}))"
    )


def give_file(page: Any, path: Path) -> None:
    root = page.call("DOM.getDocument")["root"]["nodeId"]
    node = page.call("DOM.querySelector", nodeId=root, selector="input[type=file]")["nodeId"]
    page.call("DOM.setFileInputFiles", nodeId=node, files=[str(path)])


def said(page: Any) -> str:
    """Run the model; return what is said of the answer or of what went wrong."""
    page.ask("document.getElementById('send').click()")
    told = until(
        page,
        "['said', 'trouble'].map(i => document.getElementById(i).textContent)"
        ".find(text => text && !text.startsWith('Filled'))",
    )
    return str(told)


def photo_file(folder: Path, colour: tuple[int, int, int], size: tuple[int, int]) -> Path:
    from PIL import Image

    path = folder / "photo.png"
    Image.new("RGB", size, colour).save(path)
    return path


def test_the_page_asks_its_own_server_alone_and_breaks_no_policy(page: Any, several: str) -> None:
    visit(page, several)
    said(page)
    assert page.requests == [
        f"{several}{p}" for p in ("/", "/page.json", "/v2/models/several/infer")
    ]
    assert page.complaints == []
    assert page.ask("document.title") == "several"
    text = page.ask("document.body.innerText")
    for fact in ("Ready to answer", "1.2.0", "cpu-x86_64", "CPUExecutionProvider", "fp32"):
        assert fact in text
    assert page.ask("getComputedStyle(document.querySelector('.grid')).display") == "grid"


def test_a_form_of_the_signature_is_filled_and_answered(page: Any, several: str) -> None:
    visit(page, several)
    fill(page, "#fields input[type=number]", "2")  # the size `rows`, of both `a` and `b`
    assert page.ask("document.querySelectorAll('#fields input').length") == 1 + 6 + 6 + 1
    names = page.ask("[...document.querySelectorAll('#fields label')].map(l => l.innerText.trim())")
    assert names[0] == "rows"
    assert names[1:7] == [f"a[{row},{column}]" for row in (0, 1) for column in (0, 1, 2)]
    page.ask(
        "[...document.querySelectorAll('#fields input')].slice(1)"
        ".forEach((e, at) => { e.value = at === 12 ? 3 : at / 2; })"
    )
    assert "scaled, 6 values" in said(page)
    tables = "[...document.querySelectorAll('#answer table')].map(t => t.innerText)"
    scaled = page.ask(tables)[0]
    a, b = np.arange(6).reshape(2, 3) / 2, np.arange(6, 12).reshape(2, 3) / 2
    for number in ((a + b) * 3).flat:
        assert f"{number:g}" in scaled
    curl = page.ask("document.getElementById('curl').textContent")
    assert curl.startswith("curl -H 'Content-Type: application/json'")
    assert '{"name":"k","shape":[1],"datatype":"INT64","data":[3]}' in curl


def test_random_values_are_a_request_that_the_model_takes(page: Any, several: str) -> None:
    visit(page, several)
    page.ask("document.getElementById('random').click()")
    until(page, "document.getElementById('said').textContent")
    assert "values" in said(page)


def test_a_size_that_the_model_does_not_take_is_refused_before_it_is_sent(
    page: Any, several: str
) -> None:
    visit(page, several)
    fill(page, "#fields input[type=number]", "33")
    assert page.ask("document.querySelector('#fields input').validity.rangeOverflow")
    page.ask("document.getElementById('send').click()")
    assert page.ask("document.activeElement === document.querySelector('#fields input')")
    assert len(page.requests) == 2


def test_a_photo_is_uploaded_and_its_labels_are_shown(
    page: Any, colours: str, tmp_path: Path
) -> None:
    visit(page, colours)
    assert said(page) == "Choose a photo first."
    give_file(page, photo_file(tmp_path, (10, 250, 10), (90, 60)))
    until(page, "!document.querySelector('canvas').hidden")
    assert said(page).startswith("green, 1. Answered in ")
    labels = page.ask("[...document.querySelectorAll('.bars li bdi')].map(e => e.textContent)")
    assert labels[0] == "green"
    assert page.ask("document.querySelector('canvas').getAttribute('aria-label')") == (
        "photo.png, 90 × 60"
    )
    assert page.ask("parseFloat(document.querySelector('.bar > span').style.width)") == 100


def test_hostile_labels_stay_text(page: Any, colours: str, tmp_path: Path) -> None:
    visit(page, colours)
    give_file(page, photo_file(tmp_path, (250, 0, 0), (20, 20)))
    until(page, "!document.querySelector('canvas').hidden")
    assert "</script><img src=x" in said(page)
    assert page.ask("document.title") == "colours"
    assert page.ask("document.querySelectorAll('img, script').length") == 1
    text = page.ask("document.body.innerText")
    assert "\\u202ebad" in text
    assert "\u202e" not in text
    assert page.complaints == []


def test_a_photo_past_what_the_model_takes_is_shrunk_and_a_broken_one_is_named(
    page: Any, colours: str, tmp_path: Path
) -> None:
    visit(page, colours)
    give_file(page, photo_file(tmp_path, (0, 0, 240), (1100, 700)))
    until(page, "!document.querySelector('canvas').hidden")
    assert said(page).startswith("blue, 1")
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no photo")
    give_file(page, broken)
    until(page, "document.getElementById('trouble').textContent")
    assert "broken.png is not a photo" in page.ask("document.getElementById('trouble').innerText")
    assert page.ask("document.querySelector('canvas').hidden")


# where the bright lines lie, in pixels of the photo: left, right, top, bottom
YELLOW = """
(() => {
  const c = document.querySelector('canvas'), r = c.width / 320, xs = [], ys = [];
  const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
  for (let i = 0; i < d.length; i += 4) {
    const x = i / 4 %% c.width / r, y = Math.floor(i / 4 / c.width) / r;
    if (d[i] > 240 && d[i + 1] > 190 && d[i + 2] < 40 && %s) { xs.push(x); ys.push(y); }
  }
  const ends = a => [a.reduce((p, q) => Math.min(p, q)), a.reduce((p, q) => Math.max(p, q))];
  return [...ends(xs), ...ends(ys)];
})()
"""


def test_boxes_are_drawn_where_they_lie_on_the_photo(page: Any, boxes: str, tmp_path: Path) -> None:
    visit(page, boxes)
    # twice as wide as high: the letterbox of 32 × 32 holds it in rows 8 to 24
    give_file(page, photo_file(tmp_path, (0, 0, 200), (320, 160)))
    until(page, "!document.querySelector('canvas').hidden")
    assert said(page).startswith("1 found: dog first")
    # the label stands above the box, at its left end
    assert page.ask(YELLOW % "x > 150") == pytest.approx([160, 280, 40, 120], abs=12)
    assert page.ask(YELLOW % "y > 60") == pytest.approx([40, 280, 60, 120], abs=4)
    assert "dog" in page.ask("document.querySelector('#answer table').innerText")
    assert page.ask("document.querySelector('canvas').ariaLabel").endswith("with 1 box")


NUMBERS = {
    "float32": (1, [0.1, -2.5, 1e-30, 3e38]), "float64": (11, [0.1, -1e300, 0, 5e-324]),
    "float16": (10, [0.5, -65504, 6e-8, 1.0009765625]),
    "bfloat16": (16, [1.0078125, -3, 0.5, 1e30]),
    "int8": (3, [-128, 127, 0, 1]), "uint8": (2, [0, 255, 1, 2]),
    "int16": (5, [-32768, 32767, 0, 1]),
    "uint16": (4, [65535, 0, 1, 2]), "int32": (6, [-(2**31), 2**31 - 1, 0, 1]),
    "uint32": (12, [2**32 - 1, 0, 1, 2]), "int64": (7, [-(2**53) + 1, 2**53 - 1, 0, 1]),
    "uint64": (13, [2**53 - 1, 0, 1, 2]), "bool": (9, [True, False, True, True]),
}  # fmt: skip


@pytest.mark.parametrize("dtype", list(NUMBERS))
def test_many_values_go_in_binary_and_come_back_as_they_were(
    page: Any, engine_library: Path, tmp_path: Path, dtype: str
) -> None:
    kind, sample = NUMBERS[dtype]
    with echo(tmp_path, engine_library, dtype, kind, 600, 4) as url:
        visit(page, url)
        fill(page, "#fields textarea", json.dumps(sample * 600))
        page.ask(
            "window.kinds = []; const plain = fetch; window.fetch = (u, o) => {"
            " kinds.push(o.headers['Content-Type']); return plain(u, o); }"
        )
        assert "2400 values" in said(page)
        assert page.ask("kinds") == ["application/octet-stream"]
        got = page.ask(
            "[...document.querySelectorAll('#answer tbody tr')[29].cells].map(c => c.innerText)"
        )
    assert got[0] == "29"
    if dtype == "bool":
        assert got[1:] == ["true", "false", "true", "true"]
    else:
        seen = [float(text) for text in got[1:]]
        tolerance = {"float16": 0.01, "bfloat16": 0.004}.get(dtype, 1e-5)
        assert seen == pytest.approx([float(item) for item in sample], rel=tolerance, abs=1e-9)


def test_texts_go_and_come_as_texts(page: Any, engine_library: Path, tmp_path: Path) -> None:
    with echo(tmp_path, engine_library, "string", 8, 2) as url:
        visit(page, url)
        page.ask(
            "[...document.querySelectorAll('#fields input')]"
            ".forEach((e, at) => { e.value = ['grüß', '日本'][at]; })"
        )
        said(page)
        texts = page.ask("[...document.querySelectorAll('#answer .text')].map(e => e.innerText)")
        assert texts == ["grüß", "日本"]


def test_a_table_goes_as_the_file_it_is(page: Any, engine_library: Path, tmp_path: Path) -> None:
    with table_rows(tmp_path, engine_library) as url:
        visit(page, url)
        assert page.ask("document.querySelector('#fields textarea').value") == "width,height\n"
        (tmp_path / "rows.csv").write_text("height,width\n9,1\n2,5\n")
        give_file(page, tmp_path / "rows.csv")
        until(page, "document.querySelector('#fields textarea').value.startsWith('height')")
        assert said(page).startswith("high, ")
        assert page.requests[-1] == f"{url}/predict"
        best = "[...document.querySelectorAll('.bars')].map(e => e.querySelector('bdi').innerText)"
        assert page.ask(best) == ["high", "wide"]
        assert "'Content-Type: text/csv'" in page.ask("document.getElementById('curl').innerText")
        fill(page, "#fields textarea", "width\n1\n")
        page.ask("document.getElementById('send').click()")
        told = until(page, "document.getElementById('trouble').textContent")
        assert "the table has no column `height`" in told


def test_columns_are_fields_by_their_names_too(
    page: Any, engine_library: Path, tmp_path: Path
) -> None:
    with table_rows(tmp_path, engine_library) as url:
        visit(page, url)
        page.ask("document.querySelector('input[type=radio]').focus()")
        page.press(*DOWN)
        names = "[...document.querySelectorAll('#fields label')].map(l => l.innerText.trim())"
        assert page.ask(names) == ["batch", "width", "height"]
        page.ask("document.querySelectorAll('#fields input')[1].value = 3")
        assert said(page).startswith("wide, ")
        assert page.requests[-1] == f"{url}/v2/models/rows/infer"


def test_a_text_goes_as_a_text(page: Any, engine_library: Path, tmp_path: Path) -> None:
    with colour_words(tmp_path, engine_library) as url:
        visit(page, url)
        fill(page, "#fields textarea", "Blue and green? Blue!")
        assert said(page).startswith("blue, 2. ")
        assert page.requests[-1] == f"{url}/predict"


@pytest.mark.parametrize("name", ["tone.wav", "tone.sound"])
def test_a_sound_goes_as_it_is_or_as_the_browser_reads_it(
    page: Any, engine_library: Path, tmp_path: Path, name: str
) -> None:
    samples = (np.sin(np.arange(16_000) * 2 * np.pi * 200 / 16_000) * 16_384).astype("<i2")
    with wave.open(str(tmp_path / name), "wb") as file:
        file.setparams((2, 2, 16_000, 0, "NONE", ""))
        file.writeframes(np.stack([samples, samples], axis=1).tobytes())
    with loudness(tmp_path, engine_library) as url:
        visit(page, url)
        give_file(page, tmp_path / name)
        note = until(page, "document.querySelector('#fields p').textContent")
        assert note == f"{name}: 1.00 s at 8000 Hz"
        told = said(page)
        mean = float(told.removeprefix("y: ").split(". ")[0])
        assert mean == pytest.approx(0.5 * 2 / np.pi, rel=0.01)
        way = "predict" if name == "tone.wav" else "v2/models/loudness/infer"
        assert page.requests[-1] == f"{url}/{way}"


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("", "The input x is empty"),
        ("[1, 2", "The values of x are not JSON."),
        ("[1, 2]", "The input x takes 30 values at these sizes, and here are 2."),
        ('["a"]', 'takes values of the kind number, and "a" is none'),
        ("[1e999]", "null"),
    ],
)
def test_mistakes_are_told_in_words(
    page: Any, engine_library: Path, tmp_path: Path, typed: str, message: str
) -> None:
    with echo(tmp_path, engine_library, "float32", 1, 30) as url:
        visit(page, url)
        fill(page, "#fields textarea", typed)
        told = said(page)
        assert message in told or "30 values" in told
        assert page.ask("document.getElementById('trouble').getAttribute('role')") == "alert"
        fill(page, "#fields textarea", json.dumps([0.5] * 30))
        assert "30 values" in said(page)


def test_a_refusal_of_the_server_and_its_absence_are_told_in_words(
    page: Any, engine_library: Path, tmp_path: Path
) -> None:
    with echo(tmp_path, engine_library, "float32", 1, 30) as url:
        visit(page, url)
        page.ask("plain = fetch; window.fetch = (u, o) => plain(u.replace('small', 'other'), o); 1")
        page.ask("document.getElementById('random').click()")
        told = said(page)
        assert told.startswith("The server does not know this: there is no model `other` here")
    assert said(page) == "The server cannot be reached."


def test_it_is_used_with_the_keyboard_alone(page: Any, several: str) -> None:
    visit(page, several)
    look = """(() => { const e = document.activeElement, s = getComputedStyle(e);
        return [e.id || e.tagName, s.outlineStyle, e.getBoundingClientRect().left >= 0]; })()"""
    seen = []
    for _ in range(40):
        page.press(*TAB)
        seen.append(page.ask(look))
        if seen[-1][0] == "send":
            break
    assert seen[0][0] == "A"
    assert [name for name, *_ in seen].count("INPUT") == 1 + 3 + 3 + 1
    assert {(style, inside) for _, style, inside in seen} == {("solid", True)}
    page.press(*ENTER)
    until(page, "document.getElementById('said').textContent")
    page.press(*TAB)
    assert page.ask("document.activeElement.id") == "random"
    for _ in range(5):
        page.press(*TAB)
        if page.ask("document.activeElement.tagName") == "SUMMARY":
            break
    page.press(*SPACE)
    assert page.ask("document.querySelector('details').open")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 1100])
@pytest.mark.parametrize("which", ["several", "colours", "boxes"])
def test_axe_finds_no_barrier_and_nothing_is_wider_than_the_window(
    page: Any, request: pytest.FixtureRequest, axe: str, tmp_path: Path, *,
    which: str, width: int, scheme: str,
) -> None:  # fmt: skip
    visit(page, request.getfixturevalue(which), width=width, scheme=scheme)
    if which != "several":
        give_file(page, photo_file(tmp_path, (200, 100, 0), (300, 200)))
        until(page, "!document.querySelector('canvas').hidden")
    said(page)
    page.ask("document.querySelectorAll('details').forEach(d => d.open = true)")
    page.ask("document.getElementById('lock').hidden = false")
    assert wider(page) == []
    assert violations(page, axe) == []


def test_headings_are_in_order_and_what_changes_is_read_aloud(page: Any, several: str) -> None:
    visit(page, several)
    said(page)
    levels = page.ask(
        "[...document.querySelectorAll('h1,h2,h3')].filter(h => h.checkVisibility())"
        ".map(h => +h.tagName[1])"
    )
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    tree = page.call("Accessibility.getFullAXTree")["nodes"]
    roles = [(n["role"]["value"], n.get("name", {}).get("value", "")) for n in tree if "role" in n]
    assert {"banner", "main", "contentinfo"} <= {role for role, _ in roles}
    assert [role for role, _ in roles].count("status") == 2
    assert [role for role, _ in roles].count("alert") == 1
    fields = [name for role, name in roles if role in ("spinbutton", "textbox", "combobox")]
    assert len(fields) == 8
    assert all(fields)


def test_motion_is_left_out_where_a_person_asks_for_that(page: Any, colours: str) -> None:
    visit(page, colours)
    page.call(
        "Emulation.setEmulatedMedia",
        features=[{"name": "prefers-reduced-motion", "value": "reduce"}],
    )
    assert page.ask("getComputedStyle(document.querySelector('#try')).transitionDuration") == "0s"
    assert page.ask("matchMedia('(prefers-reduced-motion: reduce)').matches")
