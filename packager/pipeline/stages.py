"""The stages of a build, each skipped when the digest of its inputs is cached."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

from packager.artifact import Candidate, Latency, Parity
from packager.errors import UsageError
from packager.manifest import canonical_json, sha256_file, sha256_of
from packager.pipeline.cache import stage_key, wire_form

if TYPE_CHECKING:
    from packager.artifact import Artifact
    from packager.bundle.golden import Golden
    from packager.console import Reporter
    from packager.data import Samples
    from packager.model import Model
    from packager.pipeline.cache import StageCache
    from packager.recipe import Recipe
    from packager.target import Target

_RESULT = "result.json"


def import_stage(recipe: Recipe, *, cache: StageCache, work: Path, reporter: Reporter) -> Model:
    """Import the model, or take the finished import of the very same source.

    A factory runs every time: only then are its weights known.
    """
    from packager.importers.load import import_model, source_digest
    from packager.importers.request import MODEL_FILE, RESULT_FILE, Imported

    digest = source_digest(recipe)
    key = None
    if digest is not None:
        source = Path(recipe.model).name
        key = stage_key(
            "import", source=source, digest=digest, shapes=recipe.shapes, dims=recipe.dims
        )
        found = cache.find(key)
        if found is not None:
            reporter.stage(f"import `{source}`: already done")
            imported = Imported.read(found / RESULT_FILE)
            return imported.as_model(found / MODEL_FILE, name=recipe.name)
    folder = work / "import"
    folder.mkdir()
    model = import_model(recipe, workdir=folder, reporter=reporter)
    if key is None:
        return model
    kept = cache.keep(key, folder)
    return dataclasses.replace(model, path=kept / MODEL_FILE)


def load_calibration(recipe: Recipe, model: Model, *, reporter: Reporter) -> Samples | None:
    """Read the calibration data, checked against the signature; None where none is named.

    Raises:
        UsageError: an image input that the model does not have, or a sample that does not fit.
    """
    from packager.data import load_samples

    names = [spec.name for spec in model.signature.inputs]
    for name in recipe.images:
        if name not in names:
            raise UsageError(
                f"the recipe's image input `{name}` is no input of the model",
                accepted=", ".join(f"`{n}`" for n in names),
            )
    if recipe.calibration is None:
        return None
    samples = load_samples(recipe.calibration, model.signature, recipe, seed=recipe.seed)
    reporter.note(f"calibration: {samples.origin}")
    for note in samples.notes:
        reporter.note(note)
    return samples


def input_digests(recipe: Recipe, model: Model, samples: Samples | None) -> dict[str, str]:
    """Return the digest of everything a bundle is made from, by name; no folder enters."""
    wire = dataclasses.asdict(recipe)
    for key in ("model", "file", "calibration", "evaluation", "golden", "targets"):
        wire.pop(key)
    for image in wire["images"].values():
        labels = image.pop("labels")
        image["labels_sha256"] = sha256_file(labels) if labels is not None else None
        image["transform"] = None
    digests = {
        "model": model.provenance.source_sha256,
        "recipe": sha256_of(canonical_json(wire_form(wire))),
    }
    if samples is not None:
        digests["calibration"] = samples.digest
    return digests


def compress_stage(
    recipe: Recipe,
    target: Target,
    model: Model,
    samples: Samples | None,
    *,
    locked: str | None,
    cache: StageCache,
    work: Path,
    reporter: Reporter,
) -> Artifact:
    """Search the candidates for a target, or take a finished search, and build the artifact."""
    from packager.backends.onnxruntime import build
    from packager.passes.inputs import prepare
    from packager.search.choose import choose
    from packager.search.judge import host_level

    key = stage_key(
        "compress",
        model=sha256_file(model.path),
        signature=model.signature.to_json(),
        quantized=model.quantized,
        arch=target.arch,
        engine=target.engine,
        precisions=target.precisions,
        scheme=target.quantization,
        threads=target.threads,
        samples=samples.digest if samples is not None else None,
        images={name: dataclasses.replace(i, labels=None) for name, i in recipe.images.items()},
        compress=recipe.compress,
        seed=recipe.seed,
        locked=locked,
        host=host_level(),
    )
    folder = cache.find(key)
    if folder is not None:
        reporter.stage(f"compress for {target.name}: already done")
    else:
        search = work / "search"
        search.mkdir()
        candidates = choose(
            model,
            target,
            prepare(samples, recipe, model.signature) if samples is not None else None,
            recipe.compress,
            locked=locked,
            threads=target.threads,
            workdir=search,
            reporter=reporter,
            seed=recipe.seed,
        )
        _write_candidates(search / _RESULT, candidates)
        folder = cache.keep(key, search)
    artifact_folder = work / "artifact"
    artifact_folder.mkdir()
    artifact = build(
        model,
        _read_candidates(folder / _RESULT),
        target=target,
        recipe=recipe,
        workdir=artifact_folder,
    )
    return _with_image_parity(artifact, recipe, samples, reporter)


def _with_image_parity(
    artifact: Artifact, recipe: Recipe, samples: Samples | None, reporter: Reporter
) -> Artifact:
    """Compare the compiled pre-processing with the training transform where both can be had."""
    from packager.passes.inputs import check_transforms

    found = check_transforms(recipe, samples) if samples is not None else {}
    for name, parity in found.items():
        reporter.note(
            f"`{name}`: the compiled pre-processing is within {parity['max_abs']:.4g} of the "
            f"training transform on {parity['photos']} photos"
        )
    return dataclasses.replace(artifact, facts={**artifact.facts, "image_parity": found})


def golden_stage(recipe: Recipe, artifact: Artifact, *, work: Path, reporter: Reporter) -> Golden:
    """Make the golden samples: synthetic ones, or those that the recipe names."""
    from packager.bundle.golden import make_golden
    from packager.data import load_samples
    from packager.recipe import DataSource

    samples = None
    if recipe.golden is not None:
        source = DataSource(word=recipe.golden.name, path=recipe.golden)
        samples = load_samples(source, artifact.model.signature, recipe, seed=recipe.seed)
        reporter.note(f"golden samples: {samples.origin}, carried in the bundle as they are")
    folder = work / "golden"
    folder.mkdir()
    return make_golden(
        artifact,
        samples=samples,
        seed=recipe.seed,
        min_cosine=recipe.compress.min_cosine,
        recipe=recipe,
        workdir=folder,
    )


def _write_candidates(path: Path, candidates: tuple[Candidate, ...]) -> None:
    wire = [dataclasses.asdict(candidate) for candidate in candidates]
    for entry in wire:
        # The folder moves into the cache: files are named relative to it.
        entry["path"] = str(entry["path"].relative_to(path.parent)) if entry["path"] else None
    path.write_text(json.dumps(wire), encoding="utf-8")


def _read_candidates(path: Path) -> tuple[Candidate, ...]:
    candidates = []
    for entry in json.loads(path.read_text(encoding="utf-8")):
        entry["path"] = path.parent / entry["path"] if entry["path"] else None
        entry["parity"] = Parity(**entry["parity"]) if entry["parity"] else None
        entry["latency"] = Latency(**entry["latency"]) if entry["latency"] else None
        candidates.append(Candidate(**entry))
    return tuple(candidates)
