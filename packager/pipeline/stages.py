"""The stages of a build, each skipped when the digest of its inputs is cached."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packager.errors import UsageError
from packager.manifest import sha256_file
from packager.model import Model, Provenance, Signature
from packager.pipeline.cache import stage_key

if TYPE_CHECKING:
    from packager.artifact import Artifact
    from packager.bundle.golden import Golden
    from packager.bundle.lock import Lock
    from packager.console import Reporter
    from packager.data import Samples
    from packager.pipeline.cache import StageCache
    from packager.recipe import Recipe
    from packager.target import Target
