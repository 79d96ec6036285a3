"""The page says what the record says, and where the record says nothing."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import re
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import pytest

from packager.artifact import Candidate, LayerChoice, Parity, Score
from packager.errors import InputOutputError, IntegrityError, UsageError
from packager.report.page import render_report, write_report
from packager.report.reading import Part

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

VOID = {"meta", "link", "br", "img", "input", "hr"}


class Tree(HTMLParser):
    """Checks that elements close, and gathers what the tests ask for."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.identities: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        self.identities += [value or "" for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def read(page: str) -> Tree:
    tree = Tree()
    tree.feed(page)
    tree.close()
    assert tree.open == []
    assert len(tree.identities) == len(set(tree.identities))
    return tree


def section(page: str, name: str) -> str:
    found = re.search(rf'<section id="{name}".*?</section>', page, re.DOTALL)
    assert found is not None
    return read(found[0]).text


def test_the_page_holds_what_the_record_tells(record: Any, render: Callable[..., str]) -> None:
    page = render(record)
    text = read(page).text
    for expected in (
        "18.7 MB → 5.1 MB", "9.4 ms → 4.65 ms", "2.02 × as fast", "0.742 → 0.739",
        "0.738 on data that chose nothing", "top1 may drop by 0.005", "3f" * 32,
        "2.02 × as fast and a quarter of the size inside the budget", "5 min 12 s",
    ):  # fmt: skip
        assert expected in text, expected
    assert "torch.export the exporter of the installed torch" in section(page, "plan")
    assert "full evaluations 9" in section(page, "candidates")
    for candidate in record["search"]["candidates"]:
        assert candidate["name"] in section(page, "candidates")
        assert candidate["reason"] in section(page, "candidates")
    assert "All 60 layers as a table" in section(page, "sensitivity")
    assert "3 of 60 layers" in section(page, "kept")
    assert "the budget is lost without it" in section(page, "kept")
    assert "photo-000.jpg changed 0.21 espresso 9.1" in section(page, "disagreements")
    assert "By kind of layer" in section(page, "sizes")
    assert "artifact 60" in section(page, "latency")
    assert "/features/stem/Relu_output_0 1.23 % 0 to 5.1 0 to 6" in section(page, "coverage")
    assert "comparison photos 298 photos of photos 149" in section(page, "data")
    assert "confirmation none" in section(page, "data")
    assert "onnxruntime 1.32.0" in section(page, "environment")
    assert "--metric top1 --max-drop 0.5%" in section(page, "command")
    assert "Not known" not in page


def test_the_same_record_makes_the_same_page(record: Any, render: Callable[..., str]) -> None:
    assert render(record) == render(json.loads(json.dumps(record)))


def test_the_page_runs_and_fetches_nothing(record: Any, render: Callable[..., str]) -> None:
    page = render(record)
    tree = read(page)
    assert not {"script", "img", "iframe", "form", "object", "embed", "base"} & set(tree.tags)
    links = [value for name, value in tree.attributes if name in ("href", "src")]
    assert all(link is not None and link.startswith(("#", "data:")) for link in links)
    assert not [name for name, _ in tree.attributes if name.startswith("on") or name == "style"]
    assert "url(" not in page
    assert "default-src &#39;none&#39;" in page or "default-src 'none'" in page


def test_a_record_of_nothing_makes_a_page_that_says_so(render: Callable[..., str]) -> None:
    page, unknown = render_report(Part({"bundle": {}}), Part({}))
    read(page)
    assert len(unknown) == 11
    assert page.count("Not known:") == 12


@pytest.mark.parametrize(
    "part",
    ["objective", "metric", "budget", "limits", "original", "candidates", "front", "evaluations",
     "took_s", "probes", "sensitivity", "coverage", "data", "disagreements", "sizes",
     "latencies_ms", "command"],
)  # fmt: skip
def test_no_part_of_the_search_is_needed(
    record: Any, render: Callable[..., str], part: str
) -> None:
    for value in (None, [], "text", 3, [[]], [{}], {"a": {}}):
        read(render({**record, "search": {**record["search"], part: value}}))
    del record["search"][part]
    read(render(record))


@pytest.mark.parametrize("part", ["bundle", "plan", "model", "facts", "host", "search", "began"])
def test_no_part_of_the_record_is_needed(
    record: Any, render: Callable[..., str], part: str
) -> None:
    record[part] = None
    read(render(record))


def test_hostile_texts_change_nothing_but_texts(
    hostile: Any, record: Any, render: Callable[..., str]
) -> None:
    tags = set(read(render(record)).tags)
    tree = read(render(hostile))
    assert set(tree.tags) <= tags
    assert "<img src=x onerror=" in tree.text
    assert "{{ 7 * 7 }}" in tree.text
    assert not {"\u202e", "\u2066", "\x00", "\x1b", "\u200b"} & set(tree.text)
    assert len(render(hostile)) < 3_000_000


