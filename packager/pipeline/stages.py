"""The stages of a build, each skipped when the digest of its inputs is cached."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from packager.errors import UsageError
from packager.manifest import canonical_json, sha256_of
from packager.pipeline.cache import content_form, stage_key

if TYPE_CHECKING:
    from packager.artifact import Artifact
    from packager.bundle.golden import Golden
    from packager.console import Reporter
    from packager.data import Samples
    from packager.model import Model
    from packager.pipeline.cache import StageCache
    from packager.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Data:
    """What a build knows of the world its model lives in; None for what the user did not give."""

    calibration: Samples | None
    evaluation: Samples | None

    @classmethod
    def load(cls, recipe: Recipe, model: Model, *, reporter: Reporter) -> Data:
        """Read and check all of it, before any long work."""
        from packager.data import overlap_note

        calibration = load_calibration(recipe, model, reporter=reporter)
        evaluation = load_evaluation(recipe, model, reporter=reporter)
        if calibration is not None and evaluation is not None:
            note = overlap_note(calibration, evaluation)
            if note is not None:
                reporter.note(note)
        return cls(calibration=calibration, evaluation=evaluation)


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
    _tell("calibration", samples, reporter)
    return samples


def load_evaluation(recipe: Recipe, model: Model, *, reporter: Reporter) -> Samples | None:
    """Read the evaluation data, labelled where its metric reads labels; None where none is named.

    Raises:
        UsageError: a metric that there is not, no labels, or a sample that does not fit.
    """
    from packager.checks.metrics import find_metric
    from packager.data import load_samples

    if recipe.evaluation is None:
        return None
    # Without a metric, labels are read where they are and nobody has to give any.
    word = recipe.compress.metric
    labelled = bool(word) and find_metric(word).needs_labels
    samples = load_samples(
        recipe.evaluation, model.signature, recipe, labelled=labelled, seed=recipe.seed
    )
    _tell("evaluation", samples, reporter)
    return samples


def _tell(what: str, samples: Samples, reporter: Reporter) -> None:
    reporter.note(f"{what}: {samples.origin}")
    for note in samples.notes:
        reporter.note(note)


def input_digests(recipe: Recipe, model: Model, data: Data) -> dict[str, str]:
    """Return the digest of everything a bundle is made from, by name; no folder enters."""
    # Their content has digests of its own; a training transform is only compared with.
    apart = ("model", "file", "calibration", "evaluation", "golden", "targets")
    wire = {f.name: getattr(recipe, f.name) for f in dataclasses.fields(recipe)}
    for name in apart:
        wire.pop(name)
    for kind in ("images", "audio"):
        wire[kind] = {
            name: dataclasses.replace(entry, transform=None) for name, entry in wire[kind].items()
        }
    digests = {
        "model": model.provenance.source_sha256,
        "recipe": sha256_of(canonical_json(content_form(wire))),
    }
    for name, samples in (("calibration", data.calibration), ("evaluation", data.evaluation)):
        if samples is not None:
            digests[name] = samples.digest
    return digests


def golden_stage(recipe: Recipe, artifact: Artifact, *, work: Path, reporter: Reporter) -> Golden:
    """Make the golden samples: synthetic ones, or those that the recipe names."""
    from packager.bundle.golden import make_golden
    from packager.data import load_samples
    from packager.passes.inputs import as_served
    from packager.recipe import DataSource

    samples = None
    if recipe.golden is not None:
        source = DataSource(word=recipe.golden.name, path=recipe.golden)
        samples = load_samples(source, artifact.model.signature, recipe, seed=recipe.seed)
        samples = as_served(samples, recipe, artifact.model.signature)
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
