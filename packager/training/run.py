"""Trains the variants of a model in a limited child process and hands them on."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from packager import errors, process
from packager.errors import EdgepackError, ModelUnsupported, UsageError
from packager.importers.blame import frame_in_text
from packager.importers.load import child_argv, parse_source, require_torch
from packager.importers.request import ERROR_FILE, SCRATCH_FOLDER, Imported, ImportLimits
from packager.importers.request import MODEL_FILE as ONNX_FILE
from packager.importers.request import RESULT_FILE as IMPORTED_FILE
from packager.target import find_target
from packager.training.wire import (
    HANG_FILE,
    PROGRESS_FILE,
    REQUEST_FILE,
    RESULT_FILE,
    SAMPLES_FOLDER,
    TrainingRequest,
    Variant,
    hook_file,
    variant_names,
)

if TYPE_CHECKING:
    from pathlib import Path

    from packager.console import Reporter
    from packager.data import Samples
    from packager.importers.request import ImportRequest
    from packager.model import Model
    from packager.recipe import Recipe
    from packager.target import Quantization

_LOG_FILE: Final = "training.log"
_MOST_SAMPLES: Final = 64
_MOST_SAMPLE_BYTES: Final = 256 << 20
_CRASH_LINES: Final = 6


class _TimeoutError(EdgepackError):
    """The child reached its wall-clock limit."""


def train_variants(
    recipe: Recipe,
    model: Model,
    samples: Samples | None,
    *,
    workdir: Path,
    reporter: Reporter,
    quantization: Quantization | None = None,
) -> tuple[Variant, ...]:
    """Make what the recipe's `[train]` asks for; nothing where it asks for nothing.

    The user's code runs in a child process only. Every hook run may take `train.time_limit`;
    after that and a grace it is ended.

    Args:
        recipe: Names the model, the hook and what it is to train.
        model: What the same recipe was imported as.
        samples: Calibration data as the model itself takes it: what pruning weighs channels on
            and int8 ranges start from; None or empty for neither.
        workdir: An existing folder that gets a folder per variant, and `training.log`.
        reporter: Told what happens and how long it will take.
        quantization: What is simulated; None for the recipe's first target's.

    Raises:
        UsageError: settings that cannot be, or a model that is no factory of a torch module.
        ModelUnsupported: the hook fails, takes too long or breaks its contract; or the model
            cannot be pruned, or a trained form not exported.
        BackendMissing: torch or torch-pruning is needed and not installed.
    """
    names = variant_names(recipe.train)
    if not names:
        return ()
    workdir = workdir.resolve()
    request = _request(recipe, model, names, quantization)
    require_torch()
    (workdir / REQUEST_FILE).unlink(missing_ok=True)
    for name in (RESULT_FILE, ERROR_FILE, PROGRESS_FILE, HANG_FILE):
        (workdir / name).unlink(missing_ok=True)
    for name in names:
        shutil.rmtree(workdir / name, ignore_errors=True)
    _write_samples(samples, workdir / SAMPLES_FOLDER)
    request.write(workdir / REQUEST_FILE)
    limit = f", up to {request.time_limit_s:g} s each" if request.hook else ""
    reporter.stage(f"train {', '.join(f'`{name}`' for name in names)}{limit}")
    try:
        done = _run_child(request, workdir, reporter)
    finally:
        for folder in (SCRATCH_FOLDER, SAMPLES_FOLDER):
            shutil.rmtree(workdir / folder, ignore_errors=True)
    _raise_fault(request, workdir, done)
    found = json.loads((workdir / RESULT_FILE).read_text(encoding="utf-8"))
    return tuple(_variant(entry, model, workdir) for entry in found)


def _request(
    recipe: Recipe, model: Model, names: tuple[str, ...], quantization: Quantization | None
) -> TrainingRequest:
    training = recipe.train
    source = _factory(recipe, recipe.model)
    if quantization is None and recipe.targets:
        quantization = find_target(recipe.targets[0]).quantization
    hook = ""
    if training.function:
        file, function = hook_file(training.function)
        hook = f"{file}:{function}"
    return TrainingRequest(
        source=source,
        weights_sha256=model.provenance.source_sha256,
        variants=names,
        hook=hook,
        student=_factory(recipe, training.student) if training.student else None,
        scheme=scheme_of(quantization),
        prune=training.prune,
        distill=training.distill,
        time_limit_s=training.time_limit_s,
        seed=recipe.seed,
    )


def scheme_of(quantization: Quantization | None) -> dict[str, Any]:
    """Return what the simulation of a target's int8 needs; None for full-range U8S8."""
    if quantization is None:
        return {}
    if quantization.weight != "int8":
        raise UsageError(
            f"`train.quantize` cannot simulate {quantization.in_words()}",
            accepted="targets with signed weights",
        )
    return {
        "weight_bits": 7 if quantization.reduce_range else 8,
        "per_channel": quantization.per_channel,
        "symmetric": quantization.activation == "int8",
    }


