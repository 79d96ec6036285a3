"""`edgepack predict`: one offline inference with the bundle's own runtime."""

from __future__ import annotations

from pathlib import Path

import click

from packager.cli.options import as_json, bundle_argument, cache_dir


@click.command("predict")
@bundle_argument
@click.option(
    "-i", "--input", "inputs", multiple=True, required=True, type=click.Path(path_type=Path),
    help="A photo, .wav, .csv, .parquet, .txt or .npy file, or an .npz file with one array per "
    "input name; may be repeated.",
)  # fmt: skip
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write an .npz file.")
@click.option("--top", type=click.IntRange(min=1), default=5, show_default=True)
@cache_dir
@as_json
def command(
    bundle: Path, inputs: tuple[Path, ...], output: Path | None, top: int, cache_dir: Path,
    *, as_json: bool,
) -> None:  # fmt: skip
    """Ask a bundle once, offline."""
    import sys

    from packager.bundle.local import predict

    done = predict(bundle, inputs, output=output, top=top, cache_dir=cache_dir, as_json=as_json)
    sys.stdout.write(done)
