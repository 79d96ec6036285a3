"""An HTTP/2 client that sends exact bytes to a live server and tells how that ended."""

from __future__ import annotations

import json
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import unquote

from hpack import Decoder

from runtime.grpc import frames


@dataclass(kw_only=True)
class Ending:
    """What the server sent until it had nothing more to say.

    Attributes:
        fields: Header fields of the answer, its trailers included, by name.
        body: The answer's.
        ended: The answer is whole.
        reset: The code of `RST_STREAM`, None without.
        away: The code of `GOAWAY`, None without.
        words: What `GOAWAY` says.
    """

    fields: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    ended: bool = False
    reset: int | None = None
    away: int | None = None
    words: str = ""

    @property
    def grpc(self) -> tuple[int, str]:
        """Status and message of a call."""
        return int(self.fields["grpc-status"]), unquote(self.fields.get("grpc-message", ""))

    @property
    def status(self) -> int:
        """The HTTP status."""
        return int(self.fields[":status"])

    @property
    def error(self) -> str:
        """What a refusal over HTTP says."""
        message: str = json.loads(self.body)["error"]
        return message


class Http2Client:
    """One connection; every wait has an end."""

    def __init__(
        self,
        port: int,
        *,
        timeout_s: float = 15.0,
        early: bytes | None = None,
        connected: socket.socket | None = None,
    ) -> None:
        self.socket = connected or socket.create_connection(("127.0.0.1", port), timeout_s)
        self._decoder = Decoder()
        self._buffer = b""
        self.send(frames.PREFACE + frames.settings() if early is None else early)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        """Send what the server takes: it may hang up in the middle of a flood."""
        with suppress(BrokenPipeError, ConnectionResetError):
            self.socket.sendall(data)

    def ending(self, stream: int = 1, *, until_away: bool = False) -> Ending:
        """Read until a stream or, if that is awaited, the connection has ended."""
        found = Ending()
        while (item := self._frame()) is not None:
            kind, flags, identifier, payload = item
            if kind == frames.GOAWAY:
                (found.away,) = struct.unpack(">L", payload[4:8])
                found.words = payload[8:].decode()
                break
            if kind == frames.HEADERS:
                fields = self._decoder.decode(payload)
                if identifier == stream:
                    found.fields.update(fields)
            if identifier == stream:
                if kind == frames.DATA:
                    found.body += payload
                elif kind == frames.RST_STREAM:
                    (found.reset,) = struct.unpack(">L", payload)
                if kind in (frames.HEADERS, frames.DATA) and flags & frames.END_STREAM:
                    found.ended = True
                if not until_away and (found.ended or found.reset is not None):
                    break
        return found

    def is_closed(self) -> bool:
        """Wait until the server closes the connection, whatever it still sends."""
        try:
            while self.socket.recv(1 << 16):
                pass
        except ConnectionResetError:
            pass
        return True

    def _frame(self) -> tuple[int, int, int, bytes] | None:
        while len(self._buffer) < 9 or len(self._buffer) < 9 + self._length:
            try:
                data = self.socket.recv(1 << 16)
            except ConnectionResetError:
                return None
            if not data:
                return None
            self._buffer += data
        whole, size = self._buffer, self._length
        self._buffer = whole[9 + size :]
        return whole[3], whole[4], int.from_bytes(whole[5:9], "big"), whole[9 : 9 + size]

    @property
    def _length(self) -> int:
        return int.from_bytes(self._buffer[:3], "big")
