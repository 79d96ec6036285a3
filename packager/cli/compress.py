"""`edgepack compress`: the search alone, from a trained model to an ONNX file and its record."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from packager.cli.options import as_json, cache_dir, compression, typed
from packager.console import Console, human_size, table

if TYPE_CHECKING:
    from packager.pipeline import Compressed

_FOLDER = click.Path(path_type=Path)


@click.command("compress")
@click.argument("model", required=False)
@click.option("-t", "--target", "targets", multiple=True, help="A target; may be repeated.")
@click.option("-r", "--recipe", "recipe_file", type=_FOLDER, help="An edgepack.toml.")
@click.option("--name", help="The file's name; by default from the model.")
@click.option("--version", help="Dotted integers; 1.0.0 by default.")
@compression
@click.option("--shape", "shapes", multiple=True, metavar="NAME=AXES", help="x=batch,3,224,224")
@click.option("--dim", "dims", multiple=True, metavar="NAME=RANGE", help="batch=1..32,opt=8")
@click.option("-o", "--output", type=_FOLDER, default=Path("dist"), show_default=True)
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors and the result.")
@cache_dir
@as_json
def command(*, quiet: bool, as_json: bool, **options: Any) -> None:
    """Find the smallest and fastest form of a model that keeps an accuracy budget.

    MODEL is FILE.py:FACTORY, PACKAGE.MODULE:FACTORY, FILE.pt2 or FILE.onnx. What comes out is an
    ONNX file per target, with a record of every candidate beside it.
    """
    from packager.pipeline import make_plan, run_search

    console = Console(as_json=as_json, quiet=quiet)
    plan = make_plan(**options, command=typed())
    if plan.recipe.file is not None and options["recipe_file"] is None:
        console.note(f"recipe: {plan.recipe.file}")
    done = run_search(plan, reporter=console)
    console.data([item.to_json() for item in done], _lines(done))


def _lines(done: tuple[Compressed, ...]) -> list[str]:
    from packager.search.table import as_table

    lines: list[str] = []
    for item in done:
        rows = as_table(item.outcome.candidates)
        lines += [item.target.name, *(f"  {line}" for line in rows), ""]
    files = [("file", "size", "precision")]
    files += [(str(d.path), human_size(d.path.stat().st_size), d.artifact.precision) for d in done]
    return [*lines, *table(files)]
