"""`edgepack inspect`: what a model or a bundle is, before anything is built."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from packager.cli.options import as_json, cache_dir
from packager.console import Console, human_size, table

if TYPE_CHECKING:
    from collections.abc import Iterator


@click.command("inspect")
@click.argument("what", metavar="MODEL|BUNDLE")
@click.option("--shape", "shapes", multiple=True, metavar="NAME=AXES", help="x=batch,3,224,224")
@click.option("--dim", "dims", multiple=True, metavar="NAME=RANGE", help="batch=1..32,opt=8")
@cache_dir
@as_json
def command(
    what: str, shapes: tuple[str, ...], dims: tuple[str, ...], cache_dir: Path, *, as_json: bool
) -> None:
    """Show what a model or a bundle is.

    For a model: signature, operators, its size in every precision, what each target says to it.
    """
    console = Console(as_json=as_json)
    path = Path(what)
    if what.endswith(".edgepack") or (path / "manifest.json").is_file():
        from packager.bundle.local import check_bundle, read_manifest

        check_bundle(path, cache_dir=cache_dir)
        manifest = read_manifest(path)
        console.data(manifest, _bundle_lines(manifest))
        return
    from packager.importers.inspect import inspect_model
    from packager.pipeline.plan import resolve_recipe
    from packager.workspace import workspace

    recipe = resolve_recipe(what, shapes=shapes, dims=dims)
    with workspace(cache_dir) as work:
        found = inspect_model(recipe, workdir=work, reporter=console)
    console.data(found.to_json(), found.to_text())


def _bundle_lines(manifest: dict[str, Any]) -> Iterator[str]:
    target, engine, model = manifest["target"], manifest["engine"], manifest["model"]
    yield f"{manifest['name']} {manifest['version']} (sequence {manifest['sequence']})"
    needs = f"{target['arch']}, {target['libc']}, CPython {target['python']}"
    yield f"target: {target['name']}, {needs}"
    precision = f"{engine['precision']} {engine['scheme']}".rstrip()
    yield f"engine: {engine['name']} {engine['version']}, {precision}"
    yield f"model: {model['source']}, imported by {model['exporter']}"
    calibration = model.get("calibration")
    if calibration is not None:
        yield f"calibration: {calibration['kind']}, {calibration['samples']} samples"
    for kind in ("inputs", "outputs"):
        for spec in model["signature"][kind]:
            yield f"{kind[:-1]}: {spec['name']} {spec['dtype']} {json.dumps(spec['shape'])}"
    golden = manifest["golden"]
    yield f"golden samples: {golden['samples']}, {golden['origin']}"
    yield ""
    rows = [("file", "stored", "unpacked")]
    for file in manifest["files"]:
        stored = file.get("stored_size", file["size"])
        rows.append((file["path"], human_size(stored), human_size(file["size"])))
    yield from table(rows)
