"""Compiled modules are kept for the next start, and used only where nobody else can write."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.unit.runtime.small_bundle import ROW, serving_process, write_bundle

if TYPE_CHECKING:
    from collections.abc import Callable

# Runs a release as `python3 RELEASE …` does, and tells on standard error what it compiles.
TOLD = """
import os, runpy, sys
def look(event, arguments):
    if event == "compile" and str(arguments[1]).startswith(sys.argv[0]):
        os.write(2, (arguments[1][len(sys.argv[0]):] + "\\n").encode())
sys.argv = sys.argv[1:]
sys.addaudithook(look)
runpy.run_path(sys.argv[0], run_name="__main__")
"""
# Before there is a cache to ask, and never kept.
ALWAYS = {"/__main__.py", "/runtime/__init__.py", "/runtime/codecache.py", "/server/app.py"}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, engine_library: Path) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundle") / "mlp.edgepack", engine_library)


@pytest.fixture(scope="module")
def unpacked(bundle: Path) -> Path:
    folder = bundle.with_name("release")
    subprocess.run([sys.executable, "-I", bundle, "unpack", folder], check=True)
    return folder


@pytest.fixture
def release(unpacked: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(unpacked, tmp_path / "release"))


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    path = tmp_path / "in.npz"
    np.savez(path, x=np.array([ROW], np.float32))
    return path


def run(
    release: Path, cache: Path, *words: str | Path, python: str | Path = sys.executable
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, "-I", "-c", TOLD, release, *words],
        env={**os.environ, "XDG_CACHE_HOME": str(cache)}, capture_output=True, text=True,
        check=False, timeout=60,
    )  # fmt: skip


def compiled_by(done: subprocess.CompletedProcess[str]) -> set[str]:
    assert done.returncode == 0, done.stderr
    return {line for line in done.stderr.splitlines() if line.endswith(".py")} - ALWAYS


def kept(cache: Path) -> list[Path]:
    return sorted((cache / "edgepack" / "compiled").glob("*"))


def test_what_one_run_compiled_the_next_takes_from_the_cache(
    release: Path, sample: Path, old_python: Path, tmp_path: Path
) -> None:
    words = ("predict", "--json", "-i", sample)
    first = run(release, tmp_path, *words, python=old_python)
    assert {"/runtime/main.py", "/runtime/release.py"} <= compiled_by(first)
    (file,) = kept(tmp_path)
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700
    again = run(release, tmp_path, *words, python=old_python)
    assert compiled_by(again) == set()
    assert again.stdout == first.stdout
    assert not list(release.rglob("__pycache__"))


def test_a_server_adds_the_modules_that_it_needs_besides(
    release: Path, sample: Path, tmp_path: Path
) -> None:
    run(release, tmp_path, "predict", "-i", sample)
    (file,) = kept(tmp_path)
    before = file.stat().st_size
    for _ in range(2):
        with serving_process(release, tmp_path):
            assert kept(tmp_path) == [file]
            assert file.stat().st_size > before
    assert compiled_by(run(release, tmp_path, "predict", "-i", sample)) == set()


def test_a_bundle_file_is_served_from_the_cache_too(
    bundle: Path, sample: Path, tmp_path: Path
) -> None:
    words = ("predict", "-i", sample)
    assert "/runtime/main.py" in compiled_by(run(bundle, tmp_path, *words))
    assert compiled_by(run(bundle, tmp_path, *words)) == set()


def test_a_changed_source_is_refused_though_its_old_code_is_kept(
    release: Path, sample: Path, tmp_path: Path
) -> None:
    run(release, tmp_path, "predict", "-i", sample)
    source = release / "runtime" / "plain.py"
    source.write_bytes(source.read_bytes().replace(b"a", b"b", 1))
    done = run(release, tmp_path, "predict", "-i", sample)
    assert done.returncode == 8
    assert "`runtime/plain.py` differs from the manifest" in done.stderr


def test_nothing_is_kept_of_a_release_that_is_refused(
    release: Path, sample: Path, tmp_path: Path
) -> None:
    (release / "model" / "model.onnx").write_bytes(b"")
    assert run(release, tmp_path, "predict", "-i", sample).returncode == 8
    assert kept(tmp_path) == []


@pytest.mark.parametrize("gone", ["manifest.sha256", "manifest.json"])
def test_a_release_without_its_digest_is_refused_as_before(
    release: Path, sample: Path, gone: str, tmp_path: Path
) -> None:
    (release / gone).unlink()
    done = run(release, tmp_path, "predict", "-i", sample)
    assert done.returncode == 8
    assert "Traceback" not in done.stderr


def test_another_release_in_the_same_place_is_compiled_anew(
    release: Path, sample: Path, engine_library: Path, tmp_path: Path
) -> None:
    run(release, tmp_path, "predict", "-i", sample)
    release.rename(tmp_path / "before")
    other = write_bundle(tmp_path / "other.edgepack", engine_library, version="1.3.0")
    subprocess.run([sys.executable, "-I", other, "unpack", release], check=True)
    assert "/runtime/main.py" in compiled_by(run(release, tmp_path, "predict", "-i", sample))
    assert len(kept(tmp_path)) == 2


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def link(file: Path) -> None:
    file.rename(file.parent.parent / "elsewhere")
    file.symlink_to(file.parent.parent / "elsewhere")


WAYS: dict[str, Callable[[Path], object]] = {
    "a flipped bit": flip,
    "cut short": lambda file: os.truncate(file, 1000),
    "empty": lambda file: os.truncate(file, 0),
    "a file that others write": lambda file: file.chmod(0o666),
    "a folder that others write": lambda file: file.parent.chmod(0o777),
    "a link": link,
    "a folder in its place": lambda file: (file.unlink(), file.mkdir()),
}
# Root alone can give files away.
if os.geteuid() == 0:
    WAYS["another's file"] = lambda file: os.chown(file, 12345, 12345)
    WAYS["another's folder"] = lambda file: os.chown(file.parent, 12345, 12345)


@pytest.mark.parametrize("way", WAYS)
def test_what_others_could_have_written_or_has_rotten_is_not_run(
    release: Path, sample: Path, way: str, tmp_path: Path
) -> None:
    run(release, tmp_path, "predict", "-i", sample)
    (file,) = kept(tmp_path)
    WAYS[way](file)
    assert "/runtime/main.py" in compiled_by(run(release, tmp_path, "predict", "-i", sample))


@pytest.mark.parametrize("words", [["verify"], ["detect"]])
def test_commands_that_judge_compile_what_lies_there(
    release: Path, sample: Path, words: list[str], tmp_path: Path
) -> None:
    run(release, tmp_path, "predict", "-i", sample)
    assert "/runtime/main.py" in compiled_by(run(release, tmp_path, *words))


def test_nothing_is_kept_under_the_option_that_says_so(
    release: Path, sample: Path, tmp_path: Path
) -> None:
    argv = [sys.executable, "-I", "-B", release, "predict", "-i", sample]
    subprocess.run(argv, env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)}, check=True)
    assert kept(tmp_path) == []


def test_where_nothing_can_be_kept_it_runs_all_the_same(
    release: Path, sample: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"")
    done = run(release, tmp_path / "file", "predict", "-i", sample)
    assert "/runtime/main.py" in compiled_by(done)


def test_releases_that_went_are_removed_in_time(
    release: Path, sample: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "edgepack" / "compiled"
    folder.mkdir(mode=0o700, parents=True)
    for number in range(12):
        (folder / str(number)).write_bytes(b"")
        os.utime(folder / str(number), (number, number))
    run(release, tmp_path, "predict", "-i", sample)
    names = {file.name for file in kept(tmp_path)}
    assert len(names) == 8
    assert {str(number) for number in range(5, 12)} <= names
