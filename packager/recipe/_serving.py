"""What the generated server does, keeps in memory between requests, and may keep on disk."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

BATCHING = ("auto", "on", "off")


@dataclass(frozen=True, kw_only=True)
class Server:
    """What the generated server does: `[server]` in a recipe.

    Attributes:
        threads: Intra-op threads; None takes the target's.
        metrics, openapi, plain, grpc, page: Serve `/metrics`, `/openapi.json`, `/predict`, the
            protocol over gRPC, a page for people at `/`.
        max_json_kb: JSON bodies above are refused with the binary way named.
        image_bodies: Take photos as JPEG and PNG files, for which two libraries are carried; None:
            where those can be had.
        workers: Threads that run the model; None for two, so that one request is decoded while
            the engine works on another.
        queue: Requests that may wait for a worker; more are turned away.
        deadline_s: A request that waited longer is not begun; 0 for no limit.
        batching: Whether requests that wait are run as one; `auto` lets a measurement decide.
        batch_rows: The most rows of such a batch; 0 takes the measurement's, within the model's.
        batch_wait_ms: How long an idle engine waits for company.
    """

    threads: int | None = None
    metrics: bool = True
    openapi: bool = True
    plain: bool = True
    grpc: bool = True
    page: bool = True
    max_json_kb: int = 256
    image_bodies: bool | None = None
    workers: int | None = None
    queue: int = 64
    deadline_s: float = 0.0
    batching: str = "auto"
    batch_rows: int = 0
    batch_wait_ms: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Sequences:
    """How a model keeps state from request to request: `[sequences]` in a recipe.

    Attributes:
        state: The output that feeds an input of the next request, by that input.
        max_sequences: The most that are kept; further ones are turned away.
        idle_s: A sequence nobody asks for is forgotten after this time.
        axis: The axis of the inputs that a streamed request is cut along; None: it is not.
        chunk: The length of a piece along that axis.
    """

    state: Mapping[str, str] = field(default_factory=dict)
    max_sequences: int = 256
    idle_s: float = 60.0
    axis: int | None = None
    chunk: int = 0


@dataclass(frozen=True, kw_only=True)
class Privacy:
    """What may be kept of requests on the device: `[privacy]` in a recipe.

    Attributes:
        mask: Inputs that are never kept, nor counted.
        capture: The share of requests that is kept, encrypted; 0 for none.
        keep_s: How long.
        drift: Keep statistics of inputs and outputs, never single values.
    """

    mask: tuple[str, ...] = ()
    capture: float = 0.0
    keep_s: float = 7 * 86400.0
    drift: bool = False
