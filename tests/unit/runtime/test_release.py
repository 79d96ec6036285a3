"""A release is opened only whole, from a folder or, once unpacked, from the cache."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import runtime
from packager.bundle.archive import Entry, write_archive
from runtime import release as module
from runtime.errors import InputOutputFault, IntegrityFault, UsageFault
from runtime.release import open_release, unpack, verify_release
from tests.unit.runtime.small_manifest import MANIFEST

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    path = tmp_path / "m.edgepack"
    write_archive(
        path,
        MANIFEST,
        [
            Entry(path="__main__.py", source=b"print('hello')\n"),
            Entry(path="lib/e.so", source=b"\x7fELF" + bytes(70_000), mode=0o755, compress=True),
            Entry(path="model/m.onnx", source=b"weights"),
            Entry(path="model/deep/x", source=b""),
        ],
    )
    return path


@pytest.fixture
def folder(bundle: Path, tmp_path: Path) -> Path:
    unpack(str(bundle), str(tmp_path / "release"))
    return tmp_path / "release"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "edgepack" / "releases"


def test_an_unpacked_release_verifies_under_any_umask(bundle: Path, tmp_path: Path) -> None:
    for mask in (0o077, 0o000):
        old = os.umask(mask)
        try:
            unpack(str(bundle), str(tmp_path / str(mask)))
        finally:
            os.umask(old)
        verify_release(str(tmp_path / str(mask)))


def test_unpacking_leaves_only_the_folder(bundle: Path, tmp_path: Path) -> None:
    unpack(str(bundle), str(tmp_path / "a" / "b"))
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["b"]


def test_an_empty_folder_may_be_filled_and_no_other(bundle: Path, tmp_path: Path) -> None:
    empty, full = tmp_path / "empty", tmp_path / "full"
    empty.mkdir()
    unpack(str(bundle), str(empty))
    verify_release(str(empty))
    full.mkdir()
    (full / "mine").touch()
    with pytest.raises(UsageFault, match="is not empty") as caught:
        unpack(str(bundle), str(full))
    assert caught.value.exit_code == 2
    assert [p.name for p in full.iterdir()] == ["mine"]
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("full/mine", "link"):
        with pytest.raises(UsageFault, match="is no folder"):
            unpack(str(bundle), str(tmp_path / name))


def test_a_damaged_bundle_leaves_no_folder(bundle: Path, tmp_path: Path) -> None:
    data = bytearray(bundle.read_bytes())
    data[-30] ^= 1
    bundle.write_bytes(data)
    with pytest.raises(IntegrityFault):
        unpack(str(bundle), str(tmp_path / "out"))
    assert {p.name for p in tmp_path.iterdir()} <= {"m.edgepack", "cache"}


def _append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


def _flip(path: Path) -> None:
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])


def _hard_link(path: Path) -> None:
    os.link(path, path.parent.parent.parent / "second")


def _symlink(path: Path) -> None:
    copy = path.parent.parent.parent / "copy"
    shutil.move(path, copy)
    path.symlink_to(copy)


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "flipped": (lambda f: _flip(f / "model/m.onnx"), "`model/m.onnx` differs"),
    "longer": (lambda f: _append(f / "model/m.onnx"), "`model/m.onnx` differs"),
    "emptied": (lambda f: (f / "lib/e.so").write_bytes(b""), "`lib/e.so` differs"),
    "missing": (lambda f: (f / "model/m.onnx").unlink(), "`model/m.onnx` is missing"),
    "renamed": (lambda f: (f / "model/m.onnx").rename(f / "model/n.onnx"), "`model/n.onnx` is not"),
    "added": (lambda f: (f / "extra.py").touch(), "`extra.py` is not in the manifest"),
    "added deep": (lambda f: (f / "model/deep/y").touch(), "`model/deep/y` is not in the"),
    "added folder": (lambda f: (f / "model/none").mkdir(), "`model/none` is not in the manifest"),
    "compiled": (lambda f: (f / "__pycache__").mkdir(), "`__pycache__` is not in the manifest"),
    "re-moded": (lambda f: (f / "lib/e.so").chmod(0o644), "`lib/e.so` has mode 644, not 755"),
    "setuid": (lambda f: (f / "lib/e.so").chmod(0o4755), "has mode 4755, not 755"),
    "open folder": (lambda f: (f / "model").chmod(0o777), "`model` has mode 777, not 755"),
    "symlinked": (lambda f: _symlink(f / "model/m.onnx"), "`model/m.onnx` is a symbolic link"),
    "folder symlinked": (lambda f: _symlink(f / "model/deep"), "`model/deep` is a symbolic link"),
    "hard-linked": (lambda f: _hard_link(f / "model/m.onnx"), "has a second name"),
    "a folder for a file": (
        lambda f: ((f / "model/m.onnx").unlink(), (f / "model/m.onnx").mkdir()),
        "`model/m.onnx` is not in the manifest",
    ),
    "a pipe for a file": (
        lambda f: ((f / "model/m.onnx").unlink(), os.mkfifo(f / "model/m.onnx")),
        "`model/m.onnx` is not in the manifest",
    ),
    "manifest flipped": (lambda f: _flip(f / "manifest.json"), "manifest.json"),
    "digest flipped": (lambda f: _flip(f / "manifest.sha256"), "digest of `manifest.json`"),
    "manifest missing": (lambda f: (f / "manifest.json").unlink(), "is no release"),
    "manifest a link": (lambda f: _symlink(f / "manifest.json"), "is no release"),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_every_change_of_a_release_is_named(folder: Path, kind: str) -> None:
    damage, words = FAULTS[kind]
    damage(folder)
    with pytest.raises(IntegrityFault) as caught:
        open_release(str(folder))
    assert words in caught.value.message
    assert caught.value.exit_code == 8


def test_every_flipped_byte_of_every_file_of_a_release_is_detected(folder: Path) -> None:
    for path in [p for p in folder.rglob("*") if p.is_file() and p.stat().st_size < 5_000]:
        data = path.read_bytes()
        for index in range(len(data)):
            path.write_bytes(data[:index] + bytes([data[index] ^ 0x10]) + data[index + 1 :])
            with pytest.raises(IntegrityFault):
                verify_release(str(folder))
        path.write_bytes(data)
    verify_release(str(folder))


def test_a_bundle_is_unpacked_once_into_the_cache(bundle: Path, cache: Path) -> None:
    with open_release(str(bundle)) as first:
        assert first.folder == str(cache / first.digest)
        assert Path(first.path("model/m.onnx")).read_bytes() == b"weights"
        inode = Path(first.folder).stat().st_ino
    with open_release(str(bundle)) as second:
        assert Path(second.folder).stat().st_ino == inode
    assert {p.name for p in cache.iterdir()} == {first.digest, first.digest + ".lock"}


def test_a_damaged_cached_release_is_redone(bundle: Path, cache: Path) -> None:
    folder = Path(open_release(str(bundle)).folder)
    _flip(folder / "model/m.onnx")
    assert Path(open_release(str(bundle)).path("model/m.onnx")).read_bytes() == b"weights"
    shutil.rmtree(folder / "model")
    verify_release(open_release(str(bundle)).folder)
    (folder / "manifest.json").write_bytes(b"{}")
    verify_release(open_release(str(bundle)).folder)
    assert len(list(cache.iterdir())) == 2


def test_processes_that_start_together_share_one_release(bundle: Path, cache: Path) -> None:
    opened: list[str] = []
    threads = [
        threading.Thread(target=lambda: opened.append(open_release(str(bundle)).folder))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(opened) == 6
    assert len(set(opened)) == 1
    assert len(list(cache.iterdir())) == 2


def test_a_start_waits_for_the_one_that_unpacks(bundle: Path, cache: Path) -> None:
    folder = Path(open_release(str(bundle)).folder)
    with (cache / (folder.name + ".lock")).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code = (
            f"import sys; sys.path.append({str(Path(runtime.__file__).parents[1])!r})\n"
            "from runtime.release import open_release\n"
            f"print(open_release({str(bundle)!r}).folder)\n"
        )
        child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(0.5)
        fcntl.flock(lock, fcntl.LOCK_UN)
        assert child.communicate(timeout=30)[0].strip() == str(folder)


def _unusable(kind: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind == "a file":
        cache.parent.parent.write_text("in the way")
    elif kind == "no home":
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    elif kind == "relative":
        monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    elif kind == "someone's":
        cache.mkdir(parents=True)
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    elif kind == "open to all":
        cache.mkdir(parents=True)
        cache.chmod(0o777)


@pytest.mark.parametrize("kind", ["a file", "no home", "relative", "someone's", "open to all"])
def test_without_a_cache_of_our_own_a_private_folder_lasts_as_long_as_the_release(
    bundle: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    _unusable(kind, cache, monkeypatch)
    with open_release(str(bundle)) as release:
        folder = Path(release.folder)
        assert folder.is_relative_to(tmp_path / "tmp")
        assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o700
        verify_release(str(folder))
    assert list((tmp_path / "tmp").iterdir()) == []


def test_nothing_at_the_path_is_an_input_output_fault(tmp_path: Path) -> None:
    with pytest.raises(InputOutputFault, match="no such file") as caught:
        open_release(str(tmp_path / "none.edgepack"))
    assert caught.value.exit_code == 10


def test_an_interruption_while_unpacking_leaves_nothing(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(folder: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("runtime.archive.sync_folder", interrupt)
    with pytest.raises(KeyboardInterrupt):
        unpack(str(bundle), str(tmp_path / "out"))
    assert {p.name for p in tmp_path.iterdir()} <= {"m.edgepack", "cache"}


def test_the_compiled_main_that_cpython_writes_is_passed_over_only_by_itself(folder: Path) -> None:
    compiled = folder / "__pycache__"
    compiled.mkdir()
    (compiled / "__main__.cpython-311.pyc").write_bytes(b"")
    with pytest.raises(IntegrityFault, match="__pycache__"):
        verify_release(str(folder))
    verify_release(str(folder), True)
    (compiled / "evil.pyc").write_bytes(b"")
    with pytest.raises(IntegrityFault, match="evil"):
        verify_release(str(folder), True)
    (compiled / "evil.pyc").unlink()
    module.forget_compiled_main(str(folder))
    verify_release(str(folder))
