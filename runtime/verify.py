"""Checks a bundle or a release, and lets it prove on the golden samples what it computes."""

from __future__ import annotations

import os
from typing import Any, Dict

from .archive import verify_bundle
from .errors import IntegrityFault
from .release import open_release, verify_release


def run_verify(path: str, self_test: bool) -> Dict[str, Any]:
    """Check every byte of a bundle or release and, where this device fits, run the samples.

    Raises:
        IntegrityFault: a byte differs, or a golden sample comes out otherwise than recorded.
        ModelFault: the model does not load or run.
        InputOutputFault: it cannot be read.
    """
    manifest = verify_release(path) if os.path.isdir(path) else verify_bundle(path)
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
    if self_test:
        result.update(_run_samples(path, fields))
    return result


def _run_samples(path: str, fields: Dict[str, Any]) -> Dict[str, Any]:
    from .detect import detect_device, reasons_against

    reasons = reasons_against(fields["target"], detect_device())
    if reasons:
        return {"self_test": "not run: " + "; ".join(reasons)}
    from .engine import open_engine
    from .golden import self_test

    with open_release(path) as release:
        engine = open_engine(release)
        try:
            outcome = self_test(release, engine)
        finally:
            engine.close()
        if not outcome.passed:
            raise IntegrityFault(
                "the self-test failed on this device: %s" % "; ".join(outcome.failures[:3]),
                "edgepack build again on, or for, a CPU like this one",
            )
        return {
            "self_test": "passed, %d golden samples" % len(outcome.samples),
            "cpu": outcome.cpu,
            "golden_cpu": outcome.expected_cpu,
            "engine": "%s %s, %s, %s"
            % (engine.name, engine.version, engine.provider, engine.precision),
        }
