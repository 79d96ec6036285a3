"""Hostile HTTP/2: frames, floods, header fields; what each gets from the server."""

# ruff: noqa: E501 - a table of requests reads best a line each

from __future__ import annotations

import struct

from runtime.grpc import frames
from runtime.grpc.frames import (
    CONTINUATION,
    DATA,
    GOAWAY,
    HEADERS,
    PING,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
)
from runtime.grpc.hpack import encode
from tests.unit.runtime.grpc.http2_side import BLOCK, frame, request

Fields = list[tuple[bytes, bytes]]

# After preface and settings: code of the `GOAWAY` that ends the connection, and what it says.
FAULTS = {
    "an even stream": (frame(HEADERS, 4, 2, BLOCK), 1, "odd numbers"),
    "headers on stream 0": (frame(HEADERS, 4, 0, BLOCK), 1, "odd numbers"),
    "data before headers": (frame(DATA, 0, 1, b"x"), 1, "has not begun"),
    "data on stream 0": (frame(DATA, 0, 0, b"x"), 1, "has not begun"),
    "data on an even stream": (frame(DATA, 0, 4, b"x"), 1, "has not begun"),
    "a reset before headers": (frame(RST_STREAM, 0, 5, bytes(4)), 1, "has not begun"),
    "a reset of stream 0": (frame(RST_STREAM, 0, 0, bytes(4)), 1, "has not begun"),
    "a window of no stream": (frames.window_update(7, 1), 1, "has not begun"),
    "a window opened by nothing": (frames.window_update(0, 0), 1, "opened by nothing"),
    "a window that overflows": (frames.window_update(0, (1 << 31) - 1), 3, "too large"),
    "a window of three bytes": (frame(WINDOW_UPDATE, 0, 0, b"abc"), 6, "4 bytes"),
    "a ping of three bytes": (frame(PING, 0, 0, b"abc"), 6, "8 bytes"),
    "a ping of a stream": (frame(PING, 0, 1, bytes(8)), 1, "belongs to no stream"),
    "settings of a stream": (frame(SETTINGS, 0, 1), 1, "belongs to no stream"),
    "half a setting": (frame(SETTINGS, 0, 0, b"abc"), 6, "6 bytes"),
    "an acknowledgement with a setting": (frame(SETTINGS, 1, 0, bytes(6)), 6, "no bytes"),
    "a push of two": (frames.settings((frames.ENABLE_PUSH, 2)), 1, "0 or 1"),
    "a first window too large": (frames.settings((frames.INITIAL_WINDOW_SIZE, 1 << 31)), 3, "too large"),
    "frames smaller than allowed": (frames.settings((frames.MAX_FRAME_SIZE, 16383)), 1, "cannot have that size"),
    "frames larger than allowed": (frames.settings((frames.MAX_FRAME_SIZE, 1 << 24)), 1, "cannot have that size"),
    "a priority of three bytes": (frame(PRIORITY, 0, 1, b"abc"), 6, "5 bytes"),
    "a priority of stream 0": (frame(PRIORITY, 0, 0, bytes(5)), 1, "belongs to a stream"),
    "a reset of three bytes": (frame(RST_STREAM, 0, 1, b"abc"), 6, "4 bytes"),
    "a promise": (frame(PUSH_PROMISE, 4, 1, bytes(4)), 1, "promise nothing"),
    "a goaway of a stream": (frame(GOAWAY, 0, 1, bytes(8)), 1, "belongs to no stream"),
    "a goaway of seven bytes": (frame(GOAWAY, 0, 0, bytes(7)), 6, "8 bytes"),
    "a continuation of nothing": (frame(CONTINUATION, 4, 1, BLOCK), 1, "nothing precedes"),
    "a header interrupted by data": (frame(HEADERS, 0, 1, BLOCK) + frame(DATA, 0, 1), 1, "interrupted"),
    "a header continued on another stream": (frame(HEADERS, 0, 1, BLOCK) + frame(9, 4, 3, BLOCK), 1, "interrupted"),
    "an index that does not exist": (frame(HEADERS, 4, 1, b"\xbe"), 9, "index that does not exist"),
    "padding longer than a header": (frame(HEADERS, 4 | 8, 1, b"\x09abc"), 1, "longer than its frame"),
    "padding without a header": (frame(HEADERS, 4 | 8, 1, b""), 1, "longer than its frame"),
    "half a priority": (frame(HEADERS, 4 | 32, 1, b"abc"), 6, "too short"),
    "padding longer than data": (frame(HEADERS, 4, 1, BLOCK) + frame(0, 8, 1, b"\x05ab"), 1, "longer than"),
    "a frame too large": (frames.frame_header(16385, 0, 0, 1), 6, "more than 16384 bytes"),
    "a frame too large of an unknown type": (frames.frame_header(16385, 77, 0, 1), 6, "more than 16384 bytes"),
    "a frame of 16 MiB": (frames.frame_header((1 << 24) - 1, HEADERS, 4, 1), 6, "more than 16384 bytes"),
    "a header interrupted by a ping": (frame(HEADERS, 0, 1, BLOCK) + frame(PING, 0, 0, bytes(8)), 1, "interrupted"),
    "a header interrupted by settings": (frame(HEADERS, 0, 1, BLOCK) + frames.settings(), 1, "interrupted"),
    "a header interrupted by an unknown frame": (frame(HEADERS, 0, 1, BLOCK) + frame(99, 0, 0), 1, "interrupted"),
    "a stream used again": (request(1) + request(1), 5, "has ended"),
    "a stream used out of order": (request(5) + request(3), 5, "has ended"),
    "an index of zero": (frame(HEADERS, 4, 1, b"\x80"), 9, "does not exist"),
    "an index of 2^32": (frame(HEADERS, 4, 1, b"\xff\xff\xff\xff\xff\x0f"), 9, "too large"),
    "an index that never ends": (frame(HEADERS, 4, 1, b"\xff" + b"\x80" * 60), 9, "too large"),
    "a name's index that does not exist": (frame(HEADERS, 4, 1, b"\x7f\x80\x01\x00"), 9, "does not exist"),
    "a string longer than its block": (frame(HEADERS, 4, 1, b"\x00\x7f\x80\x7fabc"), 9, "cut off"),
    "a string without its value": (frame(HEADERS, 4, 1, b"\x00\x01a"), 9, "cut off"),
    "a string of 16 MiB": (frame(HEADERS, 4, 1, b"\x00\x7f\x80\xff\xff\x07"), 9, ""),
    "a Huffman code with its end mark": (frame(HEADERS, 4, 1, b"\x00\x84\xff\xff\xff\xff\x01b"), 9, ""),
    "a Huffman code with too much padding": (frame(HEADERS, 4, 1, b"\x00\x82\x1f\xff\x01b"), 9, ""),
    "a Huffman code padded by zeros": (frame(HEADERS, 4, 1, b"\x00\x81\x18\x01b"), 9, ""),
    "a table larger than agreed": (frame(HEADERS, 4, 1, b"\x3f\xe2\x1f" + BLOCK), 9, "not allowed here"),
    "a table changed in the middle": (frame(HEADERS, 4, 1, BLOCK + b"\x20"), 9, "not allowed here"),
    "a table changed three times": (frame(HEADERS, 4, 1, b"\x20\x20\x20" + BLOCK), 9, "not allowed here"),
    "trailers that cannot be decoded": (request(1, b"x" * 20, end=False) + frame(HEADERS, 5, 1, b"\xbe"), 9, "does not exist"),
    "a header past the limit, in pieces": (
        frame(HEADERS, 0, 1, b"\x00\x01a\x7f" + bytes(16000)) + frame(CONTINUATION, 0, 1, bytes(16000)), 11, "larger than"),
    "settings that open windows too far": (
        request(1, b"x" * 20, end=False) + frames.window_update(1, 1 << 30)
        + frames.settings((frames.INITIAL_WINDOW_SIZE, (1 << 31) - 1)), 3, "too large"),
}  # fmt: skip

