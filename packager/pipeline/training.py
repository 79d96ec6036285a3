"""Training as a stage: the variants that the recipe's hook makes, kept by their digest."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from packager.manifest import sha256_file
from packager.pipeline.cache import stage_key

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from packager.console import Reporter
    from packager.model import Model
    from packager.pipeline.cache import StageCache
    from packager.pipeline.stages import Data
    from packager.recipe import Recipe
    from packager.target import Target

_RESULT: Final = "variants.json"


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What training made of a model.

    Attributes:
        sources: ONNX file by the variant's name.
        digest: Of them all; empty for none.
        facts: By the variant's name, for the record.
    """

    sources: Mapping[str, Path] = field(default_factory=dict)
    digest: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


def training_stage(
    recipe: Recipe,
    target: Target,
    model: Model,
    data: Data,
    *,
    cache: StageCache,
    work: Path,
    reporter: Reporter,
) -> Trained:
    """Train what the recipe's `[train]` asks for, or take what was trained before."""
    from packager.training.wire import variant_names

    if not variant_names(recipe.train):
        return Trained()
    from packager.passes.inputs import prepare
    from packager.training import train_variants, training_digest

    samples = data.calibration
    key = stage_key(
        "train",
        model=model.provenance.source_sha256,
        training=training_digest(recipe),
        scheme=target.quantization if recipe.train.quantize else None,
        samples=samples.digest if samples is not None else None,
    )
    folder = cache.find(key)
    if folder is not None:
        reporter.stage("train: already done")
    else:
        made = work / "training"
        made.mkdir()
        variants = train_variants(
            recipe, model,
            prepare(samples, recipe, model.signature) if samples is not None else None,
            workdir=made, reporter=reporter, quantization=target.quantization,
        )  # fmt: skip
        finished = work / "trained"
        finished.mkdir()
        for variant in variants:
            for note in variant.notes:
                reporter.note(f"{variant.name}: {note}")
            shutil.copyfile(variant.path, finished / f"{variant.name}.onnx")
        facts = {variant.name: dict(variant.facts) for variant in variants}
        (finished / _RESULT).write_text(json.dumps(facts), encoding="utf-8")
        folder = cache.keep(key, finished)
    facts = json.loads((folder / _RESULT).read_text(encoding="utf-8"))
    sources = {name: folder / f"{name}.onnx" for name in facts}
    digest = " ".join(f"{name}:{sha256_file(path)}" for name, path in sources.items())
    return Trained(sources=sources, digest=digest, facts=facts)
