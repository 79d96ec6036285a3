"""Routes a parsed request to an answer, for one model; no I/O."""

from __future__ import annotations

import os
from functools import partial
from typing import (
    TYPE_CHECKING,
    Any,
    Callable,
    Dict,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
)

from .core import Inference, InferRequest
from .errors import BadRequest, InputOutputFault, ModelFault
from .failing import error_answer, fault_answer
from .framing import Admission
from .http1 import JSON_TYPE, Answer, Head
from .inference import InferenceProtocol
from .jobs import Body, Task, perform
from .metrics import CONTENT_TYPE, Metrics
from .plain import PlainProtocol
from .signature import Signature
from .telling import LIVE, Facts

if TYPE_CHECKING:
    from .mediatypes import BodyForm, BodyForms

# What a request may have where its model sets no limit: strings, or a dimension without a maximum.
UNBOUNDED_BYTES = 16 << 20
MAX_IGNORED_BODY_BYTES = 4096
PAGE_ROUTES = ("page", "page_facts")
_BINARY_LENGTH = "inference-header-content-length"
_BINARY_ADVICE = "send tensors in binary to `/v2/models/%s/infer`: the binary tensor extension"


class Limits(NamedTuple):
    """Bounds of a request's body.

    Attributes:
        json_bytes: The most JSON, alone or in front of binary tensors.
        binary_bytes: The most that the binary tensors may have.
        connections: The most clients at once.
    """

    json_bytes: int
    binary_bytes: int
    connections: int = 256


class _Endpoint(NamedTuple):
    route: str
    method: str
    act: Callable[[Body], Answer]
    task: Optional[Task] = None
    scope: str = "any"
    streamed: bool = False


