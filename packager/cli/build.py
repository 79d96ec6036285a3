"""`edgepack build`: from a trained model to one bundle per target."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from packager.cli.options import as_json, cache_dir, compression, typed
from packager.console import Console, human_size, table

if TYPE_CHECKING:
    from packager.pipeline import Built

_FOLDER = click.Path(path_type=Path)


@click.command("build")
@click.argument("model", required=False)
@click.option("-t", "--target", "targets", multiple=True, help="A target; may be repeated.")
@click.option("-r", "--recipe", "recipe_file", type=_FOLDER, help="An edgepack.toml.")
@click.option("--name", help="The bundle's name; by default from the model.")
@click.option("--version", help="Dotted integers; 1.0.0 by default.")
@click.option("--sequence", type=click.IntRange(min=0), help="Decides what is a downgrade.")
@compression
@click.option("--shape", "shapes", multiple=True, metavar="NAME=AXES", help="x=batch,3,224,224")
@click.option("--dim", "dims", multiple=True, metavar="NAME=RANGE", help="batch=1..32,opt=8")
@click.option("--golden", type=_FOLDER, help="Real samples to carry for the self-test.")
@click.option("--lock", "lock_file", type=_FOLDER, help="Repeat the choices of this lock file.")
@click.option("--wheelhouse", type=_FOLDER, help="Take engine packages from here, not the network.")
@click.option(
    "--engine-on", metavar="ssh://USER@HOST", help="Build the TensorRT engine on such a device."
)
@click.option(
    "--vendor-libraries", is_flag=True, help="Carry NVIDIA's TensorRT-RTX along, under its licence."
)
@click.option("-o", "--output", type=_FOLDER, default=Path("dist"), show_default=True)
@click.option("--dry-run", is_flag=True, help="Print the plan and stop.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors and the result.")
@cache_dir
@as_json
def command(*, dry_run: bool, quiet: bool, as_json: bool, **options: Any) -> None:
    """Build one bundle per target.

    MODEL is FILE.py:FACTORY, PACKAGE.MODULE:FACTORY, FILE.pt2 or FILE.onnx.
    """
    from packager.pipeline import make_plan, run_plan

    console = Console(as_json=as_json, quiet=quiet)
    plan = make_plan(**options, command=typed())
    if dry_run:
        console.data(plan.to_json(), plan.to_text())
        return
    if plan.recipe.file is not None and options["recipe_file"] is None:
        console.note(f"recipe: {plan.recipe.file}")
    built = run_plan(plan, reporter=console)
    console.data([item.to_json() for item in built], _lines(built))


def _lines(built: tuple[Built, ...]) -> list[str]:
    from packager.search.table import as_table

    lines: list[str] = []
    for item in built:
        rows = as_table(item.artifact.candidates)
        lines += [item.target.name, *(f"  {line}" for line in rows), ""]
    files = [("bundle", "size", "sha-256 of the manifest")]
    files += [(str(b.path), human_size(b.size_bytes), b.digest) for b in built]
    return [*lines, *table(files)]
