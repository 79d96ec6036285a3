"""The page at `/` for people, and what it shows of the model."""

from __future__ import annotations

import os
import re
from typing import Any, Dict, List, Mapping, Optional, Tuple

from .dtypes import BY_NAME
from .errors import BadRequest, DeviceError
from .http1 import Answer
from .jsontext import dumps
from .results import read_lines, read_results
from .signature import Dimension, Signature, TensorSpec

_POLICY = re.compile(rb'<meta http-equiv="Content-Security-Policy" content="([ -!#-~]{1,2000})">')
_FIELDS = (
    b"Content-Type: text/html; charset=utf-8\r\n"
    b"Content-Security-Policy: %s; frame-ancestors 'none'\r\n"
    b"X-Frame-Options: DENY\r\n"
    b"Referrer-Policy: same-origin\r\n"
    b"Cross-Origin-Opener-Policy: same-origin\r\n"
    b"Cross-Origin-Resource-Policy: same-origin\r\n"
)


class Page:
    """What a browser is given.

    Args:
        release: Has `.folder`, `.manifest` and `.path`.
        signature: What clients see.
        limits: Has `.json_bytes` and `.binary_bytes`.
    """

    def __init__(self, release: Any, signature: Signature, limits: Any) -> None:
        self._release = release
        self._signature = signature
        self._limits = limits
        self._html: Optional[Answer] = None
        self._facts: Dict[str, Any] = {}

    def show(self) -> Answer:
        """Return the page, with the policy that it names itself.

        Raises:
            BadRequest: the release has none (404).
        """
        if self._html is None:
            path = os.path.join(self._release.folder, "server", "page.html")
            try:
                with open(path, "rb") as stream:
                    content = stream.read()
            except OSError as error:
                raise BadRequest("the release has no readable `server/page.html`", 404) from error
            found = _POLICY.search(content)
            if found is None:
                raise BadRequest("`server/page.html` names no policy", 404)
            policy = found.group(1).replace(b"&#x27;", b"'")
            self._html = Answer(200, content, _FIELDS % policy)
        return self._html

    def describe(self, metadata: Mapping[str, Any], *, ready: bool) -> Answer:
        """Return what the page shows of the model: lasting facts, and who answers now.

        Args:
            metadata: What `/v2/models/NAME` says at this moment.
            ready: Whether the model answers.
        """
        if not self._facts:
            self._facts = _facts(self._release, self._signature, self._limits)
        now = {
            "ready": ready,
            "engine": {
                "name": metadata["engine"],
                "version": metadata["engine_version"],
                "provider": metadata["provider"],
                "precision": metadata["precision"],
            },
            "accelerator": metadata.get("accelerator"),
        }
        return Answer(200, dumps({**self._facts, **now}).encode("ascii"))


def _facts(release: Any, signature: Signature, limits: Any) -> Dict[str, Any]:
    manifest = release.manifest
    model, server = manifest["model"], manifest.get("server", {})
    labels, results = _words(release)
    return {
        "name": str(manifest["name"]),
        "version": str(manifest["version"]),
        "target": str(manifest.get("target", {}).get("name", "")),
        "base": "/v2/models/" + str(manifest["name"]),
        "routes": {
            "predict": bool(server.get("plain", True)),
            "openapi": bool(server.get("openapi", True)),
            "metrics": bool(server.get("metrics", True)),
        },
        "limits": {"json_bytes": limits.json_bytes, "binary_bytes": limits.binary_bytes},
        "inputs": [_tensor(spec) for spec in signature.inputs.values()],
        "outputs": [_tensor(spec) for spec in signature.outputs.values()],
        "images": model.get("images") or {},
        "audio": model.get("audio") or {},
        "columns": model.get("columns") or {},
        "text": bool(model.get("text")),
        "labels": labels,
        "results": results,
        "bodies": sorted(manifest.get("bodies", {})) if server.get("plain", True) else [],
    }


def _tensor(spec: TensorSpec) -> Dict[str, Any]:
    shape = [dim._asdict() if isinstance(dim, Dimension) else dim for dim in spec.dims]
    datatype = BY_NAME[spec.dtype].protocol
    return {"name": spec.name, "dtype": spec.dtype, "datatype": datatype, "shape": shape}


def _words(release: Any) -> Tuple[Dict[str, List[str]], List[Dict[str, Any]]]:
    """Return labels by output, and how outputs are read together; empty where a file is missing."""
    try:
        labels = {
            str(output): read_lines(release.path(path))
            for output, path in release.manifest["model"].get("labels", {}).items()
        }
        results = [
            {"kind": result.kind, **result.names, "labels": result.labels}
            for result in read_results(release.manifest, release)
        ]
    except DeviceError:
        return {}, []
    return labels, results