def test_a_model_that_came_in_quantized_is_reported(
    record: Any, render: Callable[..., str]
) -> None:
    passed = Candidate(
        name="quantized", path=None, size_bytes=4_000_000, verdict="chosen",
        reason="the model is already quantized: it passes through untouched",
    )  # fmt: skip
    wire = dataclasses.asdict(passed)
    record["search"] = {"candidates": [wire], "front": [], "command": "edgepack build x.onnx"}
    record["bundle"] = {**record["bundle"], "candidates": [wire], "precision": "quantized"}
    text = read(render(record)).text
    assert "passes through untouched" in text
    assert "not timed on this machine" in text
    assert "there is nothing to plot" in text


def test_the_candidates_of_the_search_are_those_of_the_packager(
    record: Any, render: Callable[..., str]
) -> None:
    # Built from the packager's own classes, so that a renamed field shows here.
    layers = (
        LayerChoice(name="head", op_type="Gemm", weights=10, sqnr_db=12.5, precision="fp32",
                    reason="the worst of all"),
        LayerChoice(name="stem", op_type="Conv", weights=10, sqnr_db=None, precision="int8"),
    )  # fmt: skip
    candidate = Candidate(
        name="mixed", path=None, size_bytes=5_000_000, verdict="chosen", reason="best",
        parity=Parity(samples=9, max_abs=math.inf, cosine=0.9913, top1_agreement=0.97, exact=True),
        score=Score(metric="wer", value=0.061, original=0.058, drop=0.003, rows=900),
        on_front=True, layers=layers,
    )  # fmt: skip
    record["search"] = {
        "metric": "wer", "budget": {"value": 0.1, "relative": True},
        "original": {"size_bytes": 9_000_000, "p50_ms": None, "score": 0.058},
        "candidates": [dataclasses.asdict(candidate), dataclasses.asdict(
            dataclasses.replace(candidate, name="fp32", verdict="passed", layers=()))],
    }  # fmt: skip
    page = render(json.loads(json.dumps(record)))
    assert "0.058 → 0.061" in read(page).text
    assert "wer may drop by 10 % of the original's value" in read(page).text
    assert "head Gemm fp32 the worst of all" in section(page, "kept")
    assert "1 of 2 layers" in section(page, "kept")
    assert "0.9913 97 %" in section(page, "candidates")
    assert "loss-plot" in page
    assert "latency-plot" not in page


@pytest.fixture
def built(small_bundle: Any, tmp_path: Path, record: Any) -> Path:
    """Return a real bundle with a record of its own beside it."""
    path = tmp_path / small_bundle.path.name
    path.write_bytes(small_bundle.path.read_bytes())
    record["bundle"]["digest"] = small_bundle.digest
    path.with_suffix(".record.json").write_text(json.dumps(record), encoding="utf-8")
    return path


def write(bundle: Path, output: Path, **more: Any) -> dict[str, Any]:
    return write_report(
        bundle, output, **{"record": None, "cache_dir": output.parent / "cache", **more}
    )


def test_a_report_is_written_beside_whatever_else_there_is(built: Path, tmp_path: Path) -> None:
    output = tmp_path / "report.html"
    output.write_text("an older one")
    done = write(built, output)
    content = output.read_bytes()
    assert (done["size_bytes"], done["unknown"]) == (len(content), [])
    assert b"small" in content
    assert output.stat().st_mode & 0o777 == 0o644
    assert {p.name for p in tmp_path.iterdir()} == {
        built.name, built.with_suffix(".record.json").name, "report.html", "cache",
    }  # fmt: skip


def test_a_record_elsewhere_is_named(built: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "moved.json"
    built.with_suffix(".record.json").rename(elsewhere)
    with pytest.raises(InputOutputError, match=r"record\.json` does not exist"):
        write(built, tmp_path / "report.html")
    write(built, tmp_path / "report.html", record=elsewhere)


def test_the_record_of_another_bundle_makes_no_report(
    built: Path, tmp_path: Path, record: Any
) -> None:
    other = copy.deepcopy(record)
    other["bundle"]["digest"] = "00" * 32
    built.with_suffix(".record.json").write_text(json.dumps(other), encoding="utf-8")
    with pytest.raises(IntegrityError, match="the record of another bundle"):
        write(built, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_a_bundle_with_a_changed_byte_makes_no_report(built: Path, tmp_path: Path) -> None:
    content = bytearray(built.read_bytes())
    content[len(content) // 2] ^= 1
    built.write_bytes(content)
    with pytest.raises(IntegrityError):
        write(built, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_an_output_that_cannot_be_is_refused(built: Path, tmp_path: Path) -> None:
    with pytest.raises(InputOutputError, match="is a folder") as caught:
        write(built, tmp_path)
    assert caught.value.hint == f"-o {tmp_path / 'report.html'}"
    with pytest.raises(InputOutputError, match="is not a folder"):
        write(built, tmp_path / "none" / "report.html")
    with pytest.raises(UsageError, match="is the bundle itself"):
        write(built, built)
    with pytest.raises(UsageError, match="is the record itself"):
        write(built, built.with_suffix(".record.json"))


def test_an_unpacked_release_needs_its_record_named(tmp_path: Path) -> None:
    folder = tmp_path / "release"
    folder.mkdir()
    with pytest.raises(UsageError, match="no record lies beside its bundle") as caught:
        write(folder, tmp_path / "report.html")
    assert caught.value.hint == "name it with `--record FILE`"
