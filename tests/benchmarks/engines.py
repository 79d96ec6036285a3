"""What engines of TensorRT-RTX weigh and cost to build: fp32, fp16, int8 and int8 beside fp16.

    python tests/benchmarks engines
    python tests/benchmarks engines:resnet50,minilm

Every form goes the way of a build: our passes, the fitting to the parser, the builder in its child
process. The same graph then goes through the bare calls of `tensorrt_rtx` in a process that does
nothing else. No GPU is needed, and nothing here says how fast an engine runs.
"""

from __future__ import annotations

import importlib.util
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tests.benchmarks.figures import Row, print_table

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from packager.artifact import Artifact
    from packager.data import Samples
    from packager.model import Model

ROOT: Final = Path(__file__).resolve().parents[2]
ROWS: Final = (
    "resnet50", "resnet50-batches", "efficientnet", "efficientnet-batches", "minilm",
)  # fmt: skip
TARGET: Final = "rtx-ada"
_CALIBRATION: Final = 8
_BARE_RUNS: Final = 3
# What a plan of a form may weigh, as a share of the fp32 plan.
_REACHES: Final = {
    ("resnet50", "int8-static-nearest"): "0.35",
    ("efficientnet", "int8-static"): "0.65",
}
_MOST_SLOWER: Final = "3"
_MOST_MEMORY_MIB: Final = "1024"

_BARE: Final = """
import json, sys, time
import tensorrt_rtx as trt
path, profiles, capability = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
began = time.perf_counter()
builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
network = builder.create_network(0)
parser = trt.OnnxParser(network, trt.Logger(trt.Logger.ERROR))
assert parser.parse_from_file(path)
config = builder.create_builder_config()
config.num_compute_capabilities = 1
config.set_compute_capability(getattr(trt.ComputeCapability, capability), 0)
for shapes in profiles:
    profile = builder.create_optimization_profile()
    for name, bounds in shapes.items():
        profile.set_shape(name, bounds["min"], bounds["opt"], bounds["max"])
    config.add_optimization_profile(profile)
plan = builder.build_serialized_network(network, config)
print(json.dumps({"seconds": time.perf_counter() - began, "size": len(memoryview(plan))}))
"""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model that engines are built of.

    Attributes:
        title: For the table.
        recipe: Fields of its recipe.
        samples: What it is calibrated on.
        forms: Names of forms of `search.forms`, the float32 one first.
    """

    title: str
    recipe: Mapping[str, Any]
    samples: Callable[[], Sequence[dict[str, Any]]]
    forms: Sequence[str]


def main(rows: Sequence[str] = ROWS) -> None:
    """Build every form of the models named and print a table for each."""
    from packager.target import find_target

    target = find_target(TARGET)
    if target.tensorrt is None or importlib.util.find_spec(target.tensorrt.module) is None:
        print("engines: the extra `rtx` is not installed")
        return
    for name in rows:
        with tempfile.TemporaryDirectory() as folder:
            _measure(name, Path(folder))


def make_subject(name: str) -> Subject:
    """Return one of ROWS."""
    return _SUBJECTS[name]()


def build_engine(
    subject: Subject, model: Model, form: str, samples: Samples, folder: Path
) -> Artifact:
    """Return the artifact of one form with its engine, as a build makes both.

    Raises:
        RuntimeError: a pass was left out.
    """
    import onnx

    from packager.artifact import Candidate
    from packager.backends.onnxruntime import build
    from packager.console import Silent
    from packager.passes.clean_up import CleanUp
    from packager.passes.contract import PassContext, apply
    from packager.pipeline.cache import StageCache
    from packager.pipeline.engines import engine_stage
    from packager.recipe import Compression, Recipe
    from packager.search.forms import HALF_REST, table
    from packager.target import find_target

    target = find_target(TARGET)
    recipe = Recipe(**subject.recipe)
    folder.mkdir()
    context = PassContext(
        target=target, samples=samples, probes=[samples[0]], workdir=folder, reporter=Silent()
    )
    plain = form.removesuffix(HALF_REST)
    (chosen,) = (f for f in table(Compression(), tensorrt=True) if f.name == plain)
    chosen = chosen if plain == form else chosen.with_half_rest()
    steps = (CleanUp(), *chosen.passes, *chosen.last)
    made, reports = apply(steps, onnx.load(model.path), context)
    if any(report.status == "left out" for report in reports):
        raise RuntimeError(f"a pass was left out: {reports}")
    path = folder / "candidate.onnx"
    onnx.save(made, path)
    candidate = Candidate(
        name=form, path=path, size_bytes=path.stat().st_size, verdict="chosen", reason=""
    )
    artifact = build(model, [candidate], target=target, recipe=recipe, workdir=folder)
    return engine_stage(
        artifact, target=target, recipe=recipe, cache=StageCache(folder / "cache"),
        work=folder, reporter=Silent(),
    )  # fmt: skip


def import_subject(subject: Subject, folder: Path) -> tuple[Model, Samples]:
    """Return the imported model and what it is calibrated on."""
    from packager.console import Silent
    from packager.data import Samples
    from packager.importers.load import import_model
    from packager.recipe import Recipe

    work = folder / "import"
    work.mkdir()
    model = import_model(Recipe(**subject.recipe), workdir=work, reporter=Silent())
    given = subject.samples()
    samples = Samples(
        [partial(dict, sample) for sample in given],
        digest="benchmark", origin="benchmark", kind="npz",
    )  # fmt: skip
    return replace(model, name=str(subject.recipe["name"])), samples


def build_barely(artifact: Artifact) -> dict[str, float]:
    """Return `seconds` (the median) and `size` of the bare calls with the same graph."""
    assert artifact.parts is not None
    assert artifact.tensorrt is not None
    (capability,) = artifact.tensorrt["compute_capabilities"]
    command = [
        sys.executable, "-c", _BARE, str(artifact.parts.core),
        json.dumps(artifact.tensorrt["profiles"]), "SM" + capability.replace(".", ""),
    ]  # fmt: skip
    found = []
    for _ in range(_BARE_RUNS):
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
        found.append(json.loads(done.stdout))
    return {
        "seconds": statistics.median(run["seconds"] for run in found),
        "size": found[0]["size"],
    }


def _measure(name: str, folder: Path) -> None:
    subject = make_subject(name)
    model, samples = import_subject(subject, folder)
    rows: list[Row] = []
    first = 0.0
    for form in subject.forms:
        began = time.perf_counter()
        artifact = build_engine(subject, model, form, samples, folder / form.replace("+", "-"))
        wall = time.perf_counter() - began
        measured = artifact.facts["tensorrt"]["engine"]
        size = measured["size_bytes"]
        first = first or size
        bare = build_barely(artifact)
        reach = _REACHES.get((name, form), "")
        rows += [
            Row(f"{form}: graph", artifact.path.stat().st_size / 1e6, "MB"),
            Row(f"{form}: engine", size / 1e6, "MB"),
            Row(f"{form}: engine, share of float32's", size / first, "", reach),
            Row(f"{form}: engine as a bundle carries it", _packed(artifact) / 1e6, "MB"),
            Row(f"{form}: building it", measured["seconds"], "s"),
            Row(f"{form}: as a multiple of the bare calls'", measured["seconds"] / bare["seconds"],
                "×", _MOST_SLOWER),
            Row(f"{form}: memory at most", measured["peak_memory_mib"], "MiB", _MOST_MEMORY_MIB),
            Row(f"{form}: passes, fitting and engine together", wall, "s"),
        ]  # fmt: skip
    print_table(f"{subject.title}: engines of TensorRT-RTX for {TARGET}", rows)


def _packed(artifact: Artifact) -> int:
    """Return the engine's size as one xz stream: much of it is the text of kernels."""
    from packager.bundle.archive import compress_xz

    (engine,) = artifact.engines
    packed = io.BytesIO()
    compress_xz(engine.path, packed)
    return len(packed.getvalue())


