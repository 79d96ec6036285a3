"""What a manifest says of serving, and which packages of the runtime that takes."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from packager.recipe import Recipe


def serving_fields(recipe: Recipe, *, batch_rows: int = 0) -> dict[str, Any]:
    """Return what the manifest says of serving: `server`, and what was asked for besides.

    Args:
        recipe: Its tables `server` and `privacy`; `sequence.sequence_fields` has the state's.
        batch_rows: The most rows of requests that are joined; 0: none are.
    """
    server = recipe.server
    fields: dict[str, Any] = {
        "server": {
            "max_json_kb": server.max_json_kb,
            "metrics": server.metrics,
            "openapi": server.openapi,
            "plain": server.plain,
            "grpc": server.grpc,
            "page": server.page,
            "workers": server.workers,
            "queue": server.queue,
            "deadline_s": server.deadline_s,
            "batching": {"rows": batch_rows, "wait_ms": server.batch_wait_ms}
            if batch_rows
            else None,
        }
    }
    if recipe.privacy is not None:
        fields["privacy"] = {
            **dataclasses.asdict(recipe.privacy),
            "mask": list(recipe.privacy.mask),
        }
    return fields


def runtime_packages(manifest: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the folders of `runtime/` that a bundle carries besides its top level."""
    asked = {
        "nvidia": bool(manifest.get("tensorrt")),
        "grpc": manifest["server"]["grpc"],
        "closed": True,
        "privacy": "privacy" in manifest,
    }
    return tuple(name for name, wanted in asked.items() if wanted)