class App:
    """One model behind its routes.

    Args:
        release: Has `.folder` and `.manifest`.
        engine: Has `.run(feeds, outputs)` and tells `.name .version .provider .precision`.
        routes: Path and endpoint name of everything served; None for what the manifest asks for.
        limits: None for the manifest's and the signature's.

    Attributes:
        manifest: The release's.
        inference: The model, which every protocol asks.
        limits: Bounds of what clients may send.
        ready: Set by the server; what `/v2/health/ready` tells.
        metrics: Counted by the server, shown by `/metrics`.
        facts: What clients are told of server, model and engine.
    """

    def __init__(
        self,
        release: Any,
        engine: Any,
        *,
        routes: Optional[Sequence[Tuple[str, str]]] = None,
        limits: Optional[Limits] = None,
    ) -> None:
        manifest: Mapping[str, Any] = release.manifest
        self.name = str(manifest["name"])
        self.version = str(manifest["version"])
        self.ready = False
        self.manifest = manifest
        # what a model with state takes of its clients is not what its file takes
        self._signature = Signature((manifest.get("sequences") or manifest["model"])["signature"])
        self.inference = Inference(self._signature, engine, name=self.name, version=self.version)
        self.limits = limits or default_limits(manifest, self._signature)
        self.facts = Facts(manifest, self._signature, engine)
        self.metrics = Metrics(self.facts.labels, self.facts.status)
        read_sequence = None
        if manifest.get("sequences"):
            from .sequences import keep_sequences, read_control

            read_sequence = read_control
            keep_sequences(self, manifest["sequences"])
        self._protocol = InferenceProtocol(
            self._signature, name=self.name, version=self.version, read_sequence=read_sequence
        )
        self._plain = _plain_protocol(manifest, release, self._signature)
        self._folder = release.folder
        self._openapi: Optional[bytes] = None
        self._release = release
        self._page: Any = None
        self._streams: Any = None
        self._forms: Optional[BodyForms] = None
        endpoints = self._endpoints()
        self._paths: Dict[str, _Endpoint] = {
            path: endpoints[name]
            for path, name in (default_routes(manifest) if routes is None else routes)
        }

    def leave_out(self, routes: Sequence[str]) -> None:
        """Serve nothing at some routes, before the first request comes."""
        self._paths = {k: v for k, v in self._paths.items() if v.route not in routes}

    def admit(self, head: Head) -> Admission:
        """Decide on a request from its head alone: path, method, encodings, sizes."""
        path = head.path
        endpoint = self._paths.get(path)
        if endpoint is None and "%" in path:
            endpoint = self._paths.get(_unquote(path))
        if endpoint is None:
            return _refuse(head, "unknown", BadRequest(*self._unknown(path)))
        if head.method != endpoint.method and (head.method, endpoint.method) != ("HEAD", "GET"):
            return _refuse(head, endpoint.route, *_wrong_method(head, endpoint))
        coding = head.fields.get("content-encoding", "identity")
        if coding.lower() != "identity":
            message = "`Content-Encoding: %s` is not served; send the body as it is" % coding[:64]
            return _refuse(head, endpoint.route, BadRequest(message, 415))
        try:
            form = self._body_form(head) if endpoint.route == "predict" else None
            limit, header_bytes, advice = self._body_limit(head, endpoint, form)
        except BadRequest as error:
            return _refuse(head, endpoint.route, error)
        task = endpoint.task
        if form is not None and task is not None:
            task = task._replace(decode=form.decode, aside=True)
        if header_bytes is not None and task is not None and endpoint.route == "infer":
            task = task._replace(decode=partial(self._decode_binary, header_bytes))
        act = endpoint.act if task is None else partial(perform, task)
        stream = self._stream(header_bytes) if endpoint.streamed else None
        route, scope = endpoint.route, endpoint.scope
        return Admission(head, route, act, limit, None, task, stream, scope, advice=advice)

    def _endpoints(self) -> Dict[str, _Endpoint]:
        def get(route: str, act: Callable[[Body], Answer], scope: str = "any") -> _Endpoint:
            return _Endpoint(route, "GET", act, None, scope)

        def post(route: str, decode: Callable[[Any], Any], encode: Callable[..., Any]) -> _Endpoint:
            task = Task(decode, self.inference.run, encode, fault_answer)
            return _Endpoint(route, "POST", partial(perform, task), task, "infer")

        return {
            "server_metadata": get("server_metadata", lambda _: self.facts.show_server()),
            "live": get("live", lambda _: LIVE, ""),
            "ready": get("ready", lambda _: self.facts.show_readiness(ready=self.ready), ""),
            "model_metadata": get("model_metadata", lambda _: self.facts.show_metadata()),
            "metrics": get("metrics", lambda _: self._show_metrics(), "metrics"),
            "openapi": get("openapi", lambda _: self._show_openapi()),
            "page": get("page", lambda _: self._open_page().show(), ""),
            "page_facts": get("page_facts", lambda _: self._show_page_facts()),
            "infer": post("infer", self._protocol.decode, self._protocol.encode),
            "predict": post("predict", self._decode_plain, self._encode_plain),
            "infer_stream": _Endpoint("infer_stream", "POST", _no_act, None, "infer", True),
        }

    def _open_streams(self) -> Any:
        if self._streams is None:
            from .streams import EventStreams  # seldom asked for

            self._streams = EventStreams(self)
        return self._streams

    def _stream(self, header_bytes: Optional[int]) -> Any:
        from .streams import StreamRoute

        return StreamRoute(self._open_streams(), header_bytes)

    def _body_form(self, head: Head) -> Optional[BodyForm]:
        """Return how a body that is no JSON is read, None for JSON."""
        content_type = head.fields.get("content-type", "")
        if content_type in ("", "application/json"):
            return None
        if self._forms is None:
            from .mediatypes import BodyForms

            self._forms = BodyForms(
                self._release,
                self._signature,
                self._plain.tokenize,
                most_bytes=self.limits.binary_bytes,
                most_text_bytes=self.limits.json_bytes,
            )
        return self._forms.choose(content_type)

    def _body_limit(
        self, head: Head, endpoint: _Endpoint, form: Optional[BodyForm]
    ) -> Tuple[int, Optional[int], str]:
        """Return a body's most bytes, those of JSON before binary tensors if any, and a hint.

        Raises:
            BadRequest: the declared length is past the limit (413) or contradicts itself.
        """
        header_bytes, advice = None, "no request that this model takes is that large"
        if endpoint.method == "GET":
            limit, advice = MAX_IGNORED_BODY_BYTES, "this route takes no body"
        elif form is not None:
            limit = form.most_bytes
        else:
            header_bytes = _header_bytes(head)
            limit = self.limits.json_bytes
            if header_bytes is None:
                advice = _BINARY_ADVICE % self.name
        if header_bytes is not None:
            if header_bytes > limit:
                raise BadRequest("the request's JSON is larger than %d bytes" % limit, 413)
            binary_bytes: int = self.limits.binary_bytes
            if endpoint.streamed:
                binary_bytes = self._open_streams().max_tensor_bytes
            limit = header_bytes + binary_bytes
        if head.length is None:
            return limit, header_bytes, advice
        if header_bytes is not None and header_bytes > head.length:
            raise BadRequest(
                "`Inference-Header-Content-Length` is %d but `Content-Length` is %d"
                % (header_bytes, head.length)
            )
        if head.length > limit:
            raise BadRequest(
                "the body has %d bytes where %d are the limit" % (head.length, limit), 413, advice
            )
        return limit, header_bytes, advice

    def _decode_binary(self, header_bytes: int, body: Body) -> InferRequest:
        return self._protocol.decode(body, header_bytes)

    def _decode_plain(self, body: Body) -> InferRequest:
        return InferRequest(self._plain.decode(body))

    def _encode_plain(self, _: InferRequest, results: Mapping[str, Any]) -> Answer:
        return self._plain.encode(results)

    def _show_metrics(self) -> Answer:
        return Answer(200, self.metrics.text().encode(), CONTENT_TYPE)

    def _open_page(self) -> Any:
        if self._page is None:
            from .page import Page  # seldom asked for

            self._page = Page(self._release, self.inference.signature, self.limits)
        return self._page

    def _show_page_facts(self) -> Answer:
        answer: Answer = self._open_page().describe(self.facts.metadata(), ready=self.ready)
        return answer

    def _show_openapi(self) -> Answer:
        if self._openapi is None:
            path = os.path.join(self._folder, "server", "openapi.json")
            try:
                with open(path, "rb") as stream:
                    self._openapi = stream.read()
            except OSError as error:
                raise BadRequest(
                    "the release has no readable `server/openapi.json`", 404
                ) from error
        return Answer(200, self._openapi)

    def _unknown(self, path: str) -> Tuple[str, int, str]:
        """Return the message, status and hint for a path that is not served."""
        parts = _unquote(path).split("/")
        if parts[:3] == ["", "v2", "models"] and len(parts) > 3:
            if parts[3] != self.name:
                message = "there is no model `%s` here" % parts[3][:80]
                return message, 404, "this server has `%s`" % self.name
            if len(parts) > 5 and parts[4] == "versions" and parts[5] != self.version:
                message = "there is no version `%s` here" % parts[5][:80]
                return message, 404, "this server has `%s`" % self.version
        return "there is nothing at `%s`" % path[:80], 404, "see `/v2/models/%s`" % self.name


