"""How a server is run: from the command line, and from the credentials that systemd hands over."""

from __future__ import annotations

import os
from typing import Any, Mapping, NamedTuple, Optional, Tuple

# The files that a unit's LoadCredential= may give, by the option that they stand for.
CREDENTIALS = {
    "tls_cert": "tls.crt",
    "tls_key": "tls.key",
    "tls_client_ca": "client-ca.crt",
    "keys": "keys.json",
    "capture_key": "capture.key",
}
# Says which descriptors a process was given by the one that it takes over from.
SUCCEEDS = "EDGEPACK_SUCCEEDS"


class ServeOptions(NamedTuple):
    """Where and how a server listens; what depends on the place, not on the model.

    Attributes:
        host: The name or address to listen on.
        port: 0 takes a free one.
        workers: Threads that run the model; None for the manifest's choice.
        queue: Requests that may wait; None for the manifest's choice.
        deadline_s: A request that waited longer is not begun; None for the manifest's choice.
        tls_cert, tls_key: Certificate chain and private key, PEM files; None for no TLS.
        tls_client_ca: Who signs the certificates that clients must show; None: they need none.
        tls_min: `1.3`, or `1.2` to allow that too.
        keys: The file of API keys; None: everyone may ask.
        insecure: Listen on a wider address without TLS, said in so many words.
        names: Further names that clients may call this server by.
        allow_origins: Origins whose pages may use this server.
        page: Serve the page for people, where the bundle has one.
        log: `text` or `json`.
        access_log: One line a request.
        capture_dir: Where kept requests go; None for `$STATE_DIRECTORY`.
        capture_key: The file of the key that they are encrypted with.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    workers: Optional[int] = None
    queue: Optional[int] = None
    deadline_s: Optional[float] = None
    tls_cert: Optional[str] = None
    tls_key: Optional[str] = None
    tls_client_ca: Optional[str] = None
    tls_min: str = "1.3"
    keys: Optional[str] = None
    insecure: bool = False
    names: Tuple[str, ...] = ()
    allow_origins: Tuple[str, ...] = ()
    page: bool = True
    log: str = "text"
    access_log: bool = False
    capture_dir: Optional[str] = None
    capture_key: Optional[str] = None


def serve_options(
    values: Mapping[str, Any], environment: Optional[Mapping[str, str]] = None
) -> ServeOptions:
    """Return the options that the command line gives, completed by credentials.

    Args:
        values: By long name, as `arguments.parse` returns them; further ones are passed over.
        environment: None for this process's.
    """
    environment = os.environ if environment is None else environment
    found = {name: values[name] for name in ServeOptions._fields if values.get(name) is not None}
    for name, plural in (("name", "names"), ("allow_origin", "allow_origins")):
        found[plural] = tuple(values.get(name) or ())
    if values.get("deadline") is not None:
        found["deadline_s"] = values["deadline"]
    folder = environment.get("CREDENTIALS_DIRECTORY")
    for name, file in CREDENTIALS.items():
        if folder and name not in found and os.path.isfile(os.path.join(folder, file)):
            found[name] = os.path.join(folder, file)
    return ServeOptions(**found)
