"""The engine's library is the one the target names, wherever it comes from."""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
import threading
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from packager.bundle import library as module
from packager.bundle.library import FetchedLibrary, fetch_library
from packager.console import Silent
from packager.errors import BackendMissing, InputOutputError, IntegrityError
from packager.target import EngineLibrary, find_target

if TYPE_CHECKING:
    from collections.abc import Mapping

CONTENT = b"\x7fELF" + bytes(100_000) + b"the engine"


class Counting(Silent):
    """Counts the stages that were begun."""

    def __init__(self) -> None:
        self.stages: list[str] = []

    def stage(self, text: str) -> None:
        self.stages.append(text)


def make_wheel(folder: Path, files: Mapping[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tiny_engine-1.0-cp311-cp311-manylinux_2_28_aarch64.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, data in files.items():
            wheel.writestr(zipfile.ZipInfo(name), data)
        info = "tiny_engine-1.0.dist-info"
        wheel.writestr(
            zipfile.ZipInfo(f"{info}/METADATA"),
            "Metadata-Version: 2.1\nName: tiny-engine\nVersion: 1.0\n",
        )
        wheel.writestr(
            zipfile.ZipInfo(f"{info}/WHEEL"),
            "Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: cp311-cp311-manylinux_2_28_aarch64\n",
        )
    return path


@pytest.fixture
def wheelhouse(tmp_path: Path) -> Path:
    files = {"tiny/lib.so.1": CONTENT, "tiny/LICENSE": b"free\n", "tiny/Notices.txt": b"more\n"}
    return make_wheel(tmp_path / "wheels", files).parent


@pytest.fixture
def wanted(wheelhouse: Path) -> EngineLibrary:
    (wheel,) = wheelhouse.iterdir()
    return EngineLibrary(
        package="tiny-engine", version="1.0", python_tag="cp311",
        platform="manylinux_2_28_aarch64",
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        member="tiny/lib.so.1", member_sha256=hashlib.sha256(CONTENT).hexdigest(),
        member_size=len(CONTENT), licenses=("tiny/LICENSE", "tiny/Notices.txt"),
    )  # fmt: skip


def fetch(wanted: EngineLibrary, tmp_path: Path, wheelhouse: Path | None) -> FetchedLibrary:
    return fetch_library(wanted, cache=tmp_path / "cache", wheelhouse=wheelhouse, reporter=Silent())


def test_a_wheelhouse_replaces_the_network(
    wanted: EngineLibrary, wheelhouse: Path, tmp_path: Path
) -> None:
    import lzma

    got = fetch(wanted, tmp_path, wheelhouse)
    assert got.path.read_bytes() == CONTENT
    assert lzma.decompress(got.xz_path.read_bytes()) == CONTENT
    assert {name: path.read_bytes() for name, path in got.licenses.items()} == {
        "LICENSE": b"free\n", "Notices.txt": b"more\n",
    }  # fmt: skip
    assert (got.sha256, got.size) == (wanted.member_sha256, len(CONTENT))


def test_the_second_time_everything_comes_from_the_cache(
    wanted: EngineLibrary, wheelhouse: Path, tmp_path: Path
) -> None:
    first = fetch(wanted, tmp_path, wheelhouse)
    reporter = Counting()
    again = fetch_library(wanted, cache=tmp_path / "cache", wheelhouse=None, reporter=reporter)
    assert again == first
    assert reporter.stages == []


@pytest.mark.parametrize("name", ["library.so", "library.so.xz", "LICENSE", "facts.json"])
@pytest.mark.parametrize("how", ["flip", "cut", "remove"])
def test_a_damaged_cache_is_redone(
    wanted: EngineLibrary, wheelhouse: Path, tmp_path: Path, name: str, how: str
) -> None:
    first = fetch(wanted, tmp_path, wheelhouse)
    path = first.path.parent / name
    data = path.read_bytes()
    if how == "remove":
        path.unlink()
    else:
        path.write_bytes(data[:-3] if how == "cut" else data[:-3] + b"!" + data[-2:])
    again = fetch(wanted, tmp_path, wheelhouse)
    assert again.path.read_bytes() == CONTENT
    assert path.read_bytes() == data
    assert len(list((tmp_path / "cache" / "engines").iterdir())) == 2


def test_builds_at_once_do_the_work_once(
    wanted: EngineLibrary, wheelhouse: Path, tmp_path: Path
) -> None:
    reporters = [Counting() for _ in range(4)]
    threads = [
        threading.Thread(
            target=fetch_library,
            args=(wanted,),
            kwargs={"cache": tmp_path / "cache", "wheelhouse": wheelhouse, "reporter": reporter},
        )
        for reporter in reporters
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(len(reporter.stages) for reporter in reporters) == 1


def test_a_wheel_with_another_digest_is_an_integrity_error(
    wanted: EngineLibrary, wheelhouse: Path, tmp_path: Path
) -> None:
    with pytest.raises(IntegrityError, match="is not the wheel that the target names") as caught:
        fetch(replace(wanted, wheel_sha256="0" * 64), tmp_path, wheelhouse)
    assert caught.value.exit_code == 8
    assert [p.suffix for p in (tmp_path / "cache" / "engines").iterdir()] == [".lock"]


def test_a_library_with_another_digest_or_size_is_an_integrity_error(
    wanted: EngineLibrary, wheelhouse: Path, tmp_path: Path
) -> None:
    for change in ({"member_sha256": "0" * 64}, {"member_size": 5}):
        with pytest.raises(IntegrityError, match="is not what the target names"):
            fetch(replace(wanted, **change), tmp_path, wheelhouse)
    with pytest.raises(IntegrityError, match="does not hold what the target names"):
        fetch(replace(wanted, member="tiny/other.so"), tmp_path, wheelhouse)


def test_a_wheelhouse_without_the_wheel_says_how_to_fetch_it(
    wanted: EngineLibrary, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(BackendMissing, match="has no wheel of tiny-engine") as caught:
        fetch(wanted, tmp_path, tmp_path / "empty")
    assert caught.value.exit_code == 4
    assert "pip download --no-deps" in str(caught.value.hint)
    assert wanted.wheel_sha256 in str(caught.value.hint)


def test_without_a_network_the_hint_is_a_wheelhouse(
    wanted: EngineLibrary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(BackendMissing, match="cannot be downloaded") as caught:
        fetch(wanted, tmp_path, None)
    assert caught.value.exit_code == 4
    assert "--wheelhouse DIR" in str(caught.value.hint)


def test_pip_finds_the_wheel_of_another_platform_by_its_hash(
    wanted: EngineLibrary, wheelhouse: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheelhouse))
    assert fetch(wanted, tmp_path, None).path.read_bytes() == CONTENT


def test_a_download_with_another_hash_is_an_integrity_error(
    wanted: EngineLibrary, wheelhouse: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheelhouse))
    with pytest.raises(IntegrityError, match="cannot be downloaded"):
        fetch(replace(wanted, wheel_sha256="0" * 64), tmp_path, None)


def test_the_installed_package_is_used_when_it_has_the_very_library(
    wanted: EngineLibrary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    for name, data in (("__init__.py", b""), ("lib.so.1", CONTENT), ("LICENSE", b"free\n"),
                       ("Notices.txt", b"more\n")):  # fmt: skip
        (site / "tiny_engine").mkdir(parents=True, exist_ok=True)
        (site / "tiny_engine" / name).write_bytes(data)
    known = site / "tiny_engine-1.0.dist-info"
    known.mkdir()
    (known / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-engine\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    installed = replace(
        wanted, member="tiny_engine/lib.so.1",
        licenses=("tiny_engine/LICENSE", "tiny_engine/Notices.txt"),
    )  # fmt: skip
    assert fetch(installed, tmp_path, None).path.read_bytes() == CONTENT
    assert "tiny_engine" not in sys.modules
    (site / "tiny_engine" / "lib.so.1").write_bytes(CONTENT[:-1] + b"!")
    with pytest.raises(BackendMissing):
        fetch(installed, tmp_path / "second", None)


def test_the_installed_engine_is_the_one_of_the_x86_target(engine_library: Path) -> None:
    wanted = find_target("cpu-x86_64").engine.library
    if engine_library.name != Path(wanted.member).name:
        pytest.skip("another version of onnxruntime is installed")
    assert hashlib.sha256(engine_library.read_bytes()).hexdigest() == wanted.member_sha256


def test_an_unwritable_cache_is_an_input_output_error(
    wanted: EngineLibrary, wheelhouse: Path, tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("in the way")
    with pytest.raises(InputOutputError, match="cannot be written") as caught:
        fetch(wanted, tmp_path, wheelhouse)
    assert caught.value.exit_code == 10
    assert "--cache-dir" in str(caught.value.hint)


def test_older_tags_of_the_platform_are_asked_for_as_well(wanted: EngineLibrary) -> None:
    words = module._pip_words(wanted, Path("r"), Path("d"))
    platforms = [b for a, b in itertools.pairwise(words) if a == "--platform"]
    assert platforms == [
        f"{tag}_aarch64"
        for tag in ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014")
    ]
    assert json.dumps(words).count("abi3") == 1