# Instead of preface and settings: the code of the `GOAWAY`.
OPENINGS = {
    "a preface with a wrong end": (frames.PREFACE[:-1] + b"x", 1),
    "a preface that turns into HTTP/1.1": (b"PRI /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n", 1),
    "a preface, then headers": (frames.PREFACE + frame(HEADERS, 5, 1, BLOCK), 1),
    "a preface, then a ping": (frames.PREFACE + frame(PING, 0, 0, bytes(8)), 1),
    "a preface, then an acknowledgement": (frames.PREFACE + frame(SETTINGS, 1, 0), 1),
    "a preface, then an unknown frame": (frames.PREFACE + frame(77, 0, 0, bytes(8)), 1),
    "a preface, then HTTP/1.1": (frames.PREFACE + b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n", 6),
    "a preface twice": (frames.PREFACE + frames.settings() + frames.PREFACE, 6),
}  # fmt: skip

# One frame of each flood, on a connection where a request on stream 1 is under way.
CHEAP = {
    "settings": frames.settings(),
    "ping": frame(PING, 0, 0, bytes(8)),
    "priority": frame(PRIORITY, 0, 1, bytes(5)),
    "empty data": frame(DATA, 0, 1),
    "padding": frame(DATA, 8, 1, b"\x05" + bytes(5)),
    "tiny data": frame(DATA, 0, 1, b"x"),
    "window": frames.window_update(0, 1),
    "window of stream": frames.window_update(1, 1),
    "unknown": frame(77, 0, 0, b"extension"),
    "acknowledgements": frame(SETTINGS, 1, 0),
    "goaway": frame(GOAWAY, 0, 0, bytes(8)),
}

_INFER = [
    (b":method", b"POST"), (b":scheme", b"http"),
    (b":path", b"/inference.GRPCInferenceService/ModelInfer"), (b":authority", b"127.0.0.1"),
    (b"content-type", b"application/grpc"), (b"te", b"trailers"),
]  # fmt: skip
OPEN_CALL = frame(HEADERS, 4, 1, encode(_INFER))
CANCEL = struct.pack(">L", frames.CANCEL)


def many(stream: bytes) -> bytes:
    """Return what one stream after the other does, whose number is left open as `%%%%`."""
    return b"".join(stream.replace(b"%%%%", struct.pack(">L", 1 + 2 * n)) for n in range(1500))


def _anywhere(kind: int, flags: int, payload: bytes) -> bytes:
    return frame(kind, flags, 0, payload)[:5] + b"%%%%" + payload


# Each ends with ENHANCE_YOUR_CALM.
FLOODS = {
    **{f"a flood: {name}": OPEN_CALL + data * 1500 for name, data in CHEAP.items()},
    "rapid resets": many(_anywhere(HEADERS, 5, BLOCK) + _anywhere(RST_STREAM, 0, CANCEL)),
    "rapid resets of calls": many(_anywhere(HEADERS, 4, encode(_INFER)) + _anywhere(RST_STREAM, 0, CANCEL)),
    "rapid resets by a window of zero": many(_anywhere(HEADERS, 4, encode(_INFER)) + _anywhere(WINDOW_UPDATE, 0, bytes(4))),
    "streams past the limit": many(_anywhere(HEADERS, 4, encode(_INFER))),
    "continuations without an end": frame(HEADERS, 0, 1, BLOCK) + frame(CONTINUATION, 0, 1) * 1500,
    "continuations of one byte": frame(HEADERS, 0, 1, b"\x00\x7f\x80\x3f") + frame(CONTINUATION, 0, 1, b"a") * 1500,
    "large continuations": frame(HEADERS, 0, 1, BLOCK) + frame(CONTINUATION, 0, 1, bytes(9000)) * 10,
    "many settings in one frame": frames.settings(*[(frames.INITIAL_WINDOW_SIZE, 65535)] * 2700) * 20,
    "windows that shrink and grow": OPEN_CALL + (
        frames.settings((frames.INITIAL_WINDOW_SIZE, 0)) + frames.settings((frames.INITIAL_WINDOW_SIZE, 65535))) * 1500,
    "pings that are answers": frame(PING, 1, 0, bytes(8)) * 1500,
    "data after the end of its stream": OPEN_CALL + frame(DATA, 1, 1, bytes(5)) + frame(PRIORITY, 0, 3, bytes(5)) * 1500,
}  # fmt: skip

# Each costs its stream alone: the code of its `RST_STREAM`.
RESETS = {
    "a stream's window opened by nothing": (OPEN_CALL + frames.window_update(1, 0), 1),
    "a stream's window that overflows": (OPEN_CALL + frames.window_update(1, (1 << 31) - 1), 3),
    "trailers that do not end": (OPEN_CALL + frame(HEADERS, 4, 1, encode([(b"a", b"b")])), 1),
    "trailers with a path": (OPEN_CALL + frame(HEADERS, 5, 1, BLOCK), 1),
}  # fmt: skip


def get(path: bytes = b"/v2", *more: tuple[bytes, bytes], method: bytes = b"GET") -> Fields:
    return [
        (b":method", method), (b":scheme", b"http"), (b":path", path), (b":authority", b"127.0.0.1"), *more,
    ]  # fmt: skip


def _without(name: bytes) -> Fields:
    return [field for field in get() if field[0] != name]


def _but(name: bytes, value: bytes) -> Fields:
    return [(key, value if key == name else text) for key, text in get()]


# Header fields of a request without a body: the HTTP status of the answer.
HEADS = {
    "a name in capitals": (get(b"/v2", (b"Upper", b"x")), 400),
    "an empty name": (get(b"/v2", (b"", b"x")), 400),
    "a name with a blank": (get(b"/v2", (b"a b", b"x")), 400),
    "a name with a colon": (get(b"/v2", (b"a:b", b"x")), 400),
    "a name with CR LF": (get(b"/v2", (b"a\r\nb", b"x")), 400),
    "a name that is not ASCII": (get(b"/v2", (b"\xe4", b"x")), 400),
    "a value with CR LF": (get(b"/v2", (b"a", b"x\r\ny: z")), 400),
    "a value with a NUL": (get(b"/v2", (b"a", b"x\0")), 400),
    "a value with LF": (get(b"/v2", (b"a", b"x\ny")), 400),
    "a value that begins with a blank": (get(b"/v2", (b"a", b" x")), 400),
    "a value that ends in a tab": (get(b"/v2", (b"a", b"x\t")), 400),
    "a pseudo field after another": ([(b"a", b"b"), *get()], 400),
    "two paths": ([*get(), (b":path", b"/")], 400),
    "two methods": ([*get(), (b":method", b"POST")], 400),
    "two authorities": ([*get(), (b":authority", b"127.0.0.1")], 400),
    "a status in a request": ([*get(), (b":status", b"200")], 400),
    "an extended CONNECT": ([*get(), (b":protocol", b"websocket")], 400),
    "an unknown pseudo field": ([*get(), (b":evil", b"1")], 400),
    "no method": (_without(b":method"), 400),
    "no path": (_without(b":path"), 400),
    "no scheme": (_without(b":scheme"), 400),
    "no authority": (_without(b":authority"), 400),
    "nothing at all": ([(b"a", b"b")], 400),
    "a method with a blank": (_but(b":method", b"PO ST"), 400),
    "a method with CR LF": (_but(b":method", b"GET\r\nA: b"), 400),
    "a path that is empty": (_but(b":path", b""), 400),
    "a path without a slash": (_but(b":path", b"v2"), 400),
    "a path with a blank": (_but(b":path", b"/v2 HTTP/1.1"), 400),
    "a path with CR LF": (_but(b":path", b"/v2\r\nHost: evil"), 400),
    "a path that is a URL": (_but(b":path", b"http://evil.example/"), 400),
    "an unknown scheme": (_but(b":scheme", b"gopher"), 400),
    "a scheme with CR LF": (_but(b":scheme", b"http\r\nA: b"), 400),
    "an empty authority": (_but(b":authority", b""), 400),
    "a host beside another authority": (get(b"/v2", (b"host", b"evil.example")), 400),
    "a connection field": (get(b"/v2", (b"connection", b"close")), 400),
    "a coding field": (get(b"/v2", (b"transfer-encoding", b"chunked")), 400),
    "an upgrade": (get(b"/v2", (b"upgrade", b"h2c")), 400),
    "a keep-alive": (get(b"/v2", (b"keep-alive", b"5")), 400),
    "a proxy's connection": (get(b"/v2", (b"proxy-connection", b"close")), 400),
    "te of gzip": (get(b"/v2", (b"te", b"gzip")), 400),
    "a length of letters": (get(b"/v2", (b"content-length", b"abc")), 400),
    "a length with a sign over HTTP/2": (get(b"/v2", (b"content-length", b"+5")), 400),
    "two lengths over HTTP/2": (get(b"/v2", (b"content-length", b"0"), (b"content-length", b"0")), 400),
    "two origins over HTTP/2": (get(b"/v2", (b"origin", b"http://a"), (b"origin", b"http://b")), 400),
    "two keys over HTTP/2": (get(b"/v2", (b"authorization", b"a"), (b"authorization", b"b")), 400),
    "120 fields": (get(b"/v2", *[(b"a%d" % n, b"b") for n in range(120)]), 431),
    "a field of 16 KiB": (get(b"/v2", (b"a", b"b" * 16300)), 431),
    "CONNECT": ([(b":method", b"CONNECT"), (b":authority", b"evil.example:443")], 405),
    "a foreign authority": (_but(b":authority", b"evil.example"), 421),
    "an authority that contains ours": (_but(b":authority", b"127.0.0.1.evil.example"), 421),
    "an authority with a user": (_but(b":authority", b"127.0.0.1@evil.example"), 421),
    "a foreign page over HTTP/2": (get(b"/v2", (b"origin", b"https://evil.example")), 403),
    "a page without origin over HTTP/2": (get(b"/v2", (b"origin", b"null")), 403),
    "a path that climbs over HTTP/2": (get(b"/v2/../../etc/passwd"), 404),
    "an unknown model over HTTP/2": (get(b"/v2/models/other"), 404),
    "an unknown version over HTTP/2": (get(b"/v2/models/mlp/versions/9"), 404),
    "every path": (get(b"*", method=b"OPTIONS"), 404),
    "a wrong method over HTTP/2": (get(b"/v2/models/mlp", method=b"DELETE"), 405),
    "a TRACE over HTTP/2": (get(b"/v2", method=b"TRACE"), 405),
    "a compressed body over HTTP/2": (get(b"/predict", (b"content-encoding", b"gzip"), method=b"POST"), 415),
    "a photo over HTTP/2": (get(b"/predict", (b"content-type", b"image/png"), method=b"POST"), 415),
    "petabytes over HTTP/2": (get(b"/predict", (b"content-length", b"999999999999999"), method=b"POST"), 413),
    "an empty body over HTTP/2": (get(b"/predict", method=b"POST"), 400),
    "a header length over HTTP/2": (
        get(b"/v2/models/mlp/infer", (b"inference-header-content-length", b"-1"), method=b"POST"), 400),
    "a gRPC method without gRPC": (get(b"/inference.GRPCInferenceService/ModelInfer", method=b"POST"), 415),
    "gRPC in JSON": (
        get(b"/inference.GRPCInferenceService/ModelInfer", (b"content-type", b"application/grpc+json"), method=b"POST"), 415),
    "gRPC by GET": (get(b"/inference.GRPCInferenceService/ModelInfer", (b"content-type", b"application/grpc")), 405),
    "gRPC for browsers": (get(b"/predict", (b"content-type", b"application/grpc-web"), method=b"POST"), 415),
}  # fmt: skip

# The same, made of bytes: compression that bombs.
BOMBS = {
    # one field of 4000 bytes, 3700 times by its index: 15 MB of header
    "a bomb of one field": (b"\x40\x01a\x7f\xa1\x1e" + b"b" * 4000, b"\xbe" * 3700, 431),
    "a bomb of empty fields": (b"\x40\x01a\x00", b"\xbe" * 16000, 431),
    "a bomb of fixed fields": (b"", b"\x90" * 16000, 431),
}
