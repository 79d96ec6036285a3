"""Carries out a plan: import, compress, build and bundle, one target after another."""

from __future__ import annotations

import dataclasses
import os
import platform
import shutil
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from packager.bundle.privacy import check_mask
from packager.bundle.sequence import check_state
from packager.errors import BudgetMissed, IntegrityError
from packager.pipeline import stages
from packager.pipeline.batching import batching_stage
from packager.pipeline.cache import StageCache, tool_versions
from packager.pipeline.compressing import compress_stage
from packager.pipeline.engines import (
    engine_from_device,
    engine_stage,
    look_at_device,
    vendor_stage,
    why_no_engine_here,
)
from packager.workspace import workspace

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from packager.artifact import Artifact
    from packager.bundle.assemble import Bundle
    from packager.bundle.image_library import CarriedImageLibrary
    from packager.console import Reporter
    from packager.model import Model
    from packager.pipeline.plan import Plan
    from packager.search.outcome import Outcome
    from packager.target import Target


@dataclass(frozen=True, kw_only=True)
class Built:
    """A finished bundle.

    Attributes:
        digest: SHA-256 of its manifest: the bundle's identity.
        original_bytes: Size of the imported model as ONNX.
        parts: Bytes by kind of content, as stored.
        checks: What was verified about it, where, and what could not be.
    """

    target: Target
    path: Path
    digest: str
    size_bytes: int
    original_bytes: int
    parts: dict[str, int]
    artifact: Artifact
    checks: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return what `build --json` prints for this bundle."""
        return {
            "target": self.target.name,
            "path": str(self.path),
            "digest": self.digest,
            "size_bytes": self.size_bytes,
            "original_bytes": self.original_bytes,
            "parts": self.parts,
            "precision": self.artifact.precision,
            "scheme": self.artifact.scheme,
            "candidates": [candidate_json(c) for c in self.artifact.candidates],
            "checks": self.checks,
        }


def run_plan(plan: Plan, *, reporter: Reporter) -> tuple[Built, ...]:
    """Build every bundle of the plan.

    A bundle appears in the output folder whole, verified and self-tested, or not at all.

    Raises:
        EdgepackError: of the class that fits; nothing half-written is left.
    """
    cache = StageCache(plan.cache_dir)
    with workspace(plan.cache_dir) as work:
        look_at_device(plan, work=work, reporter=reporter)
        model = stages.import_stage(plan.recipe, cache=cache, work=work, reporter=reporter)
        check_mask(plan.recipe, model.signature)
        if plan.recipe.sequences is not None:  # long before the bundle is put together
            check_state(plan.recipe.sequences, model.path, model.signature)
        data = stages.Data.load(plan.recipe, model, reporter=reporter)
        built = []
        for target in plan.targets:
            folder = work / target.name
            folder.mkdir()
            built.append(
                _build_one(plan, target, model, data, cache=cache, work=folder, reporter=reporter)
            )
    return tuple(built)


def _build_one(
    plan: Plan,
    target: Target,
    model: Model,
    data: stages.Data,
    *,
    cache: StageCache,
    work: Path,
    reporter: Reporter,
) -> Built:
    from packager.bundle.assemble import assemble
    from packager.bundle.library import fetch_library
    from packager.bundle.lock import read_lock

    began = time.time()
    recipe = plan.recipe
    inputs = stages.input_digests(recipe, model, data)
    locked: Mapping[str, Any] | None = None
    if plan.lock_file is not None:
        lock = read_lock(plan.lock_file)
        lock.check(target=target.name, inputs=inputs)
        for changed in lock.changed_tools(tool_versions()):
            reporter.note(f"other tools than the lock's, so the bytes may differ: {changed}")
        locked = lock.choices
    artifact, outcome = compress_stage(
        recipe, target, model, data, locked=locked, cache=cache, work=work, reporter=reporter
    )  # fmt: skip
    artifact = engine_stage(
        artifact, target=target, recipe=recipe, cache=cache, work=work, reporter=reporter,
        ahead=plan.engine_on is None, carries_vendor=plan.vendor_libraries,
    )  # fmt: skip
    batching = batching_stage(
        artifact, recipe=recipe, target=target, locked=locked, reporter=reporter
    )
    artifact = dataclasses.replace(
        artifact, facts={**artifact.facts, "batching": dataclasses.asdict(batching)}
    )
    reporter.stage(f"bundle for {target.name}")
    golden = stages.golden_stage(recipe, artifact, work=work, reporter=reporter)
    library = fetch_library(
        target.engine.library, cache=plan.cache_dir, wheelhouse=plan.wheelhouse, reporter=reporter
    )
    vendor = vendor_stage(plan, target, reporter=reporter)
    images = _image_libraries(plan, target, artifact, locked, reporter=reporter)
    kinds = {item.wanted.kind: f"{item.wanted.name} {item.wanted.version}" for item in images}
    artifact = dataclasses.replace(artifact, facts={**artifact.facts, "image_bodies": kinds})

    def bundled(folder: str) -> Bundle:
        (work / folder).mkdir()
        return assemble(
            artifact,
            target=target,
            recipe=recipe,
            golden=golden,
            library=library,
            calibration=data.calibration,
            sequence=plan.sequence,
            image_libraries=images,
            vendor=vendor,
            batch_rows=batching.rows,
            out_dir=work / folder,
        )

    bundle = bundled("bundle")
    if plan.engine_on is not None:
        artifact = engine_from_device(
            artifact, plan.engine_on, bundle.path, target=target, work=work, reporter=reporter
        )
        bundle = bundled("bundle-with-engine")
    reporter.stage(f"check {bundle.path.name}")
    checks = check_bundle(bundle.path, target, cache_dir=work / "cache", reporter=reporter)
    path = plan.bundle_path(target)
    built = Built(
        target=target,
        path=path,
        digest=bundle.digest,
        size_bytes=bundle.size_bytes,
        original_bytes=model.size_bytes,
        parts=dict(bundle.parts),
        artifact=artifact,
        checks=checks,
    )
    _publish(plan, built, outcome, bundle.path, inputs=inputs, began=began)
    return built


def _image_libraries(
    plan: Plan,
    target: Target,
    artifact: Artifact,
    locked: Mapping[str, Any] | None,
    *,
    reporter: Reporter,
) -> tuple[CarriedImageLibrary, ...]:
    """Return what decodes photos on the device, for a model that takes them.

    What a locked build had, this one has to have.
    """
    from packager.bundle.bodies import takes_photos
    from packager.bundle.image_library import fetch_image_libraries

    wanted = plan.recipe.server.image_bodies
    if wanted is False or not takes_photos(plan.recipe, artifact.signature):
        return ()
    return fetch_image_libraries(
        target, cache=plan.cache_dir, wheelhouse=plan.wheelhouse, reporter=reporter,
        must=wanted is True or bool((locked or {}).get("image_bodies")),
    )  # fmt: skip


def check_bundle(
    path: Path, target: Target, *, cache_dir: Path, reporter: Reporter
) -> dict[str, Any]:
    """Verify the finished file and run its golden samples wherever this machine can.

    Raises:
        IntegrityError: the bundle does not verify.
        BudgetMissed: it computes something else than it did in the search.
    """
    from packager.bundle.device import detect_device, reasons_against, verify_here
    from packager.bundle.emulated import samples_under
    from packager.bundle.local import verify

    against = reasons_against(target, detect_device())
    checks: dict[str, Any] = {}
    try:
        if against:
            result, _ = verify(path, self_test=False, cache_dir=cache_dir)
        else:
            result = verify_here(path, cache_dir=cache_dir, reporter=reporter)
    except IntegrityError as fault:
        raise BudgetMissed(f"the bundle for {target.name} fails its own check: {fault}") from fault
    checks["integrity"] = "verified"
    if against:
        checks["self-test"] = "not run here: " + "; ".join(against)
        reporter.note(f"{target.name} is not this machine: the device's self-test confirms it")
        return checks
    checks["self-test"] = f"passed here ({result['cpu']})"
    engine = why_no_engine_here(target)
    if engine:
        checks["engine"] = f"not run here: {engine}"
        reporter.note(f"the self-test ran on the CPU; the engine was not run here: {engine}")
    release = cache_dir / "edgepack" / "releases" / str(result["digest"])
    for cpu in target.emulators:
        reporter.stage(f"check under an emulated {cpu}")
        emulated = samples_under(
            release, cpu, arch=target.arch, cache_dir=cache_dir, reporter=reporter
        )
        if emulated is None:
            checks[f"emulated {cpu}"] = "not run: qemu-user is not installed"
            reporter.note(f"not checked under an emulated {cpu}: install qemu-user")
        else:
            nearest = emulated["min_cosine"]
            checks[f"emulated {cpu}"] = f"passed ({emulated['cpu']}), cosine ≥ {nearest:.6f}"
    return checks


def _publish(
    plan: Plan,
    built: Built,
    outcome: Outcome,
    staged: Path,
    *,
    inputs: dict[str, str],
    began: float,
) -> None:
    from packager.bundle.lock import write_lock, write_record

    lock = staged.with_suffix(".lock.json")
    record = staged.with_suffix(".record.json")
    artifact = built.artifact
    write_lock(
        lock,
        bundle_sha256=built.digest,
        target=built.target.name,
        inputs=inputs,
        tools=tool_versions(),
        choices={
            **outcome.lock,
            "exporter": artifact.model.provenance.exporter,
            "batch_rows": artifact.facts["batching"]["rows"],
            "image_bodies": sorted(artifact.facts["image_bodies"]),
        },
    )
    write_record(
        record,
        {
            "bundle": built.to_json(),
            "plan": plan.to_json()["targets"][built.target.name],
            **measured(artifact, outcome, plan.command),
            **times(began),
        },
    )
    move_together((record, lock, staged), plan.output)


def measured(artifact: Artifact, outcome: Outcome, command: str) -> dict[str, Any]:
    """Return what a record tells of a model, its search and this machine."""
    return {
        "model": {
            "signature": artifact.model.signature.to_json(),
            "provenance": dataclasses.asdict(artifact.model.provenance),
        },
        "search": {**outcome.to_record(), "command": command},
        "facts": artifact.facts,
        "host": {
            "platform": platform.platform(),
            "cores": os.cpu_count(),
            "tools": tool_versions(),
        },
    }


def times(began: float) -> dict[str, Any]:
    """Return when something began and what it took until now."""
    return {
        "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(began)),
        "took_s": round(time.time() - began, 3),
    }


def move_together(files: Sequence[Path], folder: Path) -> None:
    """Move files into a folder, all or none; the last one appears last.

    They may come from another file system, so each is copied beside its place before any is
    renamed.
    """
    existed = folder.is_dir()
    parts = [folder / f".{file.name}.part" for file in files]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, part in zip(files, parts, strict=True):
            shutil.copyfile(file, part)
            with part.open("rb") as stream:
                os.fsync(stream.fileno())
        for file, part in zip(files, parts, strict=True):
            part.replace(folder / file.name)
    except BaseException:  # Ctrl-C too leaves no half-written file
        for part in parts:
            part.unlink(missing_ok=True)
        if not existed and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
        raise


def candidate_json(candidate: Any) -> dict[str, Any]:
    """Return a candidate without its path, which is nobody else's business."""
    wire = dataclasses.asdict(candidate)
    wire.pop("path")
    return wire
