"""Measures a bundle in its own runtime, or a model in this host's engine."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from packager.bundle.device import run_runtime
from packager.bundle.local import check_bundle
from packager.console import Silent
from packager.data import synthetic
from packager.errors import ModelUnsupported
from packager.importers.load import import_model
from packager.process import python_argv, run
from packager.recipe import Recipe

if TYPE_CHECKING:
    from pathlib import Path

_STARTUP_S = 120.0


def bench_bundle(
    bundle: Path, *, seconds: float, threads: int | None, cache_dir: Path
) -> dict[str, Any]:
    """Return latency (ms), throughput (1/s), memory (MB) and cold start (s) of a bundle.

    Raises:
        IntegrityError: the bundle does not verify.
        TargetError: it is for another machine.
    """
    check_bundle(bundle, cache_dir=cache_dir)
    arguments = ["bench", "--json", "--seconds", str(seconds)]
    if threads is not None:
        arguments += ["--threads", str(threads)]
    done = run_runtime(
        arguments, bundle=bundle, cache_dir=cache_dir, timeout_s=_STARTUP_S + 10 * seconds
    )
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def bench_model(model: Path, *, seconds: float, threads: int, cache_dir: Path) -> dict[str, Any]:
    """Return latency, throughput and memory of an ONNX file in this host's ONNX Runtime.

    The inputs are synthetic, at the `opt` sizes of the signature.

    Raises:
        ModelUnsupported: the file cannot be imported or run.
    """
    import numpy as np

    from packager.workspace import workspace

    with workspace(cache_dir) as work:
        imported = import_model(
            Recipe(model=str(model), name="bench"), workdir=work, reporter=Silent()
        )
        feeds = work / "feeds.npz"
        sample = synthetic(imported.signature, 1, 0)[0]
        np.savez(feeds, *[sample[spec.name] for spec in imported.signature.inputs])
        done = run(
            python_argv(
                "packager.host.bench_child", imported.path, feeds, str(seconds), str(threads)
            ),
            timeout_s=_STARTUP_S + 10 * seconds,
            error=ModelUnsupported,
        )
    result: dict[str, Any] = json.loads(done.stdout)
    return result
