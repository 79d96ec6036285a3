"""What docs/guide/data.md shows can be read."""

from __future__ import annotations

import re
from pathlib import Path

from packager.recipe import read_recipe

GUIDE = Path(__file__).parents[4] / "docs" / "guide" / "data.md"


def test_every_recipe_of_the_guide_is_read(tmp_path: Path) -> None:
    recipes = re.findall(r"```toml\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(recipes) == 4
    for index, text in enumerate(recipes):
        path = tmp_path / f"{index}.toml"
        path.write_text(text)
        read = read_recipe(path)
        assert read["evaluation"].path.parent == tmp_path


def test_every_kind_of_source_is_in_the_guides_table() -> None:
    table = GUIDE.read_text(encoding="utf-8")
    source = (Path(__file__).parents[4] / "packager" / "data" / "_load.py").read_text()
    suffixes = set(re.findall(r"\.(?:npy|npz|csv|parquet|txt|wav|py)\b", source))
    assert suffixes
    assert all(f"`{suffix}`" in table or f"FILE{suffix}" in table for suffix in suffixes)
