"""Keys are made, shown once, and revoked; the file is never half-written."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from runtime.closed.keys import load_keys
from runtime.closed.newkey import add, revoke
from runtime.closed.rates import Limits
from runtime.errors import InputOutputFault, UsageFault
from runtime.main import main
from tests.unit.runtime.closed.test_keys import NOON

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[4]


def test_a_new_key_is_printed_alone_and_good(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "keys.json"
    argv = ["new-key", "camera-7", "--file", str(path), "--scopes", "infer,metrics", "--days", "2"]
    assert main([*argv, "--rate", "50", "--concurrency", "4"], None) == 0
    told = capsys.readouterr()
    key = told.out.removesuffix("\n")
    assert len(key) == 47
    assert key.startswith("epk_")
    assert "`camera-7` may use it until 20" in told.err
    keys = load_keys(str(path))
    found = keys.find(key)
    assert found is not None
    assert (found.name, found.scopes) == ("camera-7", {"infer", "metrics"})
    assert found.limits == Limits(50.0, 50.0, 4)
    assert found.is_valid(keys.now())
    assert found.is_valid(keys.now() + 47 * 3600)
    assert not found.is_valid(keys.now() + 49 * 3600)
    assert key not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_second_key_of_a_name_leaves_the_first_good(tmp_path: Path) -> None:
    path = str(tmp_path / "keys.json")
    first, _ = add(path, "a")
    second, until = add(path, "a", days=1, clock=lambda: NOON)
    assert until == "2026-11-24T12:00:00Z"
    keys = load_keys(path)
    assert [keys.find(key) is not None for key in (first, second)] == [True, True]


def test_revoking_takes_every_key_of_a_name_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "keys.json")
    gone = [add(path, "a")[0] for _ in range(2)]
    kept, _ = add(path, "b")
    assert main(["new-key", "--revoke", "a", "--file", path], None) == 0
    told = capsys.readouterr()
    assert told.out == ""
    assert "revoked 2 of `a`" in told.err
    keys = load_keys(path)
    assert [keys.find(key) for key in gone] == [None, None]
    assert keys.find(kept) is not None
    with pytest.raises(UsageFault, match="has no key of `a`") as caught:
        revoke(path, "a")
    assert caught.value.hint == "it has b"


def test_what_else_the_file_says_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_text('{"keys": [], "anonymous": {"scopes": ["infer"], "rate": 1}}')
    path.chmod(0o640)
    add(str(path), "a", clock=lambda: NOON)
    document = json.loads(path.read_text())
    assert document["anonymous"] == {"scopes": ["infer"], "rate": 1}
    assert document["written"] == "2026-11-23T12:00:00Z"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert os.listdir(tmp_path) == ["keys.json"]  # noqa: PTH208 - nothing else is left behind


def test_a_link_to_the_file_stays_a_link(tmp_path: Path) -> None:
    real, link = tmp_path / "real.json", tmp_path / "keys.json"
    real.write_text('{"keys": []}')
    link.symlink_to(real)
    key, _ = add(str(link), "a")
    assert link.is_symlink()
    assert load_keys(str(real)).find(key) is not None


def test_keys_made_at_the_same_time_are_all_there(tmp_path: Path) -> None:
    path = str(tmp_path / "keys.json")
    made: list[str] = []
    threads = [
        threading.Thread(target=lambda n=n: made.append(add(path, f"caller-{n}")[0]))
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    keys = load_keys(path)
    assert len(made) == 8
    assert all(keys.find(key) for key in made)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "needs a name"),
        (["a", "--revoke", "b", "--file", "k"], "needs a name"),
        (["a"], "needs the keys file"),
        (["a b", "--file", "k"], "`a b` cannot be a key's name"),
        (["anonymous", "--file", "k"], "`anonymous` cannot be a key's name"),
        (["a", "--file", "k", "--scopes", "infer,root"], "there is no scope `root`"),
        (["a", "--file", "k", "--scopes", ","], "there is no scope ``"),
        (["a", "--file", "k", "--days", "0"], "`--days` cannot be `0`"),
        (["a", "--file", "k", "--rate", "-1"], "`--rate` cannot be `-1`"),
        (["a", "b", "--file", "k"], "does not take `b`"),
    ],
)
def test_what_cannot_be_is_refused(
    argv: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(["new-key", *argv], None) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("change", [add, revoke])
def test_a_wrong_file_is_left_as_it_is(
    tmp_path: Path, change: Callable[[str, str], object]
) -> None:
    path = tmp_path / "keys.json"
    path.write_text('{"keys": [5]}')
    with pytest.raises(UsageFault, match="is wrong: an entry has no `name`"):
        change(str(path), "a")
    assert path.read_text() == '{"keys": [5]}'
    with pytest.raises(InputOutputFault, match="No such file"):
        change(str(tmp_path / "none" / "keys.json"), "a")


def test_a_disk_that_is_full_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "keys.json"
    key, _ = add(str(path), "a")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(InputOutputFault, match="No space left"):
        add(str(path), "b")
    monkeypatch.undo()
    assert load_keys(str(path)).find(key) is not None
    assert [file.name for file in tmp_path.iterdir()] == ["keys.json"]


def test_it_works_under_every_cpython(old_python: Path, tmp_path: Path) -> None:
    program = "import sys; from runtime.main import main; sys.exit(main(sys.argv[1:], None))"
    argv = [old_python, "-c", program, "new-key", "a", "--file", tmp_path / "keys.json"]
    done = subprocess.run(
        argv, cwd=ROOT, env={"PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert load_keys(str(tmp_path / "keys.json")).find(done.stdout.strip()) is not None
