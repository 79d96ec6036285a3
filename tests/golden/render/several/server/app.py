"""This model's routes and limits; everything else is in the runtime."""

from typing import Any

from runtime.app import App, Limits

ROUTES = (
    ("/v2", "server_metadata"),
    ("/v2/health/live", "live"),
    ("/v2/health/ready", "ready"),
    ("/v2/models/net", "model_metadata"),
    ("/v2/models/net/ready", "ready"),
    ("/v2/models/net/infer", "infer"),
    ("/v2/models/net/infer_stream", "infer_stream"),
    ("/v2/models/net/versions/1.0.0", "model_metadata"),
    ("/v2/models/net/versions/1.0.0/ready", "ready"),
    ("/v2/models/net/versions/1.0.0/infer", "infer"),
    ("/v2/models/net/versions/1.0.0/infer_stream", "infer_stream"),
    ("/openapi.json", "openapi"),
)
LIMITS = Limits(json_bytes=262144, binary_bytes=16777216)


def build(release: Any, engine: Any) -> App:
    """Return the app that serves this model."""
    return App(release, engine, routes=ROUTES, limits=LIMITS)
