"""The stage that decides whether a bundle's server joins requests that wait."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from packager.checks.batching import BatchChoice, batchable_rows, choose_batching
from packager.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from packager.artifact import Artifact
    from packager.console import Reporter
    from packager.recipe import Recipe
    from packager.target import Target


def batching_stage(
    artifact: Artifact,
    *,
    recipe: Recipe,
    target: Target,
    locked: Mapping[str, Any] | None,
    reporter: Reporter,
) -> BatchChoice:
    """Return whether the server batches: as the recipe says, the lock says, or a measurement.

    Raises:
        UsageError: batching is asked for by `on` and would change answers, or cannot be.
    """
    from packager.search.fit import is_this_machine

    server = recipe.server
    if server.batching == "off" or recipe.sequences is not None:
        reason = "the recipe says so" if server.batching == "off" else "sequences have their order"
        return BatchChoice(rows=0, reason=reason)
    if locked is not None and isinstance(locked.get("batch_rows"), int):
        return BatchChoice(rows=locked["batch_rows"], reason="the lock says so")
    forced = server.batching == "on"
    if artifact.tensorrt is not None or artifact.parts or not is_this_machine(target):
        choice = _unmeasured(artifact, recipe)
    else:
        threads = target.threads if server.threads is None else server.threads
        choice = choose_batching(
            artifact.path, artifact.signature, threads=threads, rows=server.batch_rows,
            forced=forced,
        )  # fmt: skip
    if forced and not choice.rows:
        raise UsageError(
            f"`server.batching` is `on`, but {choice.reason}", hint='set it to `"auto"` or `"off"`'
        )
    reporter.note(f"batching {'on' if choice.rows else 'off'}: {choice.reason}")
    return choice


def _unmeasured(artifact: Artifact, recipe: Recipe) -> BatchChoice:
    if recipe.server.batching != "on":
        return BatchChoice(rows=0, reason="not measured, as this is another machine")
    most = batchable_rows(artifact.signature)
    if not most:
        return BatchChoice(rows=0, reason="requests of this signature cannot be joined")
    rows = min(recipe.server.batch_rows or 16, most)
    return BatchChoice(rows=rows, reason="asked for, and not measured, as this is another machine")
