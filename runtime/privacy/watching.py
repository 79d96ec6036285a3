"""Sets up what a release may keep of its requests, and tells it in the metrics."""

from __future__ import annotations

import math
import os
from typing import Any, Dict, Mapping, Optional, Tuple

from ..logs import log
from ..npz import read_npz
from .capture import Capture, Chooser
from .drift import Drift, Key
from .folder import Folder, state_directory
from .keys import read_key


class Watch:
    """What is kept while one release is served.

    Args:
        release: Has `.folder`, `.manifest` with `privacy`, `.digest`.
        inference: Whose requests are observed; its engine says what it is.
        options: `.capture_dir`, `.capture_key`.
        metrics: Told what is kept.

    Raises:
        UsageFault: requests are to be kept, and there is no key or no folder for them.
        InputOutputFault: key or folder cannot be used.
        TargetMismatch: this system cannot encrypt.
    """

    def __init__(self, release: Any, inference: Any, options: Any, metrics: Any) -> None:
        wanted: Mapping[str, Any] = release.manifest["privacy"]
        masked, share = wanted["mask"], float(wanted["capture"])
        self.drift: Optional[Drift] = None
        self.capture: Optional[Capture] = None
        if wanted["drift"]:
            self.drift = Drift(masked, lambda: golden_ranges(release))
            inference.observers.append(self.drift.observe)
        # statistics alone need no key: without one they are shown and not written
        if share > 0 or (self.drift is not None and options.capture_key):
            key = read_key(options.capture_key)
            folder = Folder(options.capture_dir or state_directory())
            engine = inference.engine

            def describe() -> Dict[str, str]:
                return {
                    "engine": "%s %s %s" % (engine.name, engine.version, engine.provider),
                    "precision": engine.precision,
                    "model": release.digest,
                }

            self.capture = Capture(
                folder,
                key,
                chooser=Chooser(share) if share > 0 else None,
                masked=masked,
                keep_s=float(wanted["keep_s"]),
                describe=describe,
                also=(lambda _: []) if self.drift is None else self.drift.records,
                tell=_tell,
            )
            if share > 0:
                inference.observers.append(self.capture.observe)
            self.capture.start()
        metrics.sources.append(self.show)

    def close(self) -> None:
        """Write what is waiting."""
        if self.capture is not None:
            self.capture.close()

    def show(self, page: Any) -> None:
        """Add to the metrics; single requests are not to be read from them."""
        if self.capture is not None:
            _show_capture(page, self.capture)
        if self.drift is not None:
            if self.capture is None:
                self.drift.gather()
            _show_drift(page, self.drift)


def golden_ranges(release: Any) -> Dict[Key, Tuple[float, float]]:
    """Return the lowest and highest value of each tensor in the golden samples."""
    signature = release.manifest["model"]["signature"]
    found: Dict[Key, Tuple[float, float]] = {}
    for number in range(release.manifest["golden"]["samples"]):
        for role, part, letter in (("input", "inputs", "i"), ("output", "artifact", "o")):
            path = os.path.join(release.folder, "golden", "%03d.%s.npz" % (number, part))
            arrays = read_npz(path)
            for index, spec in enumerate(signature[role + "s"]):
                tensor = arrays.get("%s%d" % (letter, index))
                if tensor is None or tensor.dtype == "string":
                    continue
                values = [float(value) for value in tensor.to_flat() if math.isfinite(value)]
                if values:
                    low, high = found.get((role, spec["name"]), (math.inf, -math.inf))
                    found[role, spec["name"]] = (min(low, *values), max(high, *values))
    return found


def _show_capture(page: Any, capture: Capture) -> None:
    page.single("edgepack_captured_total", "counter", "Requests kept.", capture.kept)
    name = "edgepack_capture_dropped_total"
    page.family(name, "counter", "Requests that were to be kept and could not be.")
    for reason, count in capture.dropped.items():
        page.sample(name, {"reason": reason}, count)
    page.single("edgepack_capture_bytes", "gauge", "What kept requests take.", capture.stored_bytes)
    page.single(
        "edgepack_capture_stopped", "gauge", "1 while none is kept.", int(bool(capture.stopped))
    )


def _show_drift(page: Any, drift: Drift) -> None:
    requests, tensors = drift.snapshot()
    page.single(
        "edgepack_drift_requests", "counter", "Requests in the statistics, in blocks.", requests
    )
    for name, meaning, place in (
        ("edgepack_drift_elements", "Elements counted.", 0),
        ("edgepack_drift_mean", "Their mean.", 1),
        ("edgepack_drift_stddev", "Their standard deviation.", 2),
    ):
        page.family(name, "gauge", meaning)
        for (role, tensor), values in sorted(tensors.items()):
            page.sample(name, {"role": role, "tensor": tensor}, values[place])


def _tell(sentence: str) -> None:
    log.event("capture", "warning", state=sentence)
