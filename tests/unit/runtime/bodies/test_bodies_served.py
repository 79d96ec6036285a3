"""`/predict` of a running server takes photos, sounds and tables as they are."""

from __future__ import annotations

import json
import threading
import zlib
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from runtime.app import App, Limits
from runtime.engine import open_engine
from tests.unit.runtime.bodies import photos, sounds
from tests.unit.runtime.live_server import BATCH, make_release, serving, tensor

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.unit.runtime.live_server import LiveServer, Reply

LIBRARIES = {"image/jpeg": "lib/libturbojpeg.so", "image/png": "lib/libpng16.so"}
SIDES = (photos.side("height", 4), photos.side("width", 4))


@dataclass(frozen=True, kw_only=True)
class Release:
    """An unpacked release, as far as an app looks at it."""

    folder: str
    manifest: dict[str, Any]
    libraries: dict[str, str]

    def path(self, name: str) -> str:
        return self.libraries[name]


def write(path: Path, nodes: list[Any], inputs: list[Any], outputs: list[Any]) -> Path:
    graph = helper.make_graph(nodes, "g", inputs, outputs, [])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.save(model, path)
    return path


def value(name: str, kind: int, *dims: Any) -> Any:
    return helper.make_tensor_value_info(name, kind, list(dims))


@contextmanager
def served(
    model: Path, library: Path, signature: tuple[list[Any], list[Any]],
    bodies: dict[str, Any], limits: Limits | None = None, **parts: Any,
) -> Iterator[LiveServer]:  # fmt: skip
    plain = make_release(model.parent, model, library, *signature)
    manifest = {**plain.manifest, "bodies": bodies}
    manifest["model"] = {**manifest["model"], **parts}
    libraries = {LIBRARIES[kind]: str(photos.library(kind)) for kind in bodies if kind in LIBRARIES}
    release = Release(folder=plain.folder, manifest=manifest, libraries=libraries)
    engine = open_engine(release)
    try:
        with serving(App(release, engine, limits=limits)) as live:
            yield live
    finally:
        engine.close()


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory, engine_library: Path) -> Iterator[LiveServer]:
    """Serve the mean colour of a photo, whose label says which channel is the strongest."""
    folder = tmp_path_factory.mktemp("colours")
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["f", "axes"], ["mean"], keepdims=0),
        helper.make_node("Constant", [], ["axes"], value_ints=[1, 2]),
        helper.make_node("ArgMax", ["mean"], ["best"], axis=1, keepdims=1),
    ]
    nodes.insert(0, nodes.pop(2))
    model = write(
        folder / "m.onnx", nodes, [value("x", TensorProto.UINT8, "n", "h", "w", 3)],
        [value("mean", TensorProto.FLOAT, "n", 3), value("best", TensorProto.INT64, "n", 1)],
    )  # fmt: skip
    bodies = {kind: {"library": path} for kind, path in LIBRARIES.items()}
    with served(
        model, engine_library, ([tensor("x", "uint8", BATCH, *SIDES, 3)],
        [tensor("mean", "float32", BATCH, 3), tensor("best", "int64", BATCH, 1)]), bodies,
        Limits(1 << 16, 1 << 20), images={"x": {"size": [8, 8]}},
    ) as live:  # fmt: skip
        yield live


def post(live: LiveServer, body: bytes, kind: str | None) -> Reply:
    with live.client() as client:
        fields = {} if kind is None else {"Content-Type": kind}
        return client.ask("POST", "/predict", body, fields)


