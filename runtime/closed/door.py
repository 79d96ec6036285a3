"""All that closes one server: TLS and keys as its options say, kept up to date."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Callable, List, Optional, Tuple

from ..errors import UsageFault
from ..logs import log
from ..options import ServeOptions
from .reloading import Reloading

if TYPE_CHECKING:
    import socket

    from ..loop import Loop
    from ..metrics import Metrics
    from .contexts import Tls
    from .guard import Guard
    from .keys import Keys
    from .tls import SecureProtocol, TlsStream

_WARN_EVERY_S = 86400.0
_WARN_AHEAD_S = 14 * 86400.0


def import_all(options: ServeOptions) -> None:
    """Import everything that the options ask for."""
    if options.tls_cert is not None:
        from . import contexts, tls  # noqa: F401 - kept by the interpreter
    if options.keys is not None:
        from . import guard, keys  # noqa: F401 - kept by the interpreter


class Door:
    """Belongs to one server's loop; made only where options ask for TLS or keys.

    Args:
        options: Files that are named there are read at once.
        metrics: Counts refusals and handshakes that failed.
        http2: Offer HTTP/2 to clients that can choose.
        say: Takes the name of an event and its fields for the log; None for the server's.
        clock: Seconds since 1970.

    Attributes:
        guard: Knows the keys; None where none are asked for.

    Raises:
        UsageFault: options that do not go together, or files of no use.
        InputOutputFault: a file cannot be read.
    """

    def __init__(
        self,
        options: ServeOptions,
        metrics: Metrics,
        *,
        http2: bool = False,
        say: Optional[Callable[..., None]] = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._metrics = metrics
        self._say = say or log.event
        self._clock = clock
        self._warn_at = 0.0
        self._tls: Optional[Reloading[Tls]] = None
        self._keys: Optional[Reloading[Keys]] = None
        self.guard: Optional[Guard] = None
        import_all(options)  # not when the first client waits for it
        if options.tls_cert is not None:
            self._open_tls(options, http2)
        elif options.tls_key is not None or options.tls_client_ca is not None:
            raise UsageFault("TLS needs a certificate", "--tls-cert FILE --tls-key FILE")
        if options.keys is not None:
            self._open_keys(options.keys)

    @property
    def has_tls(self) -> bool:
        """Whether connections are encrypted."""
        return self._tls is not None

    @property
    def names(self) -> Tuple[str, ...]:
        """The names that the certificate is good for."""
        return () if self._tls is None else self._tls.value.certificate.names

    def wrap(self, loop: Loop, connected: socket.socket, protocol: SecureProtocol) -> TlsStream:
        """Return the encrypted stream of an accepted socket; raises OSError if it has gone."""
        from .tls import TlsStream

        assert self._tls is not None  # noqa: S101 - for the type checker: `has_tls` was asked
        context = self._tls.value.context
        return TlsStream(loop, connected, protocol, context, self._count_failure)

    def look(self) -> None:
        """Read files that have changed, and once a day tell what ends soon."""
        for reloading in (self._tls, self._keys):
            if reloading is not None:
                reloading.look()
        now = self._clock()
        # a clock that was set by years must not keep the warning away
        if not self._warn_at - _WARN_EVERY_S <= now < self._warn_at:
            self._warn_at = now + _WARN_EVERY_S
            self._warn(now)

    def reload(self) -> None:
        """Read all files again, as SIGHUP asks."""
        for reloading in (self._tls, self._keys):
            if reloading is not None:
                reloading.reload()

    def _open_tls(self, options: ServeOptions, http2: bool) -> None:
        from .contexts import load_tls

        named = (options.tls_cert, options.tls_key, options.tls_client_ca)
        self._tls = Reloading(
            "certificate",
            [path for path in named if path is not None],
            partial(load_tls, options, http2=http2),
            self._show_certificate,
            self._say,
        )
        self._show_certificate(self._tls.value)

    def _open_keys(self, path: str) -> None:
        from .guard import Guard
        from .keys import load_keys

        load = partial(load_keys, path, clock=self._clock)
        self._keys = keys = Reloading("keys file", [path], load, self._use_keys, self._say)
        self.guard = Guard(keys.value, rejected=self._count_rejection)

    def _use_keys(self, keys: Keys) -> None:
        if self.guard is not None:
            self.guard.replace(keys)

    def _show_certificate(self, tls: Tls) -> None:
        self._metrics.certificate_not_after = int(tls.certificate.not_after)
        self._warn_at = 0.0

    def _warn(self, now: float) -> None:
        lines: List[Optional[str]] = []
        if self._tls is not None:
            from .contexts import describe_expiry

            lines.append(describe_expiry(self._tls.value.certificate, now))
        if self._keys is not None:
            from .keys import describe_expiry as describe_keys

            lines += describe_keys(self._keys.value, _WARN_AHEAD_S)
        for line in lines:
            if line is not None:
                self._say("expiry", level="warning", message=line)

    def _count_failure(self, reason: str) -> None:
        self._metrics.count("tls_handshakes_failed", reason=reason.lower())

    def _count_rejection(self, reason: str) -> None:
        self._metrics.count("rejected", reason=reason)