def _plain_protocol(
    manifest: Mapping[str, Any], release: Any, signature: Signature
) -> PlainProtocol:
    """Return `/predict`, with the model's texts and labels where it has such."""
    tokenize = say_labels = None
    if manifest["model"].get("text"):
        from .wordpiece import open_tokenizer

        tokenize = open_tokenizer(manifest, release).encode
    if manifest["model"].get("results") or manifest["model"].get("labels"):
        from .results import read_words

        say_labels = read_words(manifest, release)
    return PlainProtocol(signature, tokenize, say_labels, manifest.get("bodies", ()))


def default_routes(manifest: Mapping[str, Any]) -> Tuple[Tuple[str, str], ...]:
    """Return path and endpoint of everything that the manifest's server table asks for."""
    model = "/v2/models/" + str(manifest["name"])
    version = model + "/versions/" + str(manifest["version"])
    routes = [
        ("/v2", "server_metadata"),
        ("/v2/health/live", "live"),
        ("/v2/health/ready", "ready"),
    ]
    for base in (model, version):
        routes += [
            (base, "model_metadata"),
            (base + "/ready", "ready"),
            (base + "/infer", "infer"),
            (base + "/infer_stream", "infer_stream"),
        ]
    server = manifest.get("server", {})
    for key, path in (("plain", "/predict"), ("metrics", "/metrics"), ("openapi", "/openapi.json")):
        if server.get(key, True):
            routes.append((path, {"plain": "predict"}.get(key, key)))
    if server.get("page"):
        routes += [("/", "page"), ("/page.json", "page_facts")]
    return tuple(routes)


def default_limits(manifest: Mapping[str, Any], signature: Signature) -> Limits:
    """Return the limits that the manifest's server table and the signature set."""
    json_bytes = int(manifest.get("server", {}).get("max_json_kb", 256)) * 1024
    largest = signature.max_bytes()
    return Limits(json_bytes, UNBOUNDED_BYTES if largest is None else largest)


def load_app(release: Any, engine: Any) -> App:
    """Return what the release's own `server/app.py` builds.

    Raises:
        InputOutputFault: the file cannot be read.
        ModelFault: it is not a server of this runtime.
    """
    path = os.path.join(release.folder, "server", "app.py")
    try:
        with open(path, "rb") as stream:
            source = stream.read()
    except OSError as error:
        raise InputOutputFault("cannot read `%s`: %s" % (path, error.strerror)) from error
    names: Dict[str, Any] = {"__name__": "edgepack_server", "__file__": path}
    # a file of the verified release: as much ours as this one
    exec(compile(source, path, "exec", dont_inherit=True), names)  # noqa: S102
    if "build" not in names:
        raise ModelFault("`server/app.py` has no `build`", hint="build the bundle again")
    app: App = names["build"](release, engine)
    return app


def _unquote(path: str) -> str:
    if "%" not in path:
        return path
    from urllib.parse import unquote  # rarely needed, and slow to import

    return unquote(path)


def _refuse(head: Head, route: str, error: BadRequest, fields: bytes = JSON_TYPE) -> Admission:
    answer = error_answer(error, fields)
    # what is here and what is not is told only to those who may ask
    return Admission(head, route, lambda _: answer, 0, answer, scope="any")


def _wrong_method(head: Head, endpoint: _Endpoint) -> Tuple[BadRequest, bytes]:
    allowed = "GET, HEAD" if endpoint.method == "GET" else endpoint.method
    error = BadRequest("`%s` is not served here, only %s" % (head.method, allowed), 405)
    return error, JSON_TYPE + b"Allow: %s\r\n" % allowed.encode("ascii")


def _header_bytes(head: Head) -> Optional[int]:
    text = head.fields.get(_BINARY_LENGTH)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 15):
        raise BadRequest("`Inference-Header-Content-Length` is not a number of bytes")
    return int(text)


def _no_act(_: Body) -> Answer:
    raise AssertionError("a stream is no single answer")