@pytest.mark.parametrize("kind", ["image/jpeg", "image/png"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_photo_gets_the_answer_that_its_pixels_get(
    colours: LiveServer, kind: str, orientation: int
) -> None:
    exif = photos.with_orientation(orientation)
    content = photos.saved(photos.picture(width=20, height=12), kind[6:].upper(), exif=exif)
    answer = post(colours, content, kind)
    assert answer.status == 200, answer.body
    pixels = photos.pixels_of(photos.photo_decoder(kind)(content))
    asked = json.dumps({"data": pixels.tolist()}).encode()
    assert answer.body == post(colours, asked, "application/json").body
    mean = answer.json()["result"]["mean"]
    assert mean == [pytest.approx(channel) for channel in pixels.mean((1, 2)).tolist()]


def test_a_photo_in_chunks_is_taken_too(colours: LiveServer) -> None:
    content = photos.saved(photos.picture(width=20, height=12), "PNG")
    chunked = b"".join(
        b"%x\r\n%s\r\n" % (len(part), part)
        for part in (content[at : at + 99] for at in range(0, len(content), 99))
    )
    with colours.client() as client:
        client.send(
            b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/png\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n" + chunked + b"0\r\n\r\n"
        )
        assert client.read().body == post(colours, content, "image/png").body


@pytest.mark.parametrize(
    ("body", "kind", "status", "words"),
    [
        (b"\xff\xd8\xff", "image/jpeg", 400, "its JPEG header is not whole"),
        (b"{}", "image/jpeg", 400, "no JPEG file"),
        (b"{}", "image/png", 400, "no PNG file"),
        (b"x", "image/webp", 415, "send `application/json` or `image/jpeg` or `image/png`"),
        (b"x", "application/octet-stream", 415, "`Content-Type: application/octet-stream`"),
        (b"x", "text/csv", 415, "not served here"),
        (b"{}", None, 400, '{"data"'),
        (b"{}", "application/x-www-form-urlencoded", 400, '{"data"'),
        (photos.saved(photos.picture(width=3, height=9), "PNG"), "image/png", 400,
         "input `x` has size 3 in dimension 2"),
        (photos.png_file(photos.ihdr(4096, 4096), photos.chunk(b"IDAT", zlib.compress(b"")),
                         photos.chunk(b"IEND", b"")), "image/png", 413, "4096 × 4096"),
    ],
)  # fmt: skip
def test_other_bodies_are_refused_and_the_next_photo_is_answered(
    colours: LiveServer, body: bytes, kind: str | None, status: int, words: str
) -> None:
    answer = post(colours, body, kind)
    assert (answer.status, words in answer.error) == (status, True), answer.body
    good = photos.saved(photos.picture(width=8, height=8), "PNG")
    assert post(colours, good, "image/png").status == 200


def test_a_body_beyond_the_bound_is_refused_from_its_head(colours: LiveServer) -> None:
    with colours.client() as client:
        client.send(
            b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/jpeg\r\n"
            b"Content-Length: 2097153\r\n\r\n"
        )
        answer = client.read()
    assert answer.status == 413
    assert "2097152 are the limit" in answer.error


def test_photos_go_to_no_other_route(colours: LiveServer) -> None:
    content = photos.saved(photos.picture(width=8, height=8), "PNG")
    with colours.client() as client:
        answer = client.ask(
            "POST", "/v2/models/mlp.small-1/infer", content, {"Content-Type": "image/png"}
        )
    assert answer.status == 400


def test_a_file_is_never_decoded_in_the_loop_however_quick_those_before_it_were(
    colours: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = photos.saved(photos.picture("L", width=8, height=8), "PNG")
    for _ in range(20):
        assert post(colours, quick, "image/png").status == 200
    forms = colours.app._forms
    assert forms is not None
    decode, seen = forms._bodies.decode, []

    def watched(kind: str, body: bytes) -> Any:
        seen.append(threading.current_thread().name)
        return decode(kind, body)

    monkeypatch.setattr(forms._bodies, "decode", watched)
    for _ in range(20):
        assert post(colours, quick, "image/png").status == 200
    assert seen == ["edgepack-worker"] * 20


def test_sounds_and_tables_are_served(tmp_path: Path, engine_library: Path) -> None:
    rows = write(
        tmp_path / "rows.onnx", [helper.make_node("Neg", ["x"], ["y"])],
        [value("x", TensorProto.FLOAT, "n", 2)], [value("y", TensorProto.FLOAT, "n", 2)],
    )  # fmt: skip
    names = [tensor("x", "float32", BATCH, 2)], [tensor("y", "float32", BATCH, 2)]
    columns = {"x": {"names": ["b", "a"]}}
    with served(rows, engine_library, names, {"text/csv": {}}, columns=columns) as live:
        answer = post(live, b"a,b\n1,2\n3,4\n", "text/csv; charset=utf-8")
        assert answer.json() == {"result": [[-2, -1], [-4, -3]]}
        assert post(live, b"a,b\n1,two\n", "text/csv").error.startswith("line 2: `b` is no number")
        assert post(live, b"a,b\n", "text/csv; charset=latin-1").status == 415
        assert post(live, b"a", "audio/wav").status == 415
    samples = sounds.encoded(np.array([0.5, -0.25]), 3, 32)
    sound = sounds.wav(samples, kind=3, bits=32)
    audio = {"x": {"sample_rate": 16000, "window": None}}
    with served(rows, engine_library, names, {"audio/wav": {}}, audio=audio) as live:
        assert post(live, sound, "audio/wav").json() == {"result": [[-0.5, 0.25]]}
        assert "cut short" in post(live, sound[:-1], "audio/wav").error
