"""Carries out a plan as far as the search: an ONNX file and its record per target."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from packager.bundle.lock import write_record
from packager.manifest import sha256_file
from packager.pipeline import stages
from packager.pipeline.cache import StageCache
from packager.pipeline.compressing import compress_stage
from packager.pipeline.run import candidate_json, measured, move_together, times
from packager.workspace import workspace

if TYPE_CHECKING:
    from pathlib import Path

    from packager.artifact import Artifact
    from packager.console import Reporter
    from packager.pipeline.plan import Plan
    from packager.search.outcome import Outcome
    from packager.target import Target


@dataclass(frozen=True, kw_only=True)
class Compressed:
    """A finished search.

    Attributes:
        path: The ONNX file, as the target's engine loads it.
        record: Everything measured, beside it.
    """

    target: Target
    path: Path
    record: Path
    artifact: Artifact
    outcome: Outcome

    def to_json(self) -> dict[str, Any]:
        """Return what `compress --json` prints for this target."""
        return {
            "target": self.target.name,
            "path": str(self.path),
            "record": str(self.record),
            "sha256": sha256_file(self.path),
            "size_bytes": self.path.stat().st_size,
            "precision": self.artifact.precision,
            "scheme": self.artifact.scheme,
            "evaluations": self.outcome.record.get("evaluations", 0),
            "candidates": [candidate_json(c) for c in self.outcome.candidates],
        }


def run_search(plan: Plan, *, reporter: Reporter) -> tuple[Compressed, ...]:
    """Search every target of the plan and write each ONNX file with its record, or nothing.

    Raises:
        EdgepackError: of the class that fits; nothing half-written is left.
    """
    cache = StageCache(plan.cache_dir)
    with workspace(plan.cache_dir) as work:
        model = stages.import_stage(plan.recipe, cache=cache, work=work, reporter=reporter)
        data = stages.Data.load(plan.recipe, model, reporter=reporter)
        done = []
        for target in plan.targets:
            began = time.time()
            folder = work / target.name
            folder.mkdir()
            artifact, outcome = compress_stage(
                plan.recipe, target, model, data,
                locked=None, cache=cache, work=folder, reporter=reporter,
            )  # fmt: skip
            path = plan.bundle_path(target).with_suffix(".onnx")
            staged, record = folder / path.name, folder / f"{path.stem}.record.json"
            shutil.copyfile(artifact.path, staged)
            write_record(
                record,
                {
                    "plan": plan.to_json()["targets"][target.name],
                    "onnx": {"sha256": sha256_file(staged), "size_bytes": staged.stat().st_size},
                    **measured(artifact, outcome, plan.command),
                    **times(began),
                },
            )
            move_together((record, staged), plan.output)
            done.append(
                Compressed(
                    target=target, path=path, record=path.parent / record.name,
                    artifact=artifact, outcome=outcome,
                )
            )  # fmt: skip
    return tuple(done)
