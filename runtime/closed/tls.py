"""Encrypts a connection on the epoll loop: a stream whose handshake and writes never block."""

from __future__ import annotations

import select
import socket
import ssl
from typing import Any, Callable, List, Optional, Protocol

from ..http1 import JSON_TYPE, Answer, wire
from ..loop import Loop, Stream, StreamProtocol

# The most that one record holds (RFC 8446, section 5.1), and so what one call of `recv` gives.
RECORD_BYTES = 16384
# Records of one connection that are decrypted before the others get their turn.
_RECORDS_A_TURN = 4
_READ = select.EPOLLIN | select.EPOLLRDHUP
_TROUBLE = select.EPOLLHUP | select.EPOLLERR
_PLAIN_HTTP = frozenset(("HTTP_REQUEST", "HTTPS_PROXY_REQUEST"))


class SecureProtocol(StreamProtocol, Protocol):
    """What a TLS stream tells, beside what every stream tells."""

    def handshake_done(self, alpn: Optional[str], peer_name: Optional[str]) -> None:
        """Take note, once, of what was agreed on and who the client's certificate says it is."""


class TlsStream(Stream):
    """A stream whose bytes are encrypted on their way; the handshake never blocks.

    The time for the handshake is the protocol's to limit, as is that for the first request: it is
    told when it is done.

    Args:
        loop: Where it is served.
        connected: The accepted socket.
        protocol: Hears of everything but what is encrypted.
        context: With certificate and key.
        failed: Called with OpenSSL's reason where a handshake fails.

    Raises:
        OSError: the client has gone already.
    """

    __slots__ = (
        "_agreed", "_ended", "_failed", "_paused", "_raw", "_read_waits_to_write",
        "_secured", "_write_waits_to_read",
    )  # fmt: skip

    def __init__(
        self,
        loop: Loop,
        connected: socket.socket,
        protocol: SecureProtocol,
        context: ssl.SSLContext,
        failed: Callable[[str], None] = lambda reason: None,
    ) -> None:
        connected.setblocking(False)
        self._secured: ssl.SSLSocket = context.wrap_socket(
            connected, server_side=True, do_handshake_on_connect=False
        )
        self._failed = failed
        self._agreed = False  # the handshake is done
        self._raw = False  # nothing is decrypted any more: what comes is thrown away
        self._paused = False
        self._ended = False  # the client sends no more
        self._read_waits_to_write = False
        self._write_waits_to_read = False
        try:
            super().__init__(loop, self._secured, protocol)
        except BaseException:
            self._secured.close()
            raise

    def write(self, data: bytes) -> None:
        """Send, or keep what the kernel does not take and say so to the protocol."""
        if self._closing or self._lost or self._shut:
            return
        if self._out:
            self._out += data
            return
        sent = self._encrypt(data) if self._agreed else 0
        if sent < len(data) and not self._lost:
            self._out += memoryview(data)[sent:]
            self._listen_for_all()
            self._protocol.pause_writing()

    def close(self) -> None:
        """Close once everything is sent."""
        self._closing = True
        if not self._out:
            self._say_goodbye()
            self.abort()

    def pause_reading(self) -> None:
        """Leave what comes in the kernel, which slows the peer down."""
        self._paused = True
        self._listen_for_all()

    def resume_reading(self) -> None:
        """Read again, first what is decrypted already: epoll does not know of that."""
        self._paused = False
        self._listen_for_all()
        if not self._lost and self._secured.pending():
            self._loop.soon(self._read_if_wanted)

    def _listen_for_all(self) -> None:
        """Wait for what reading and writing need, which TLS may turn round."""
        wants_read = not (self._paused or self._ended or self._read_waits_to_write)
        wants_read = wants_read or self._write_waits_to_read
        wants_write = self._read_waits_to_write or (
            bool(self._out) and self._agreed and not self._write_waits_to_read
        )
        self._listen((_READ if wants_read else 0) | (select.EPOLLOUT if wants_write else 0))

    def _on_ready(self, events: int) -> None:
        if events & _TROUBLE and not events & _READ:
            self.abort()
            return
        if not (self._agreed or self._raw):
            self._shake_hands()
            return
        reads = events & _READ and self._events & _READ
        writes = events & select.EPOLLOUT
        if self._out and (reads if self._write_waits_to_read else writes):
            self._write_waits_to_read = False
            self._flush()
        if not self._lost and (writes if self._read_waits_to_write else reads):
            self._read_waits_to_write = False
            self._read_if_wanted()
        if not self._lost:
            self._listen_for_all()

    def _shake_hands(self) -> None:
        try:
            self._secured.do_handshake()
        except ssl.SSLWantReadError:
            self._listen(_READ)
            return
        except ssl.SSLWantWriteError:
            self._listen(select.EPOLLOUT)
            return
        except (ssl.SSLError, ssl.CertificateError) as error:
            self._refuse(getattr(error, "reason", None) or "UNKNOWN")
            return
        except OSError:
            self.abort()
            return
        self._agreed = True
        protocol: Any = self._protocol
        protocol.handshake_done(self._secured.selected_alpn_protocol(), peer_name(self._secured))
        if self._out and not self._lost:
            self._flush()
        elif self._shut and not self._lost:
            self._shutdown()
        if not self._lost:
            self._listen_for_all()
            self._read_if_wanted()

    def _refuse(self, reason: str) -> None:
        """End a handshake that failed; OpenSSL has sent its alert.

        What the client has sent is still read: a reset would destroy the alert on its way.
        """
        self._failed(reason)
        self._raw = True
        self._out = bytearray()
        try:
            if reason in _PLAIN_HTTP:
                socket.socket.send(self._secured, _SPEAK_TLS)
            self._secured.shutdown(socket.SHUT_WR)
        except OSError:
            self.abort()
            return
        self._shut = True
        self._listen(_READ)

    def _read_if_wanted(self) -> None:
        if self._lost or self._paused or self._ended:
            return
        self._read()

    def _read(self) -> None:
        for _turn in range(_RECORDS_A_TURN):
            try:
                data = self._secured.recv(RECORD_BYTES)
            except (ssl.SSLWantReadError, BlockingIOError):
                return
            except ssl.SSLWantWriteError:
                self._read_waits_to_write = True
                return
            except ssl.SSLError as error:
                if error.reason != "UNEXPECTED_EOF_WHILE_READING":
                    self.abort()
                    return
                data = b""
            except OSError:
                self.abort()
                return
            if not data:
                self._end()
                return
            if not self._raw:
                self._protocol.data_received(data)
            if self._lost or self._paused:
                return
            if len(data) < RECORD_BYTES and not self._secured.pending():
                return  # most likely all there is; if not, epoll says so again
        if self._secured.pending():
            self._loop.soon(self._read_if_wanted)

    def _end(self) -> None:
        self._ended = True
        self._listen_for_all()
        if self._raw and self._shut and not self._agreed:
            self.abort()
        elif not self._protocol.eof_received():
            self.close()

    def _encrypt(self, data: Any) -> int:
        """Return how many bytes were taken; each call of `send` makes one record."""
        view = memoryview(data)
        sent = 0
        while sent < len(view):
            try:
                sent += self._secured.send(view[sent : sent + RECORD_BYTES])
            except ssl.SSLWantWriteError:
                break
            except ssl.SSLWantReadError:
                self._write_waits_to_read = True
                break
            except OSError:
                self.abort()
                break
        return sent

    def _flush(self) -> None:
        view = memoryview(self._out)
        sent = self._encrypt(view)
        view.release()
        if self._lost:
            return
        del self._out[:sent]
        if self._out:
            return
        self._listen_for_all()
        if self._closing:
            self._say_goodbye()
            self.abort()
            return
        if self._shut:
            self._shutdown()
        self._protocol.resume_writing()

    def _shutdown(self) -> None:
        if not self._agreed:
            return  # what was written waits for the handshake, and this after it
        self._say_goodbye()
        self._raw = True
        super()._shutdown()

    def _say_goodbye(self) -> None:
        """Send `close_notify`, so that the client knows nothing was cut off."""
        if self._agreed and not self._raw:
            try:
                self._secured.unwrap()
            except (OSError, ValueError):
                pass  # its answer has not come, or it has gone: nothing depends on either


def peer_name(secured: ssl.SSLSocket) -> Optional[str]:
    """Return who the client's certificate says it is: its common name, or its first other name."""
    certificate: Any = secured.getpeercert()
    if not certificate:
        return None
    subject = certificate.get("subject", ())
    found: List[str] = [value for parts in subject for key, value in parts if key == "commonName"]
    found += [str(value) for _kind, value in certificate.get("subjectAltName", ())]
    # it is written into logs: no line ends, and no more than a line holds
    for name in found:
        shown = "".join(letter for letter in name if letter.isprintable())[:64]
        if shown:
            return shown
    return "unnamed"


_SPEAK_TLS = wire(
    Answer(400, b'{"error": "this port speaks TLS (use https://)"}', JSON_TYPE),
    keep_alive=False,
    minor=1,
    with_body=True,
)
