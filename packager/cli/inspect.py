"""`edgepack inspect`: what a model or a bundle is, before anything is built."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from packager.cli.options import as_json, cache_dir
from packager.console import Console, human_size, table
from packager.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator


@click.command("inspect")
@click.argument("what", metavar="MODEL|BUNDLE")
@click.option("--shape", "shapes", multiple=True, metavar="NAME=AXES", help="x=batch,3,224,224")
@click.option("--dim", "dims", multiple=True, metavar="NAME=RANGE", help="batch=1..32,opt=8")
@click.option("--layers", is_flag=True, help="of a bundle: every operator, not only their counts")
@cache_dir
@as_json
def command(
    what: str,
    shapes: tuple[str, ...],
    dims: tuple[str, ...],
    cache_dir: Path,
    *,
    layers: bool,
    as_json: bool,
) -> None:
    """Show what a model or a bundle is.

    For a model: signature, operators, its size in every precision, what each target says to it.

    For a bundle: what its engine depends on, where each operator runs, and in which precision.
    """
    console = Console(as_json=as_json)
    path = Path(what)
    if what.endswith(".edgepack") or (path / "manifest.json").is_file():
        from packager.bundle.local import check_bundle, read_manifest

        check_bundle(path, cache_dir=cache_dir)
        manifest = read_manifest(path)
        data, lines = manifest, [*_bundle_lines(manifest)]
        if layers or "tensorrt" in manifest:
            more, told = _inside(path, manifest, cache_dir=cache_dir, layers=layers)
            data, lines = {**manifest, "inspection": more}, [*lines, "", *told]
        console.data(data, lines)
        return
    if layers:
        raise UsageError("`--layers` tells of bundles", hint=f"edgepack inspect {what}")
    from packager.importers.inspect import inspect_model
    from packager.pipeline.plan import resolve_recipe
    from packager.workspace import workspace

    recipe = resolve_recipe(what, shapes=shapes, dims=dims)
    with workspace(cache_dir) as work:
        found = inspect_model(recipe, workdir=work, reporter=console)
    console.data(found.to_json(), found.to_text())


def _inside(
    bundle: Path, manifest: dict[str, Any], *, cache_dir: Path, layers: bool
) -> tuple[dict[str, Any], list[str]]:
    """Return what a bundle's graphs and engine are, as data and as lines."""
    from packager.backends.tensorrt.nodes import counts_by_precision, summary_rows, table_rows
    from packager.bundle.inspection import bundle_layers, engine_facts, layers_json
    from packager.workspace import workspace

    facts = engine_facts(manifest)
    with workspace(cache_dir) as work:
        rows = bundle_layers(bundle, manifest, workdir=work)
    lines = [*facts.to_text(), ""] if facts is not None else []
    counts = ", ".join(f"{count} {word}" for word, count in counts_by_precision(rows).items())
    lines += [f"{len(rows)} operators: {counts}", *table([*summary_rows(rows)])]
    if layers:
        lines += ["", *table([*table_rows(rows)])]
    return layers_json(rows, every=layers), lines


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
