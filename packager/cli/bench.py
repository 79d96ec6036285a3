"""`edgepack bench`: latency, throughput, memory and cold start on this machine."""

from __future__ import annotations

from pathlib import Path

import click

from packager.cli.options import as_json, cache_dir
from packager.console import Console


@click.command("bench")
@click.argument("what", metavar="BUNDLE|MODEL.onnx", type=click.Path(path_type=Path))
@click.option("--seconds", type=click.FloatRange(0.1, 600), default=3.0, show_default=True)
@click.option("--threads", type=click.IntRange(min=0), help="Intra-op threads; 0: one per core.")
@cache_dir
@as_json
def command(
    what: Path, seconds: float, threads: int | None, cache_dir: Path, *, as_json: bool
) -> None:
    """Measure latency, throughput and memory here.

    A bundle runs in its own runtime, an ONNX file in this host's engine.
    """
    from packager.host.bench import bench_bundle, bench_model

    if what.suffix == ".onnx":
        result = bench_model(what, seconds=seconds, threads=threads or 0, cache_dir=cache_dir)
    else:
        result = bench_bundle(what, seconds=seconds, threads=threads, cache_dir=cache_dir)
    Console(as_json=as_json).data(result, [f"{key}: {value}" for key, value in result.items()])
