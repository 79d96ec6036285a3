"""What a server says of its model and of the engine that runs it, which may change."""

from __future__ import annotations

from typing import Any, Callable, Dict, Mapping, Optional

from .dtypes import BY_NAME
from .http1 import Answer
from .jsontext import dumps
from .signature import Signature, TensorSpec


class Facts:
    """One model and its engine, as clients are told of them.

    Args:
        manifest: The release's.
        signature: What clients see.
        engine: Tells `.name .version .provider .precision`, and `.status()` where it may change.

    Attributes:
        status: Returns the state of an engine that may change; None for one that does not.
        server: The server's name and version, and the protocol's extensions that it has.
    """

    def __init__(self, manifest: Mapping[str, Any], signature: Signature, engine: Any) -> None:
        self._manifest = manifest
        self._signature = signature
        self._engine = engine
        self.status: Optional[Callable[[], Dict[str, Any]]] = getattr(engine, "status", None)
        self.server = (
            "edgepack",
            str(manifest.get("edgepack", "")),
            ("binary_tensor_data", *(("sequence",) if manifest.get("sequences") else ())),
        )
        # an engine that never changes is described once
        self._metadata = None if self.status else json_answer(self.metadata())

    def show_server(self) -> Answer:
        """Answer with the server's metadata."""
        name, version, extensions = self.server
        return json_answer({"name": name, "version": version, "extensions": extensions})

    def show_metadata(self) -> Answer:
        """Answer with the model's metadata."""
        return self._metadata or json_answer(self.metadata())

    def show_readiness(self, *, ready: bool) -> Answer:
        """Answer whether the server is ready, and with which engine."""
        if self.status is None:
            return _READY if ready else _NOT_READY
        document = {"ready": ready, **_describe_status(self.status())}
        return json_answer(document, 200 if ready else 503)

    def metadata(self) -> Dict[str, Any]:
        """Return the metadata of the Open Inference Protocol, with the engine that answers now."""
        status = self.status() if self.status else None
        running = _running(self._engine) if status is None else status["engine"]
        document = {
            "name": str(self._manifest["name"]),
            "versions": [str(self._manifest["version"])],
            "platform": running["name"],
            "inputs": [_describe(spec) for spec in self._signature.inputs.values()],
            "outputs": [_describe(spec) for spec in self._signature.outputs.values()],
            "engine": running["name"],
            "engine_version": running["version"],
            "provider": running["provider"],
            "precision": running["precision"],
        }
        if status is not None:
            document["accelerator"] = _describe_status(status)["accelerator"]
        return document

    def labels(self) -> Dict[str, Dict[str, str]]:
        """Return what metrics say of model and engine, by metric."""
        manifest = self._manifest
        target = str(manifest.get("target", {}).get("name", ""))
        running = _running(self._engine) if self.status is None else self.status()["engine"]
        return {
            "edgepack_model_info": {
                "name": str(manifest["name"]),
                "version": str(manifest["version"]),
                "target": target,
            },
            "edgepack_engine_info": {
                "engine": running["name"],
                "version": running["version"],
                "provider": running["provider"],
                "precision": running["precision"],
            },
        }


def _running(engine: Any) -> Dict[str, str]:
    return {key: getattr(engine, key) for key in ("name", "version", "provider", "precision")}


def _describe_status(status: Mapping[str, Any]) -> Dict[str, Any]:
    """Return what a client is told of an engine that may change: who answers, and why."""
    told = {key: status[key] for key in ("wanted", "state", "reason", "notes")}
    for key in ("progress", "seconds_left", "step"):
        if key in status:
            told[key] = status[key]
    return {"engine": status["engine"]["name"], "accelerator": told}


def _describe(spec: TensorSpec) -> Dict[str, Any]:
    return {
        "name": spec.name,
        "datatype": BY_NAME[spec.dtype].protocol,
        "shape": [dim if isinstance(dim, int) else -1 for dim in spec.dims],
    }


def json_answer(document: Mapping[str, Any], status: int = 200) -> Answer:
    """Return a document as an answer."""
    return Answer(status, dumps(document).encode("ascii"))


LIVE = json_answer({"live": True})
_READY = json_answer({"ready": True})
_NOT_READY = json_answer({"ready": False}, 503)