def _resnet50(most_rows: int = 1) -> Subject:
    import numpy as np

    from packager.recipe import DimRange

    def samples() -> list[dict[str, Any]]:
        rng = np.random.default_rng(0)
        return [{"x": rng.standard_normal((1, 3, 224, 224), np.float32)} for _ in range(2)]

    return Subject(
        title=f"ResNet-50's shape, weights of a seed, 1 to {most_rows} rows",
        recipe={
            "model": f"{ROOT / 'tests/models/resnet50.py'}:make_model",
            "name": "resnet50",
            "dims": {"batch": DimRange(min=1, max=most_rows, opt=1)},
        },
        samples=samples,
        # Rounding to the data changes values, not sizes, and takes minutes on 25 million weights.
        forms=("fp32", "fp16", "int8-static-nearest", "int8-static-nearest+fp16"),
    )


def _efficientnet(most_rows: int = 1) -> Subject:
    from packager.recipe import DimRange
    from tests.benchmarks.efficientnet import EXAMPLE, INPUT, load_photos
    from tests.benchmarks.photos import fetch_photos

    def samples() -> list[dict[str, Any]]:
        photos = load_photos(fetch_photos().calibration)[:_CALIBRATION]
        return [{INPUT: photo[None]} for photo in photos]

    return Subject(
        title=f"EfficientNet-Lite0, 1 to {most_rows} rows",
        recipe={
            "model": f"{EXAMPLE}:make_model",
            "name": "efficientnet-lite0",
            "dims": {"batch": DimRange(min=1, max=most_rows, opt=1)},
        },
        samples=samples,
        forms=("fp32", "fp16", "int8-static", "int8-static+fp16"),
    )


def _minilm() -> Subject:
    from packager.recipe import DimRange
    from tests.benchmarks.minilm import MODULE, fetch_texts

    def samples() -> list[dict[str, Any]]:
        ids, mask = fetch_texts().calibration
        return [
            {"input_ids": ids[i : i + 1], "attention_mask": mask[i : i + 1]}
            for i in range(_CALIBRATION)
        ]

    return Subject(
        title="MiniLM, 1 to 8 texts of 1 to 128 tokens, two profiles",
        recipe={
            "model": f"{MODULE}:make_model",
            "name": "minilm",
            "shapes": dict.fromkeys(("input_ids", "attention_mask"), ("batch", "tokens")),
            "dims": {
                "batch": DimRange(min=1, max=8, opt=1),
                "tokens": DimRange(min=1, max=128, opt=32),
            },
        },
        samples=samples,
        forms=("fp32", "fp16", "int8-static", "int8-static+fp16"),
    )


_SUBJECTS: Final[dict[str, Callable[[], Subject]]] = {
    "resnet50": _resnet50, "resnet50-batches": partial(_resnet50, 32),
    "efficientnet": _efficientnet, "efficientnet-batches": partial(_efficientnet, 32),
    "minilm": _minilm,
}  # fmt: skip
