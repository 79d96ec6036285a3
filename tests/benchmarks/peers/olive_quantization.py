"""Quantizes with Olive's pass around ONNX Runtime: a script for requirements-olive.txt.

    python olive_quantization.py REQUEST.json

The request names the model, `calibration` (arrays named INDEX/NAME), the `mode` (static or dynamic)
and a folder, in which `model.onnx` and `result.json` are written. Olive imports this file again for
the data, and takes the path of the calibration from the environment.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from olive.data.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Iterator

CALIBRATION = "OLIVE_CALIBRATION"


@Registry.register_dataset()
def benchmark_samples(**_: Any) -> list[tuple[dict[str, np.ndarray], int]]:
    """Return the samples, each with the label that Olive wants beside them."""
    samples: dict[int, dict[str, np.ndarray]] = {}
    with np.load(os.environ[CALIBRATION]) as file:
        for key in file.files:
            index, _, name = key.partition("/")
            samples.setdefault(int(index), {})[name] = file[key]
    return [(samples[index], 0) for index in sorted(samples)]


@Registry.register_dataloader()
def benchmark_loader(dataset: list[Any], **_: Any) -> Loader:
    """Return the samples as they are, batch axis included."""
    return Loader(dataset)


class Loader:
    """An iterable with a length, as torch's are."""

    def __init__(self, dataset: list[Any]) -> None:
        self.dataset = dataset

    def __iter__(self) -> Iterator[Any]:
        """Yield each sample with its label."""
        return iter(self.dataset)

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.dataset)


def main(request: dict[str, Any]) -> None:
    """Run the workflow with the pass's defaults, and keep the model."""
    import olive

    os.environ[CALIBRATION] = request["calibration"]
    folder = Path(request["folder"])
    data = {
        "name": "samples", "user_script": __file__,
        "load_dataset_config": {"type": "benchmark_samples"},
        "dataloader_config": {"type": "benchmark_loader"},
    }  # fmt: skip
    passes = {
        "static": {"type": "OnnxStaticQuantization", "data_config": "samples"},
        "dynamic": {"type": "OnnxDynamicQuantization"},
    }
    began = time.monotonic()
    olive.run({
        "input_model": {"type": "OnnxModel", "model_path": request["model"]},
        "systems": {
            "here": {
                "type": "LocalSystem",
                "accelerators": [
                    {"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}
                ],
            }
        },
        "host": "here", "target": "here",
        "data_configs": [data],
        "passes": {"quantize": passes[request["mode"]]},
        "cache_dir": str(folder / "cache"),
        "output_dir": str(folder / "out"),
    })  # fmt: skip
    took_s = time.monotonic() - began
    (made,) = sorted((folder / "out").rglob("*.onnx"))
    shutil.copyfile(made, folder / "model.onnx")
    (folder / "result.json").write_text(json.dumps({"took_s": took_s}), encoding="utf-8")


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
