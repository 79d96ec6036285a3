"""The methods of the gRPC services, for one app: the Open Inference Protocol's, and health."""

from __future__ import annotations

from typing import Any, Callable, Dict, NamedTuple, Optional, Tuple, Union

from ..app import App
from ..dtypes import BY_NAME
from ..errors import BadRequest
from ..failing import blame
from ..jobs import Task
from ..jsontext import clip
from . import messages, status
from .infer import InferMessages
from .status import Failure

Body = Union[bytes, bytearray]

INFERENCE = "inference.GRPCInferenceService"
HEALTH = "grpc.health.v1.Health"
# How the paths of our services begin.
SERVICES = ("/%s/" % INFERENCE, "/%s/" % HEALTH)
# Names, a shape and parameters, beside the bytes of the tensors.
MESSAGE_OVERHEAD_BYTES = 1 << 16
MAX_QUESTION_BYTES = 4096

_SERVING, _NOT_SERVING = b"\x08\x01", b"\x08\x02"
_ONE_MODEL = "this server has one model, the one of its bundle"
_NO_SHARED_MEMORY = "tensors have to be in the request itself"
_UNSERVED = {
    INFERENCE: {
        "ModelConfig": "`ModelMetadata` tells the model's inputs and outputs",
        "ModelStatistics": "`GET /metrics` counts and times requests",
        "RepositoryIndex": _ONE_MODEL,
        "RepositoryModelLoad": _ONE_MODEL,
        "RepositoryModelUnload": _ONE_MODEL,
        "SystemSharedMemoryStatus": _NO_SHARED_MEMORY,
        "SystemSharedMemoryRegister": _NO_SHARED_MEMORY,
        "SystemSharedMemoryUnregister": _NO_SHARED_MEMORY,
        "CudaSharedMemoryStatus": _NO_SHARED_MEMORY,
        "CudaSharedMemoryRegister": _NO_SHARED_MEMORY,
        "CudaSharedMemoryUnregister": _NO_SHARED_MEMORY,
        "TraceSetting": "the command line of `serve` has what can be set",
        "LogSettings": "the command line of `serve` has what can be set",
    },
    HEALTH: {"Watch": "call `Check` again and again", "List": "call `Check`"},
}


class Method(NamedTuple):
    """One method of a service.

    Attributes:
        name: As metrics know it.
        max_bytes: The most that one message may have.
        scope: What a caller's key must allow; empty where none is needed.
        act: Makes the answer here and now; None where it asks the model.
        task: The same in parts, where it asks the model.
        streams: Messages and answers come one after the other, until the client ends.
    """

    name: str
    max_bytes: int
    scope: str
    act: Optional[Callable[[Body], bytes]] = None
    task: Optional[Task] = None
    streams: bool = False


class Service:
    """What an app answers over gRPC.

    Args:
        app: The model and its limits.

    Attributes:
        largest_answer: Bytes of the largest answer until now.
    """

    def __init__(self, app: App) -> None:
        self.app = app
        self.largest_answer = 0
        inference = app.inference
        read_sequence = None
        if inference.sequences is not None:
            from ..sequences import read_control

            read_sequence = read_control
        self._signature = inference.signature
        self._codec = codec = InferMessages(
            inference.signature,
            name=app.name,
            version=app.version,
            max_typed_bytes=app.limits.json_bytes,
            read_sequence=read_sequence,
        )
        limit = app.limits.binary_bytes + app.limits.json_bytes + MESSAGE_OVERHEAD_BYTES
        task = Task(codec.decode, inference.run, codec.encode, fail)
        self._methods: Dict[str, Method] = {}
        self._add(Method("ModelInfer", limit, "infer", task=task))
        self._add(Method("ModelStreamInfer", limit, "infer", task=task, streams=True))
        quick: Tuple[Tuple[str, str, Callable[[Body], bytes]], ...] = (
            ("ServerLive", "", lambda _: messages.flag(value=True)),
            ("ServerReady", "", lambda _: messages.flag(value=app.ready)),
            ("ModelReady", "", self._model_ready),
            ("ServerMetadata", "any", self._server_metadata),
            ("ModelMetadata", "any", self._model_metadata),
        )
        for name, scope, act in quick:
            self._add(Method(name, MAX_QUESTION_BYTES, scope, act))
        path = "/%s/Check" % HEALTH
        self._methods[path] = Method(path, MAX_QUESTION_BYTES, "", self._check_health)

    def find(self, path: str) -> Method:
        """Return the method at a path.

        Raises:
            BadRequest: there is none (501).
        """
        found = self._methods.get(path)
        if found is not None:
            return found
        service, _, name = path[1:].partition("/")
        known = _UNSERVED.get(service)
        if known is None:
            raise BadRequest(
                "there is no service `%s` here" % clip(service),
                501,
                "it has `%s` and `%s`" % (INFERENCE, HEALTH),
            )
        raise BadRequest("`%s` is not served" % clip(name), 501, known.get(name))

    def _add(self, method: Method) -> None:
        self._methods["/%s/%s" % (INFERENCE, method.name)] = method

    def _model_ready(self, body: Body) -> bytes:
        self._codec.check_model(*messages.read_name(body))
        return messages.flag(value=self.app.ready)

    def _server_metadata(self, _: Body) -> bytes:
        return messages.server_metadata(*self.app.facts.server)

    def _model_metadata(self, body: Body) -> bytes:
        self._codec.check_model(*messages.read_name(body))
        app, signature = self.app, self._signature
        engine: Any = app.inference.engine
        tell = getattr(engine, "status", None)
        platform = str(tell()["engine"]["name"]) if tell else str(engine.name)
        tensors = [
            (
                number,
                spec.name,
                BY_NAME[spec.dtype].protocol,
                [dim if isinstance(dim, int) else -1 for dim in spec.dims],
            )
            for number, specs in ((4, signature.inputs), (5, signature.outputs))
            for spec in specs.values()
        ]
        return messages.model_metadata(app.name, app.version, platform, tensors)

    def _check_health(self, body: Body) -> bytes:
        service, _ = messages.read_name(body)
        if service not in ("", INFERENCE):
            raise BadRequest(
                "there is no service `%s` here" % clip(service), 404, "it has `%s`" % INFERENCE
            )
        return _SERVING if self.app.ready else _NOT_SERVING


def fail(error: Exception) -> Failure:
    """Return what a client is told of whatever was raised; a fault of ours is reported."""
    return status.failure(blame(error))


def service_of(shared: Any) -> Service:
    """Return what a server's app answers over gRPC, made once; `shared` is `connection.Shared`."""
    found: Optional[Service] = shared.grpc
    if found is None or found.app is not shared.app:
        found = shared.grpc = Service(shared.app)
    return found
