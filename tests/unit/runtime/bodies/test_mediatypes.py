"""A body's kind is what its `Content-Type` says, and JSON where it says nothing."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from runtime.errors import BadRequest
from runtime.mediatypes import BodyForms, kind_of_file, kind_of_type
from runtime.signature import Signature
from runtime.tensor import Tensor

ALL = ("image/jpeg", "image/png", "audio/wav", "text/csv", "text/plain")


@pytest.mark.parametrize(
    "content_type",
    ["", "application/json", "application/JSON; charset=utf-8", "text/json",
     "application/x-www-form-urlencoded", "application/problem+json"],
)  # fmt: skip
def test_json_is_json_by_every_name_of_it(content_type: str) -> None:
    assert kind_of_type(content_type, ALL) is None


@pytest.mark.parametrize(
    ("content_type", "kind"),
    [
        ("image/jpeg", "image/jpeg"), ("IMAGE/JPEG", "image/jpeg"), ("image/jpg", "image/jpeg"),
        ("image/png; a=b", "image/png"), ("image/x-png", "image/png"),
        ("audio/wav", "audio/wav"), ("audio/x-wav", "audio/wav"), ("audio/vnd.wave", "audio/wav"),
        ("text/csv", "text/csv"), ("text/csv; header=present; charset=UTF-8", "text/csv"),
        ('text/plain;charset="utf-8"', "text/plain"),
        ("text/plain; charset=us-ascii", "text/plain"),
    ],
)  # fmt: skip
def test_kinds_are_found_by_every_name_of_theirs(content_type: str, kind: str) -> None:
    assert kind_of_type(content_type, ALL) == kind


@pytest.mark.parametrize(
    "content_type",
    ["image/webp", "application/octet-stream", "multipart/form-data; boundary=x", "text/html",
     "nonsense", "image/", "*/*"],
)  # fmt: skip
def test_other_kinds_are_refused_and_those_served_are_named(content_type: str) -> None:
    with pytest.raises(BadRequest, match="is not served here") as caught:
        kind_of_type(content_type, ("image/png", "text/csv"))
    assert caught.value.status == 415
    assert caught.value.hint == "send `application/json` or `image/png` or `text/csv`"


def test_a_kind_that_this_model_does_not_take_is_refused() -> None:
    with pytest.raises(BadRequest, match="`Content-Type: image/png` is not served"):
        kind_of_type("image/png", ())


@pytest.mark.parametrize("charset", ["iso-8859-1", "utf-16", "utf-7", "x" * 500, ""])
def test_other_character_sets_are_refused(charset: str) -> None:
    with pytest.raises(BadRequest, match=r"`charset=.*` is not served here") as caught:
        kind_of_type(f"text/csv; charset={charset}", ALL)
    assert (caught.value.status, caught.value.hint) == (415, "send UTF-8")
    assert len(caught.value.message) < 100


def test_files_are_known_by_the_end_of_their_names() -> None:
    for name, kind in (
        ("a.JPG", "image/jpeg"), ("a.b.jpeg", "image/jpeg"), ("/x.y/a.png", "image/png"),
        ("s.wav", "audio/wav"), ("t.csv", "text/csv"), ("t.txt", "text/plain"),
        ("t.npz", None), ("/x.png/t", None), ("png", None),
    ):  # fmt: skip
        assert kind_of_file(name) == kind


def test_texts_are_tokenized_within_the_bounds_of_json() -> None:
    ids = {"name": "ids", "dtype": "int64", "shape": [{"name": "n", "min": 1, "max": 4}, 2]}
    release = SimpleNamespace(manifest={"bodies": {"text/plain": {}}, "model": {}})
    seen: list[str] = []

    def tokenize(texts: list[str]) -> dict[str, Tensor]:
        seen.extend(texts)
        return {"ids": Tensor("int64", (len(texts), 2), bytes(16 * len(texts)))}

    forms = BodyForms(
        release, Signature({"inputs": [ids], "outputs": []}), tokenize, most_bytes=64,
        most_text_bytes=1000,
    )  # fmt: skip
    assert forms.choose("application/json; charset=utf-8") is None
    form = forms.choose("text/plain; charset=utf-8")
    assert form is not None
    assert form.most_bytes == 1000
    request = form.decode("grüß\nyou\n".encode())
    assert seen == ["grüß", "you"]
    assert request.feeds["ids"].shape == (2, 2)
    with pytest.raises(BadRequest, match="5 texts where the model takes 4"):
        form.decode(b"a\n" * 5)
