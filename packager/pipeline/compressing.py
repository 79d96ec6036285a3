"""The search as a stage: kept by the digest of its inputs, and going on after an interruption."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
from typing import TYPE_CHECKING, Any, Final

from packager.manifest import sha256_file
from packager.pipeline.cache import content_form, stage_key
from packager.pipeline.training import Trained, training_stage

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from packager.artifact import Artifact, Candidate
    from packager.console import Reporter
    from packager.data import Samples
    from packager.model import Model
    from packager.pipeline.cache import StageCache
    from packager.pipeline.stages import Data
    from packager.recipe import Recipe
    from packager.search.outcome import Outcome
    from packager.search.setting import SearchData
    from packager.target import Target

_RESULT: Final = "result.json"


def compress_stage(
    recipe: Recipe,
    target: Target,
    model: Model,
    data: Data,
    *,
    locked: Mapping[str, Any] | None,
    cache: StageCache,
    work: Path,
    reporter: Reporter,
) -> tuple[Artifact, Outcome]:
    """Search the candidates for a target, or take a finished search, and build the artifact.

    Args:
        recipe: Data sources apart, everything the search is told.
        target: What it is made for.
        model: The imported original.
        data: As clients send it.
        locked: What an earlier build chose.
        cache: Finished and interrupted searches.
        work: A folder that is gone afterwards.
        reporter: Is told what happens.
    """
    from packager.backends.onnxruntime import build
    from packager.search.choose import choose
    from packager.search.outcome import Outcome

    trained = training_stage(recipe, target, model, data, cache=cache, work=work, reporter=reporter)
    key = search_key(recipe, target, model, data, trained, locked=locked)
    folder = cache.find(key)
    if folder is not None:
        reporter.stage(f"compress for {target.name}: already done")
    else:
        with _search_folder(cache, key, work) as search:
            outcome = choose(
                model,
                target,
                _search_data(recipe, model, data, trained),
                recipe.compress,
                locked=locked,
                threads=0 if target.tensorrt is not None else target.threads,
                workdir=search,
                reporter=reporter,
                seed=recipe.seed,
            )
            (search / _RESULT).write_text(json.dumps(outcome.to_wire()), encoding="utf-8")
            _sweep(search, outcome.chosen)
            folder = cache.keep(key, search)
    wire = json.loads((folder / _RESULT).read_text(encoding="utf-8"))
    outcome = Outcome.from_wire(wire, folder)
    artifact_folder = work / "artifact"
    artifact_folder.mkdir()
    artifact = build(
        model, outcome.candidates, target=target, recipe=recipe, workdir=artifact_folder
    )
    if trained.facts:
        artifact = dataclasses.replace(
            artifact, facts={**artifact.facts, "training": trained.facts}
        )
    return _with_transforms(artifact, recipe, data.calibration, reporter), outcome


def search_key(
    recipe: Recipe,
    target: Target,
    model: Model,
    data: Data,
    trained: Trained,
    *,
    locked: Mapping[str, Any] | None,
) -> str:
    """Return the digest of everything that a search's outcome depends on."""
    from packager.search.fit import host_level

    return stage_key(
        "compress",
        model=" ".join(map(sha256_file, model.files)),
        signature=model.signature.to_json(),
        quantized=model.quantized,
        target=_what_counts(target, model),
        calibration=_digest(data.calibration),
        evaluation=_digest(data.evaluation),
        processing=content_form(
            [recipe.images, recipe.audio, recipe.columns, recipe.text, recipe.outputs, recipe.boxes]
        ),
        compress=content_form(recipe.compress),
        trained=trained.digest,
        seed=recipe.seed,
        locked=locked,
        host=host_level(),
    )


def _what_counts(target: Target, model: Model) -> dict[str, Any]:
    """Return what a search's outcome depends on of its target.

    Nothing is timed for a target with TensorRT, so its processor, its threads and the release of
    its engines do not count, and such targets may have one search in common; nor does an opset that
    nothing is raised to.
    """
    from packager.passes.float16_rest import LEAST_OPSET
    from packager.search.forms import has_half_rest

    if target.tensorrt is None:
        return {
            "arch": target.arch,
            "engine": target.engine,
            "precisions": target.precisions,
            "scheme": target.quantization,
            "threads": target.threads,
        }
    scheme = dataclasses.asdict(target.quantization)
    del scheme["why"]
    return {
        "engine": target.engine.name,
        "reads_opset": min(target.engine.max_opset, max(model.opset, LEAST_OPSET)),
        "half_rest": has_half_rest(target),
        "precisions": target.precisions,
        "scheme": scheme,
    }


def _search_data(recipe: Recipe, model: Model, data: Data, trained: Trained) -> SearchData:
    from packager.passes.inputs import made_up, prepare, served_signature
    from packager.passes.outputs import finisher
    from packager.search.setting import MADE_UP_SAMPLES, SearchData

    def prepared(samples: Samples | None) -> Samples | None:
        return prepare(samples, recipe, model.signature) if samples is not None else None

    return SearchData(
        calibration=prepared(data.calibration),
        evaluation=prepared(data.evaluation),
        finish=finisher(recipe, model.signature),
        outputs=served_signature(model.signature, recipe),
        alphabet=_alphabet(recipe),
        sources=trained.sources,
        made_up=made_up(model.signature, recipe, MADE_UP_SAMPLES, recipe.seed),
    )


def _alphabet(recipe: Recipe) -> tuple[str, ...]:
    """Return the names of the classes, the first that the recipe gives for an output or input."""
    files = [
        *(o.labels for o in recipe.outputs.values()),
        *(i.labels for i in recipe.images.values()),
    ]
    for file in filter(None, files):
        return tuple(file.read_text(encoding="utf-8").splitlines())
    return ()


def _digest(samples: Samples | None) -> str | None:
    return samples.digest if samples is not None else None


@contextlib.contextmanager
def _search_folder(cache: StageCache, key: str, work: Path) -> Iterator[Path]:
    """Give the folder where this very search may have been interrupted before.

    Where another process is at the same search, the folder is one of our own.
    """
    folder = cache.unfinished(key)
    held = folder.with_suffix(".lock")
    with held.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Who finished in between took the file away: it holds nobody off any more.
            alone = os.path.samestat(os.fstat(lock.fileno()), held.stat())
        except OSError:
            alone = False
        if not alone:
            folder = work / "search"
        folder.mkdir(exist_ok=True)
        yield folder
        if alone:
            held.unlink(missing_ok=True)


def _sweep(folder: Path, chosen: Candidate) -> None:
    """Remove what only the search needed: other candidates, ranges, roundings, the journal."""
    for path in folder.iterdir():
        if path.is_file() and path != chosen.path and path.name != _RESULT:
            path.unlink()


def _with_transforms(
    artifact: Artifact, recipe: Recipe, samples: Samples | None, reporter: Reporter
) -> Artifact:
    """Compare the compiled pre-processing with the training transform where both can be had."""
    from packager.passes.inputs import check_transforms

    signature = artifact.model.signature
    found = check_transforms(recipe, samples, signature) if samples is not None else {}
    for name, parity in found.items():
        reporter.note(
            f"`{name}`: the compiled pre-processing is within {parity['max_abs']:.4g} of the "
            f"training transform on {parity['samples']} samples"
        )
    return dataclasses.replace(artifact, facts={**artifact.facts, "transform_parity": found})
