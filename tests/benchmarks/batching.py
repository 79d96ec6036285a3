"""What joining requests that wait gains: answers per second with and without.

The MLP 64-2048-2048-10 is what batching is for; on the MLP 64-512-512-512-10 the build leaves it
off, and what it would have gained is told beside it. 64 keep-alive connections, one row of JSON a
request, one intra-op thread, in turns.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Final

import onnx

from tests.benchmarks.figures import Row, print_table
from tests.benchmarks.serving import (
    LOAD_S,
    ROOT,
    ROUNDS,
    Load,
    Subject,
    drive,
    free_port,
    json_load,
    start,
    stop,
)  # fmt: skip
from tests.models.mlp import make_mlp

SIZES: Final = {"large": (64, 2048, 2048, 10), "small": (64, 512, 512, 512, 10)}
CONNECTIONS: Final = 64


def main() -> None:
    """Print the figures of batching."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for size, sizes in SIZES.items():
            onnx.save(make_mlp(sizes), folder / f"{size}.onnx")
            decided = build(folder, size, "auto")
            subjects = {mode: build(folder, size, mode)[0] for mode in ("off", "on")}
            found: dict[str, list[float]] = {mode: [] for mode in subjects}
            for _ in range(ROUNDS):
                for mode, subject in subjects.items():
                    path = f"/v2/models/{size}-{mode}/infer"
                    load = replace(json_load(), path=path, connections=CONNECTIONS)
                    found[mode].append(rate(subject, load, folder))
            off, on = (statistics.median(found[mode]) for mode in ("off", "on"))
            layers = "-".join(map(str, sizes))
            rows += [
                Row(f"MLP {layers}, one by one", off, "answers/s"),
                Row(f"MLP {layers}, joined", on, "answers/s"),
                Row("gained", on / off, "x", "2" if size == "large" else "", at_least=True),
                Row("the build would join at most", decided[1], "rows"),
            ]
    print_table(f"batching, {CONNECTIONS} connections", rows)


def build(folder: Path, size: str, mode: str) -> tuple[Subject, int]:
    """Return a server of a model, and the most rows of a batch that its manifest says."""
    recipe = folder / f"{mode}.toml"
    recipe.write_text(f'[server]\nthreads = 1\nbatching = "{mode}"\n')
    name = f"{size}-{mode}"
    subprocess.run(
        [sys.executable, "-m", "packager", "build", folder / f"{size}.onnx", "-t", "cpu-x86_64",
         "--precision", "fp32", "--name", name, "-r", recipe, "-o", folder, "-q"],
        cwd=ROOT, check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    (bundle,) = folder.glob(f"{name}-1*.edgepack")
    release = folder / name
    subprocess.run([sys.executable, "-I", bundle, "unpack", release], check=True)
    batching = json.loads((release / "manifest.json").read_text())["server"]["batching"]
    argv = [sys.executable, "-I", str(release), "serve", "--port", "PORT"]
    return Subject(name, argv, folder), batching["rows"] if batching else 0


def rate(subject: Subject, load: Load, folder: Path) -> float:
    """Return the answers per second."""
    process, _ = start(subject, port := free_port(), load)
    try:
        drive(port, load, 1.0, folder)
        time.sleep(0.5)  # what the first clients have left behind is still worked on
        return drive(port, load, LOAD_S, folder) / LOAD_S
    finally:
        stop(process)
