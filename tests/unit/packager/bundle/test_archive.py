"""The canonical zip is determined by its entries, and appears whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from packager.bundle import archive
from packager.bundle.archive import Entry, write_archive
from packager.errors import InputOutputError, UsageError

PYTHONS = ("3.8", "3.9", "3.10", "3.11", "3.12", "3.13")


def find_python(version: str) -> str:
    """Return an interpreter of a version, or skip."""
    import shutil

    roots = sorted(
        Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")).glob(f"versions/{version}.*")
    )
    found = next((str(root / "bin/python") for root in roots), None) or shutil.which(
        f"python{version}"
    )
    if found is None:
        pytest.skip(f"there is no CPython {version} here")
    return found


def entries() -> list[Entry]:
    return [
        Entry(path="b/z.txt", source=b"z"),
        Entry(path="__main__.py", source=b"import sys, a.mod\nprint(a.mod.VALUE, *sys.argv[1:])\n"),
        Entry(path="a/mod.py", source=b"VALUE = 'from the zip'\n"),
        Entry(path="a/__init__.py", source=b""),
        Entry(path="a.txt", source=b"between"),
        Entry(path="big", source=b"0123456789" * 10_000, compress=True),
        Entry(path="small", source=b"0" * 100, compress=True),
        Entry(path="noise", source=hashlib.shake_128(b"").digest(70_000), compress=True),
        Entry(path="run", source=b"#!", mode=0o755),
    ]


def test_the_same_entries_in_any_order_and_folder_give_the_same_bytes(tmp_path: Path) -> None:
    first, second = tmp_path / "a.edgepack", tmp_path / "other" / "b.edgepack"
    second.parent.mkdir()
    digest = write_archive(first, {"format": 1}, entries())
    assert write_archive(second, {"format": 1}, entries()[::-1]) == digest
    assert first.read_bytes() == second.read_bytes()


def test_the_order_is_manifest_then_main_then_paths(tmp_path: Path) -> None:
    write_archive(tmp_path / "x", {}, entries())
    with zipfile.ZipFile(tmp_path / "x") as bundle:
        names = bundle.namelist()
        assert names[:3] == ["manifest.json", "manifest.sha256", "__main__.py"]
        assert names[3:] == [
            "a.txt", "a/__init__.py", "a/mod.py", "b/z.txt", "big.xz", "noise", "run", "small",
        ]  # fmt: skip
        assert {info.compress_type for info in bundle.infolist()} == {0}
        assert {info.date_time for info in bundle.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert bundle.getinfo("run").external_attr >> 16 == 0o100755
        files = json.loads(bundle.read("manifest.json"))["files"]
    assert next(f for f in files if f["path"] == "big")["encoding"] == "xz"
    assert [f["path"] for f in files if "encoding" in f] == ["big"]


@pytest.mark.parametrize("version", PYTHONS)
def test_python_runs_the_zip_as_it_is(tmp_path: Path, version: str) -> None:
    write_archive(tmp_path / "x.edgepack", {}, entries())
    command = [find_python(version), "-I", str(tmp_path / "x.edgepack"), "word"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "from the zip word\n"


@pytest.mark.parametrize(
    "path",
    ["", "/etc/passwd", "../x", "a/../x", "a//b", "a/", "./a", "a\\b", "a\nb", "a\0b", "a\x7fb",
     "a/" + "n" * 256, "\ud800", "manifest.json", "MANIFEST.json", "manifest.sig"],
)  # fmt: skip
def test_an_unsafe_path_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(UsageError) as caught:
        write_archive(tmp_path / "x", {}, [Entry(path=path, source=b"")])
    assert caught.value.exit_code == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("one", "two"), [("a", "a"), ("a", "A"), ("straße", "STRASSE"), ("a", "a/b"), ("A/b", "a")]
)
def test_paths_that_collide_are_refused(tmp_path: Path, one: str, two: str) -> None:
    with pytest.raises(UsageError, match="collide"):
        write_archive(
            tmp_path / "x", {}, [Entry(path=one, source=b""), Entry(path=two, source=b"")]
        )


def test_a_compressed_name_cannot_collide_with_a_plain_one(tmp_path: Path) -> None:
    both = [Entry(path="a", source=bytes(70_000), compress=True), Entry(path="a.xz", source=b"")]
    with pytest.raises(UsageError, match="collide"):
        write_archive(tmp_path / "x", {}, both)


def test_a_ready_made_stream_gives_the_same_bundle(tmp_path: Path) -> None:
    content = bytes(100_000)
    with (tmp_path / "c.xz").open("w+b") as out:
        archive.compress_xz(content, out)
    (tmp_path / "c").write_bytes(content)
    write_archive(tmp_path / "x", {}, [Entry(path="c", source=content, compress=True)])
    ready = Entry(path="c", source=tmp_path / "c", xz_source=tmp_path / "c.xz")
    write_archive(tmp_path / "y", {}, [ready])
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()


def test_other_modes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has mode 4755"):
        write_archive(tmp_path / "x", {}, [Entry(path="a", source=b"", mode=0o4755)])


def test_a_missing_source_leaves_nothing_and_keeps_the_old_bundle(tmp_path: Path) -> None:
    out = tmp_path / "x.edgepack"
    out.write_bytes(b"old")
    with pytest.raises(InputOutputError, match="no such file"):
        write_archive(out, {}, [Entry(path="a", source=tmp_path / "nothing")])
    assert [p.name for p in tmp_path.iterdir()] == ["x.edgepack"]
    assert out.read_bytes() == b"old"


def test_a_source_that_changes_meanwhile_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"before")
    header = archive.local_header

    def change(name: str, crc: int, size: int) -> bytes:
        source.write_bytes(b"behind")
        return header(name, crc, size)

    monkeypatch.setattr(archive, "local_header", change)
    with pytest.raises(InputOutputError, match="changed while"):
        write_archive(tmp_path / "x", {}, [Entry(path="a", source=source)])
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


def test_an_interruption_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr(archive, "end_records", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_archive(tmp_path / "x", {}, entries())
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_an_input_output_error(tmp_path: Path) -> None:
    # RLIMIT_FSIZE makes the kernel refuse the write in mid-file, as a full disk does.
    code = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from packager.bundle.archive import Entry, write_archive\n"
        "from packager.errors import InputOutputError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "try:\n"
        "    write_archive(Path(sys.argv[1]), {}, [Entry(path='a', source=bytes(90_000))])\n"
        "except InputOutputError as fault:\n"
        "    print(fault.exit_code, fault.message, fault.hint)\n"
    )
    out = tmp_path / "x.edgepack"
    root = Path(archive.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code, str(out)], capture_output=True, text=True, check=True, cwd=root
    )
    assert done.stdout.startswith("10 ")
    assert "file too large" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_folder_is_an_input_output_error(tmp_path: Path) -> None:
    with pytest.raises(InputOutputError, match="no such file") as caught:
        write_archive(tmp_path / "nowhere" / "x", {}, entries())
    assert caught.value.exit_code == 10
