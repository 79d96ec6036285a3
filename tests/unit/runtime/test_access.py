"""Which addresses others reach, which names and origins are ours."""

from __future__ import annotations

import pytest

from runtime.access import Access, check_exposure, is_loopback
from runtime.errors import BadRequest, UsageFault
from runtime.http1 import parse_head
from runtime.options import ServeOptions


def head(host: str, **fields: str) -> bytes:
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
    return "\r\n".join(["GET / HTTP/1.1", f"Host: {host}", *lines]).encode()


def status(access: Access, host: str, **fields: str) -> int:
    try:
        access.check(parse_head(head(host, **fields)))
    except BadRequest as fault:
        return fault.status
    return 200


@pytest.mark.parametrize(
    ("address", "is_ours"),
    [
        ("127.0.0.1", True), ("127.9.9.9", True), ("localhost", True), ("LOCALHOST", True),
        ("::1", True), ("/run/x.sock", True), ("0.0.0.0", False), ("::", False), ("", False),  # noqa: S104
        ("192.0.2.1", False), ("127.0.0.1.example", False), ("example.com", False),
        ("2001:db8::1", False), ("1", False),
    ],
)  # fmt: skip
def test_only_this_machine_reaches_loopback(address: str, is_ours: bool) -> None:
    assert is_loopback(address) is is_ours


def test_a_wide_address_needs_tls_or_the_word() -> None:
    wide = ServeOptions(host="192.0.2.1")
    for options in (
        wide._replace(tls_cert="c"),
        wide._replace(tls_cert="c", keys="k"),
        wide._replace(insecure=True),
        ServeOptions(keys="k"),
    ):
        check_exposure(options)
    for options in (wide, wide._replace(keys="k"), wide._replace(keys="k", insecure=True)):
        with pytest.raises(UsageFault) as caught:
            check_exposure(options)
        assert "--tls-cert" in (caught.value.hint or "")


def test_a_socket_that_was_handed_over_counts_where_it_listens() -> None:
    with pytest.raises(UsageFault, match=r"`192\.0\.2\.1` can be reached"):
        check_exposure(ServeOptions(), "192.0.2.1")
    check_exposure(ServeOptions(host="192.0.2.1"), "127.0.0.1")


def test_names_that_were_given_are_ours() -> None:
    access = Access("127.0.0.1", names=("Cam.example.com", "*.lan", "2001:db8::7"))
    for host in (
        "cam.example.com",
        "CAM.example.com:8443",
        "a.lan",
        "[2001:db8::7]:1",
        "localhost",
    ):
        assert status(access, host) == 200
    for host in ("lan", ".lan", "a.b.lan", "x.cam.example.com", "cam.example.com.evil", "[::2]"):
        assert status(access, host) == 421


def test_over_tls_its_own_pages_are_https() -> None:
    own = {"Origin": "http://localhost:8443"}
    assert status(Access("127.0.0.1"), "localhost:8443", **own) == 200
    secure = Access("127.0.0.1", secure=True)
    assert status(secure, "localhost:8443", **own) == 403
    assert status(secure, "localhost:8443", Origin="https://localhost:8443") == 200


def test_origins_are_compared_whole() -> None:
    access = Access("127.0.0.1", origins=("https://a.example", "http://b.example:80"))
    assert status(access, "localhost", Origin="https://a.example") == 200
    assert status(access, "localhost", Origin="http://b.example") == 200
    for origin in (
        "http://a.example", "https://a.example:444", "https://a.example.evil", "https://xa.example",
        "https://A.example", "null", "", "file://", "https://b.example",
    ):  # fmt: skip
        assert status(access, "localhost", Origin=origin) == 403


@pytest.mark.parametrize(
    "origin",
    ["*", "null", "https://", "https://a.example/", "https://a.example/x", "HTTPS://a.example",
     "https://A.example", "ftp://a.example", "https://*.example", "https://a.example:port",
     "https://a.example\r\nX: y", "https://a.example:99999", "https://a.example:0"],
)  # fmt: skip
def test_what_is_no_origin_is_refused(origin: str) -> None:
    with pytest.raises(UsageFault, match="is no origin"):
        Access("127.0.0.1", origins=(origin,))


@pytest.mark.parametrize("name", ["", "a b", "a/b", "a:b", "*", "*.*.lan", "a..b", "http://a"])
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(UsageFault, match="is no host name"):
        Access("127.0.0.1", names=(name,))


def test_only_a_preflight_of_a_listed_page_is_answered_here() -> None:
    access = Access("127.0.0.1", origins=("https://a.example",))
    asked = {"Origin": "https://a.example", "Access_Control_Request_Method": "POST"}

    def answer(method: str, **fields: str) -> bytes | None:
        block = head("localhost", **fields).replace(b"GET", method.encode(), 1)
        found = access.answer_preflight(parse_head(block))
        return found and found.fields

    assert b"Access-Control-Allow-Methods" in (answer("OPTIONS", **asked) or b"")
    private = answer("OPTIONS", **asked, Access_Control_Request_Private_Network="true")
    assert b"Access-Control-Allow-Private-Network: true" in (private or b"")
    assert answer("POST", **asked) is None
    assert answer("OPTIONS", Origin="https://a.example") is None
    assert answer("OPTIONS", **{**asked, "Origin": "https://b.example"}) is None
    assert Access("127.0.0.1").cors_fields(parse_head(head("localhost", **asked))) == b""
