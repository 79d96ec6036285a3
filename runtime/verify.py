"""Checks a bundle or a release, and lets it prove on the golden samples what it computes."""

from __future__ import annotations

import os
from typing import Any, Callable, Dict

from .archive import read_manifest, verify_bundle
from .errors import IntegrityFault
from .release import Release, open_release, verify_release


def run_verify(
    path: str,
    self_test: bool,
    running: bool = False,
    told: Callable[[int, int], None] = lambda _done, _total: None,
) -> Dict[str, Any]:
    """Check every byte of a bundle or release and, where this device fits, run the samples.

    Args:
        path: The bundle file or release folder.
        self_test: Run the golden samples.
        running: This process was started from it.
        told: Is given how many golden samples are done, and of how many, before each.

    Raises:
        IntegrityFault: a byte differs, or a golden sample comes out otherwise than recorded.
        ModelFault: the model does not load or run.
        InputOutputFault: it cannot be read.
    """
    unpacked = os.path.isdir(path)
    manifest = verify_release(path, running) if unpacked else read_manifest(path)
    reasons = ["left out"]
    if self_test:
        from .detect import detect_device, reasons_against

        reasons = reasons_against(manifest.fields["target"], detect_device())
    if not unpacked:
        # The stored bytes are what the manifest binds. What they unpack to is checked when they
        # are unpacked for the samples, or here where this device cannot run them.
        verify_bundle(path, decompress=self_test and bool(reasons))
    fields = manifest.fields
    result: Dict[str, Any] = {
        "name": fields["name"],
        "version": fields["version"],
        "target": fields["target"]["name"],
        "digest": manifest.digest,
        "integrity": "verified, %d files" % len(manifest.files),
        "signature": "none",
        "self_test": "left out",
    }
    if self_test and reasons:
        result["self_test"] = "not run: " + "; ".join(reasons)
    elif self_test:
        with open_release(path, running) as release:
            result.update(run_samples(release, told))
    return result


def run_samples(
    release: Release, told: Callable[[int, int], None] = lambda _done, _total: None
) -> Dict[str, Any]:
    """Run the golden samples of a release whose files were verified.

    Args:
        release: Of files that were verified.
        told: Is given how many samples are done, and of how many, before each.

    Raises:
        IntegrityFault: one comes out otherwise than recorded.
        ModelFault: the model does not load or run.
    """
    from .engine import describe_choice, open_engine
    from .golden import self_test

    engine = open_engine(release)
    try:
        outcome = self_test(release, engine, getattr(engine, "golden_level", None), told)
        choice = describe_choice(engine)
    finally:
        engine.close()
    if not outcome.passed:
        raise IntegrityFault(
            "the self-test failed on this device: %s" % "; ".join(outcome.failures[:3]),
            "edgepack build again on, or for, a CPU like this one",
        )
    nearest = [o.artifact.cosine for sample in outcome.samples for o in sample.outputs]
    result = {
        "self_test": "passed, %d golden samples" % len(outcome.samples),
        "cpu": outcome.cpu,
        "golden_cpu": outcome.expected_cpu,
        "min_cosine": min(nearest, default=1.0),
        "engine": "%s %s, %s, %s"
        % (engine.name, engine.version, engine.provider, engine.precision),
    }
    if choice is not None:
        result["accelerator"] = choice
    return result
