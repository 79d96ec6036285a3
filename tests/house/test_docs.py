"""What the documents say is so: links, commands, targets, and the worked example."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from packager.recipe import read_recipe

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = ROOT / "docs" / "examples"


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def commands_in(text: str) -> set[str]:
    return set(re.findall(r"^\| `edgepack ([a-z]+)", text, re.MULTILINE))


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_relative_link_leads_somewhere(document: Path):
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text(encoding="utf-8"))
    lost = [link for link in links if "://" not in link and not (document.parent / link).exists()]
    assert lost == []


def test_the_readme_lists_the_commands_there_are(edgepack):
    shown = edgepack("--help", check=True).stdout
    offered = set(re.findall(r"^  ([a-z]+)  ", shown[shown.index("Commands:") :], re.MULTILINE))
    assert commands_in(README) == offered


def test_the_readme_lists_the_targets_there_are():
    rows = [line.split("|")[1] for line in README.splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`([a-z0-9_-]+)`", row)}
    assert {path.stem for path in (ROOT / "targets").glob("*.toml")} <= named


def test_the_readme_shows_the_commands_behind_make():
    def words(text: str) -> set[tuple[str, ...]]:
        text = text.replace("$(BIN)", ".venv/bin").replace("$(PYTHON)", "python3.11")
        text = text.replace("$(PIP)", ".venv/bin/pip install -c constraints.txt").replace(
            "--editable", "-e"
        )
        lines = (line.strip() for line in text.splitlines())
        return {
            tuple(shlex.split(line)) for line in lines if line.startswith((".venv", "python3.11"))
        }

    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in ("demo", "test", ".venv/.torch", ".venv/.demo", ".venv/.test"):
        match = re.search(rf"^{re.escape(target)}:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
        assert match is not None, target
        wanted = words(re.sub(r"\ttouch .*", "", match[1]))
        assert wanted <= words(README), target


def test_ci_runs_the_tests_as_the_readme_says():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "-m pytest --numprocesses 2 --dist loadfile" in README
    assert "-m pytest --numprocesses 2 --dist loadfile" in script


def test_the_recipe_of_the_worked_example_is_read():
    image = read_recipe(EXAMPLES / "efficientnet_lite0.toml")["images"]["image"]
    assert (image.size, image.resize, image.interpolation) == ((224, 224), 256, "bicubic")
    assert image.labels == EXAMPLES / "imagenet_classes.txt"
    assert image.transform == f"{EXAMPLES / 'efficientnet_lite0.py'}:transform"


def test_the_thousand_class_names_differ():
    names = (EXAMPLES / "imagenet_classes.txt").read_text(encoding="utf-8").splitlines()
    assert len(names) == len({name.lower() for name in names}) == 1000
    assert all(name == name.strip() and name for name in names)
    assert (names[0], names[282], names[967]) == ("tench", "tiger cat", "espresso")
