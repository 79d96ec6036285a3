"""The libraries that decode photos come by digest, with licence, or are said to be missing."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

from packager.bundle import image_library as module
from packager.bundle.image_library import fetch_image_libraries, image_libraries
from packager.bundle.library import FetchedLibrary
from packager.console import Silent
from packager.errors import BackendMissing, IntegrityError
from packager.target import all_targets, find_target

if TYPE_CHECKING:
    from pathlib import Path


class Notes(Silent):
    """A reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_every_target_has_a_library_for_both_kinds_of_photos() -> None:
    for target in all_targets():
        kinds = {wanted.kind: wanted for wanted in image_libraries(target.arch)}
        assert set(kinds) == {"image/jpeg", "image/png"}, target.name
        for wanted in kinds.values():
            source = wanted.library
            assert re.fullmatch(r"lib/lib[a-z0-9]+\.so", wanted.path)
            assert source.platform.endswith(target.arch)
            for digest in (source.wheel_sha256, source.member_sha256):
                assert re.fullmatch(r"[0-9a-f]{64}", digest)


def test_nothing_is_known_for_another_architecture() -> None:
    assert image_libraries("riscv64") == ()


def fetched(path: Path, licenses: dict[str, Path]) -> FetchedLibrary:
    return FetchedLibrary(path=path, xz_path=path, licenses=licenses, sha256="0" * 64, size=1)


def fetch(tmp_path: Path, *, must: bool = False, reporter: Any = None) -> Any:
    return fetch_image_libraries(
        find_target("cpu-arm64"), cache=tmp_path, wheelhouse=None,
        reporter=reporter or Silent(), must=must,
    )  # fmt: skip


def test_each_comes_with_a_licence_though_its_package_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "LICENSE"
    own.write_text("the package's own\n")

    def give(library: Any, **_: Any) -> FetchedLibrary:
        return fetched(tmp_path, {"LICENSE": own} if library.licenses else {})

    monkeypatch.setattr(module, "fetch_library", give)
    carried = {item.wanted.name: item for item in fetch(tmp_path)}
    assert set(carried) == {"libjpeg-turbo", "libpng"}
    assert carried["libpng"].licenses == {"LICENSE": own}
    (text,) = carried["libjpeg-turbo"].licenses.values()
    words = text.read_text()
    assert "based in part on the work of the Independent JPEG Group" in words
    assert "Modified (3-clause) BSD License" in words


def test_one_that_cannot_be_had_is_told_and_the_other_still_carried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def give(library: Any, **_: Any) -> FetchedLibrary:
        if library.package != "pillow":
            raise BackendMissing(f"{library.package} cannot be downloaded\n$ pip\n| no network")
        return fetched(tmp_path, {})

    monkeypatch.setattr(module, "fetch_library", give)
    notes = Notes()
    carried = fetch(tmp_path, reporter=notes)
    assert [item.wanted.kind for item in carried] == ["image/png"]
    (note,) = notes.notes
    assert note.startswith("`image/jpeg` bodies will not be served: libjpeg-turbo of the package")
    assert "turbojpeg-rpi cannot be downloaded" in note
    assert "pip" not in note
    assert "--wheelhouse" in note
    with pytest.raises(BackendMissing, match="turbojpeg-rpi cannot be downloaded"):
        fetch(tmp_path, must=True)


def test_a_library_of_another_digest_is_never_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def give(library: Any, **_: Any) -> FetchedLibrary:
        raise IntegrityError(f"`{library.member}` is not what the target names")

    monkeypatch.setattr(module, "fetch_library", give)
    with pytest.raises(IntegrityError, match="is not what the target names"):
        fetch(tmp_path)


def test_a_wheelhouse_without_the_wheels_says_how_to_fill_it(tmp_path: Path) -> None:
    with pytest.raises(BackendMissing, match=r"has no wheel of turbojpeg-rpi 0\.0\.3") as caught:
        fetch_image_libraries(
            find_target("cpu-arm64"), cache=tmp_path / "cache", wheelhouse=tmp_path,
            reporter=Notes(), must=True,
        )  # fmt: skip
    assert "pip download" in str(caught.value.hint)