def _factory(recipe: Recipe, word: str) -> ImportRequest:
    source = parse_source(word)
    if source.kind != "torch":
        raise UsageError(
            f"`{source.source}` cannot be trained",
            accepted="a torch module from a factory, as `file.py:make_model`",
            hint="leave out `[train]`",
        )
    return replace(source, shapes=recipe.shapes, dims=recipe.dims, limits=ImportLimits())


def _write_samples(samples: Samples | None, folder: Path) -> None:
    import numpy as np

    folder.mkdir(exist_ok=True)
    room = _MOST_SAMPLE_BYTES
    for index, sample in enumerate(samples or ()):
        room -= sum(array.nbytes for array in sample.values())
        if index == _MOST_SAMPLES or (room < 0 and index):
            return
        np.savez(folder / f"{index:04}.npz", **sample)  # type: ignore[arg-type]


def _run_child(
    request: TrainingRequest, workdir: Path, reporter: Reporter
) -> process.Completed | None:
    """Run the child to its end; None where it had to be ended."""
    scratch = workdir / SCRATCH_FOLDER
    scratch.mkdir(exist_ok=True)
    environment = {
        **os.environ,
        "TMPDIR": str(scratch),
        "TORCHINDUCTOR_CACHE_DIR": str(scratch),
        "PYTHONIOENCODING": "utf-8",
    }
    runs = len(request.variants)
    wall_s = runs * (2 * request.time_limit_s + 60 + request.source.limits.torch_wall_s)
    relay = _Relay(workdir / PROGRESS_FILE, reporter)
    try:
        return process.run(
            child_argv("packager.training.child", workdir),
            timeout_s=wall_s,
            check=False,
            cwd=workdir if not request.source.folder else request.source.folder,  # type: ignore[arg-type]
            env=environment,
            log=workdir / _LOG_FILE,
            error=_TimeoutError,
            watch=relay,
        )
    except _TimeoutError:
        return None


class _Relay:
    """Hands on what the child tells, line by line."""

    def __init__(self, path: Path, reporter: Reporter) -> None:
        self._path = path
        self._reporter = reporter
        self._position = 0

    def __call__(self) -> None:
        if not self._path.is_file():
            return
        with self._path.open("rb") as stream:
            stream.seek(self._position)
            for line in stream:
                if not line.endswith(b"\n"):
                    break
                self._position += len(line)
                self._hand_on(json.loads(line))

    def _hand_on(self, wire: dict[str, Any]) -> None:
        if wire["kind"] == "progress":
            self._reporter.progress(wire["done"], wire["total"], wire["text"])
        elif wire["kind"] == "stage":
            self._reporter.stage(wire["text"])
        else:
            self._reporter.note(wire["text"])


def _raise_fault(request: TrainingRequest, workdir: Path, done: process.Completed | None) -> None:
    source = request.source.source
    error_file, hang = workdir / ERROR_FILE, workdir / HANG_FILE
    if error_file.is_file():
        wire = json.loads(error_file.read_text(encoding="utf-8"))
        error_file.unlink()
        kind: type[EdgepackError] = getattr(errors, wire["class"])
        raise kind(wire["message"], accepted=wire["accepted"], hint=wire["hint"])
    if hang.is_file() and (text := hang.read_text(encoding="utf-8")):
        # The innermost frame comes first there.
        where = frame_in_text("\n".join(reversed(text.splitlines())))
        raise ModelUnsupported(
            f"`{request.hook.rpartition('/')[2]}` went on after its {request.time_limit_s:g} s "
            "were over and had to be killed" + (f", at {where}" if where else ""),
            hint="end the loop when `session.time_left_s()` is 0, or raise `train.time_limit`",
        )
    if done is None:
        raise ModelUnsupported(f"training `{source}` took too long and was ended")
    if done.returncode != 0 or not (workdir / RESULT_FILE).is_file():
        lines = done.stderr.rstrip().splitlines()[-_CRASH_LINES:]
        last = "".join(f"\n  | {line}" for line in lines) or " without a word"
        how = f"signal {-done.returncode}" if done.returncode < 0 else f"exit {done.returncode}"
        raise ModelUnsupported(f"training `{source}` crashed ({how}){last}")


def _variant(entry: dict[str, Any], model: Model, workdir: Path) -> Variant:
    folder = workdir / entry["name"]
    found = Imported.read(folder / IMPORTED_FILE).as_model(folder / ONNX_FILE, name=model.name)
    if found.signature != model.signature:
        raise ModelUnsupported(
            f"the variant `{entry['name']}` has another signature than the original: "
            f"{', '.join(map(str, (*found.signature.inputs, *found.signature.outputs)))}"
        )
    return Variant(
        name=entry["name"], model=found, notes=tuple(entry["notes"]), facts=entry["facts"]
    )
