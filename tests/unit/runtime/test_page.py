"""The page as a server gives it: headers that close it, facts that come with a key."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from runtime.app import App, Limits
from runtime.errors import BadRequest
from runtime.options import ServeOptions
from runtime.page import Page
from runtime.server import Server
from runtime.signature import Signature
from tests.unit.runtime.live_server import BATCH, make_release, serving_model, tensor

if TYPE_CHECKING:
    from pathlib import Path

HTML = (
    '<!doctype html><meta http-equiv="Content-Security-Policy" '
    'content="default-src &#x27;none&#x27;; connect-src &#x27;self&#x27;">'
)
X, Y = tensor("x", "float32", BATCH, 64), tensor("y", "float32", BATCH, 10)
METADATA = {"engine": "e", "engine_version": "1", "provider": "p", "precision": "fp32"}


class Release:
    """A release in a folder, of which only the model's texts matter."""

    def __init__(self, folder: Path, **model: Any) -> None:
        self.folder = str(folder)
        signature = {"inputs": [X], "outputs": [Y]}
        self.manifest = {
            "name": "m", "version": "1.0.0", "target": {"name": "t"}, "server": {"metrics": False},
            "model": {"signature": signature, **model}, "bodies": {"text/csv": {}},
        }  # fmt: skip

    def path(self, name: str) -> str:
        return f"{self.folder}/{name}"


def open_page(folder: Path, **model: Any) -> Page:
    release = Release(folder, **model)
    return Page(release, Signature(release.manifest["model"]["signature"]), Limits(1, 2))


def facts(page: Page, *, ready: bool = True) -> Any:
    import json

    return json.loads(page.describe(METADATA, ready=ready).body)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "server").mkdir()
    (tmp_path / "server" / "page.html").write_text(HTML)
    return tmp_path


def test_the_page_goes_out_with_its_own_policy_and_into_no_frame(folder: Path) -> None:
    answer = open_page(folder).show()
    assert answer.body == HTML.encode()
    lines = answer.fields.decode().split("\r\n")
    assert lines[0] == "Content-Type: text/html; charset=utf-8"
    assert lines[1] == (
        "Content-Security-Policy: default-src 'none'; connect-src 'self'; frame-ancestors 'none'"
    )
    assert {"X-Frame-Options: DENY", "Referrer-Policy: same-origin"} <= set(lines)


@pytest.mark.parametrize("content", [None, "<!doctype html>no policy"])
def test_a_page_that_is_missing_or_open_is_a_404(folder: Path, content: str | None) -> None:
    path = folder / "server" / "page.html"
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(BadRequest, match=r"page.html`") as caught:
        open_page(folder).show()
    assert caught.value.status == 404


def test_the_facts_say_what_is_served_and_who_answers_now(folder: Path) -> None:
    page = open_page(folder)
    found = facts(page)
    assert found["inputs"] == [
        {"name": "x", "dtype": "float32", "datatype": "FP32", "shape": [BATCH, 64]}
    ]
    assert found["routes"] == {"predict": True, "openapi": True, "metrics": False}
    assert found["bodies"] == ["text/csv"]
    assert found["limits"] == {"json_bytes": 1, "binary_bytes": 2}
    assert found["engine"] == {"name": "e", "version": "1", "provider": "p", "precision": "fp32"}
    assert found["ready"] is True
    assert facts(page, ready=False)["ready"] is False


def test_labels_are_read_from_their_files_and_left_out_where_one_is_missing(folder: Path) -> None:
    (folder / "labels.txt").write_text("cat\ndog\n")
    result = {"kind": "top_k", "scores": "y", "classes": "c", "labels": "labels.txt", "as": "w"}
    found = facts(open_page(folder, labels={"y": "labels.txt"}, results=[result]))
    assert found["labels"] == {"y": ["cat", "dog"]}
    assert found["results"] == [
        {"kind": "top_k", "scores": "y", "classes": "c", "labels": ["cat", "dog"]}
    ]
    assert facts(open_page(folder, labels={"y": "none.txt"}))["labels"] == {}


def test_a_server_gives_the_page_to_get_and_head_alone(
    folder: Path, small_models: Any, engine_library: Path
) -> None:
    release = make_release(
        folder, small_models["mlp"].path, engine_library, [X], [Y], page=True
    )  # fmt: skip
    with serving_model(release) as live, live.client() as client:
        reply = client.ask("GET", "/")
        assert reply.status == 200
        assert reply.fields["content-type"] == "text/html; charset=utf-8"
        assert reply.fields["cache-control"] == "no-store"
        assert reply.body == HTML.encode()
        assert client.ask("HEAD", "/").fields["content-length"] == str(len(HTML))
        refused = client.ask("POST", "/", b"x")
        assert (refused.status, refused.fields["allow"]) == (405, "GET, HEAD")
        assert client.ask("GET", "/page.json").json()["name"] == "mlp.small-1"


def test_no_page_option_leaves_it_out(
    folder: Path, small_models: Any, engine_library: Path
) -> None:
    class Engine:
        name = version = provider = precision = "none"

    release = make_release(folder, small_models["mlp"].path, engine_library, [X], [Y], page=True)
    app = App(release, Engine())
    assert {"/", "/page.json"} <= set(app._paths)
    server = Server(app, ServeOptions(port=0, page=False))
    server.stop()
    server.run(lambda _: None)
    assert not {"/", "/page.json"} & set(app._paths)
    assert "/v2" in app._paths
