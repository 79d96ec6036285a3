"""Retention and deletion: what is deleted is gone, provably, whatever interrupts it."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import Any

import pytest

from runtime.errors import InputOutputFault, IntegrityFault, UsageFault
from runtime.privacy import retention
from runtime.privacy.folder import Clock, Folder
from runtime.privacy.keys import CaptureKey
from runtime.privacy.records import REQUEST, Record, pack_record, unpack_record
from runtime.privacy.retention import (
    begin_segment,
    begun_before,
    delete,
    delete_request,
    expired,
    finish,
    verify,
)
from runtime.privacy.segments import SegmentReader
from runtime.tensor import Tensor

KEY = CaptureKey(bytes(range(32)))
OTHER = CaptureKey(bytes(32))
DAY = 86400.0


def write(folder: Folder, *requests: str, created: float = 1000.0, keep_s: float = DAY) -> str:
    head = {"created": int(created), "wall": int(created), "keep_s": keep_s, "model": "m"}
    name, writer, _ = begin_segment(folder, folder.state(), head, KEY)
    for request in requests:
        fields = {"time": created, "id": f"id-{request}", "request": request}
        tensor = Tensor("uint8", (1,), b"\x07")
        writer.append(pack_record(Record(REQUEST, fields, {"x": tensor}, {})))
    writer.close()
    return name


def requests_in(folder: Folder) -> list[str]:
    found = []
    for segment in folder.segments():
        with SegmentReader(folder.file(segment.name)) as reader:
            found += [unpack_record(data).fields["request"] for data in reader.read(KEY.wrapping)]
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(str(tmp_path / "kept"))


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "RELEASE_S", 0.3)


def at(folder: Folder, name: str = "deletions.log") -> Path:
    return Path(folder.path, name)


def faults(folder: Folder, key: CaptureKey | None = KEY) -> list[str]:
    found: list[str] = verify(folder, key)["faults"]
    return found


def test_a_folder_is_made_for_its_owner_alone(folder: Folder) -> None:
    assert Path(folder.path).stat().st_mode & 0o777 == 0o700
    assert verify(folder, None)["segments"] == 0
    assert faults(folder) == []


def test_a_folder_that_others_reach_into_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o750)
    with pytest.raises(UsageFault, match="others can reach into"):
        Folder(str(tmp_path))
    with pytest.raises(UsageFault, match="there is no folder for kept requests") as caught:
        Folder(None)
    assert "StateDirectory=" in (caught.value.hint or "")
    (tmp_path / "file").touch(mode=0o600)
    with pytest.raises((UsageFault, InputOutputFault)):
        Folder(str(tmp_path / "file"))


def test_what_is_too_old_is_found_by_the_shorter_of_both_rules(folder: Folder) -> None:
    early = write(folder, "a", created=1000, keep_s=500)
    late = write(folder, "b", created=1000, keep_s=5000)
    assert [one.name for one in expired(folder, 1499, 9000)] == []
    assert [one.name for one in expired(folder, 1500, 9000)] == [early]
    assert [one.name for one in expired(folder, 1600, 600)] == [early, late]


def test_deleting_leaves_nothing_and_a_signed_line(folder: Folder) -> None:
    name = write(folder, "a", "b")
    stays = write(folder, "c")
    done = delete(folder, folder.segments()[:1], "before", KEY)
    assert done == ((name,), 2, ())
    assert [one.name for one in folder.segments()] == [stays]
    assert faults(folder) == []
    entry = json.loads(at(folder).read_text())
    assert (entry["why"], entry["records"], entry["segments"][0]["name"]) == ("before", 2, name)
    assert len(entry["mac"]) == 64
    assert faults(folder, OTHER)[0] == "line 1 of `deletions.log` was not signed with this key"


def test_the_key_of_a_deleted_segment_is_overwritten_before_its_name_goes(folder: Folder) -> None:
    name = write(folder, "a")
    copy = os.open(folder.file(name), os.O_RDONLY)
    with SegmentReader(folder.file(name)) as reader:
        offset = reader.key_offset
    assert delete(folder, folder.segments(), "all", None).records is None
    assert os.pread(copy, 60, offset) == bytes(60)
    os.close(copy)
    assert not at(folder, name).exists()


def test_a_file_that_somebody_still_writes_is_told(folder: Folder) -> None:
    name = write(folder, "a")
    held = os.open(folder.file(name), os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_SH)
    done = delete(folder, folder.segments(), "all", KEY)
    assert done.remains == (f"a process still has `{name}` open",)
    os.close(held)


def test_one_request_goes_and_all_others_stay(folder: Folder) -> None:
    write(folder, "a", "b", "a")
    write(folder, "c")
    write(folder, "a")
    done = delete_request(folder, "a", KEY)
    assert (len(done.segments), done.records, done.remains) == (2, 3, ())
    assert sorted(requests_in(folder)) == ["b", "c"]
    assert faults(folder) == []
    # its time counts from when it was first kept
    assert len(expired(folder, 1000 + DAY, 10 * DAY)) == 2
    log = at(folder).read_text()
    assert '"a"' not in log
    done = delete_request(folder, "id-c", KEY)
    assert done.records == 1
    assert requests_in(folder) == ["b"]
    assert delete_request(folder, "nobody", KEY).records == 0
    assert faults(folder) == []


def test_a_segment_that_cannot_be_read_keeps_a_request_from_being_proved_gone(
    folder: Folder,
) -> None:
    name = write(folder, "a")
    write(folder, "b")
    with at(folder, name).open("r+b") as stream:
        stream.seek(-3, os.SEEK_END)
        stream.write(b"xyz")
    with pytest.raises(IntegrityFault, match="damaged at record"):
        delete_request(folder, "b", KEY)
    assert delete(folder, folder.segments(), "all", KEY).remains == ()
    assert faults(folder) == []


def test_segments_from_before_a_moment_are_found_by_the_earlier_of_both_clocks(
    folder: Folder,
) -> None:
    write(folder, "a", created=1000)
    head = {"created": 5000, "wall": 1500, "keep_s": DAY, "model": "m"}
    begin_segment(folder, folder.state(), head, KEY)[1].close()
    assert [one.number for one in begun_before(folder, 1000)] == []
    assert [one.number for one in begun_before(folder, 1001)] == [0]
    assert [one.number for one in begun_before(folder, 1501)] == [0, 1]


class _CutError(BaseException):
    """Power is lost."""


def _calls() -> tuple[str, ...]:
    return ("rename", "unlink", "fsync", "fdatasync", "replace", "pwrite", "write", "open")


@pytest.mark.parametrize("what", ["request", "all"])
def test_a_deletion_that_is_cut_anywhere_is_whole_or_never_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Cut before every call to the kernel in turn, then look at what a later start finds."""
    outcomes = set()
    for cut in range(1000):
        folder = Folder(str(tmp_path / str(cut)))
        write(folder, "a", "b")
        write(folder, "c")
        write(folder, "a")
        count = 0

        def counted(real: Any, at: int = cut) -> Any:
            def call(*arguments: Any, **named: Any) -> Any:
                nonlocal count
                count += 1
                if count > at:
                    raise _CutError
                return real(*arguments, **named)

            return call

        with monkeypatch.context() as patch:
            for name in _calls():
                patch.setattr(f"os.{name}", counted(getattr(os, name)))
            try:
                if what == "all":
                    delete(folder, folder.segments(), "all", KEY)
                else:
                    delete_request(folder, "a", KEY)
                ended = True
            except _CutError:
                ended = False
        finish(folder)
        assert faults(folder) == [], cut
        left = sorted(requests_in(folder))
        outcomes.add(tuple(left))
        before, after = (["a", "a", "b", "c"], [] if what == "all" else ["b", "c"])
        assert left in (before, after), cut
        logged = at(folder).exists() and at(folder).read_text() != ""
        assert logged == (left == after), cut
        if ended:
            break
    assert cut > 15
    assert len(outcomes) == 2


def test_what_vanishes_without_a_deletion_is_told(folder: Folder) -> None:
    name = write(folder, "a")
    write(folder, "b")
    at(folder, name).unlink()
    assert faults(folder) == ["segment 0 is missing and no deletion is on record"]


def test_what_comes_back_after_its_deletion_is_told_and_deleted_again(folder: Folder) -> None:
    name = write(folder, "a")
    data = at(folder, name).read_bytes()
    delete(folder, folder.segments(), "all", KEY)
    at(folder, name).write_bytes(data)
    assert faults(folder) == [f"`{name}` was deleted and is there"]
    finish(folder)
    assert faults(folder) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda lines: lines[1:], "line 1 of `deletions.log` does not follow the one before"),
        (lambda lines: [lines[0], lines[2]], "line 2 of `deletions.log` does not follow"),
        (lambda lines: lines[:2], "`deletions.log` has lost lines: 2 of 3 are there"),
        (lambda _: [], "`deletions.log` has lost lines: 0 of 3 are there"),
        (
            lambda lines: [lines[0].replace("before", "expired"), *lines[1:]],
            "line 1 of `deletions.log` was changed",
        ),
    ],
)
def test_a_changed_log_does_not_prove_anything(folder: Folder, change: Any, said: str) -> None:
    for request in "abc":
        write(folder, request)
        delete(folder, folder.segments(), "before", KEY)
    assert verify(folder, KEY)["deletions"] == 3
    lines = at(folder).read_text().splitlines()
    at(folder).write_text("".join(line + "\n" for line in change(lines)))
    assert faults(folder)[0].startswith(said)


def test_a_line_that_was_never_finished_does_not_count(folder: Folder) -> None:
    write(folder, "a")
    delete(folder, folder.segments(), "all", KEY)
    with at(folder).open("a") as stream:
        stream.write('{"half": ')
    assert faults(folder) == []
    write(folder, "b")
    delete(folder, folder.segments(), "all", KEY)
    assert faults(folder) == []
    assert verify(folder, KEY)["deletions"] == 2


def test_a_changed_record_and_a_stranger_are_told(folder: Folder) -> None:
    name = write(folder, "a")
    with at(folder, name).open("r+b") as stream:
        stream.seek(-40, os.SEEK_END)
        stream.write(b"\xff")
    at(folder, "notes.txt").touch()
    said = faults(folder)
    assert said[0] == "`notes.txt` is none of ours"
    assert "is damaged at record" in said[1]
    assert faults(folder, None) == ["`notes.txt` is none of ours"]


def test_a_number_is_never_used_twice_even_when_the_state_is_lost(folder: Folder) -> None:
    write(folder, "a")
    second = write(folder, "b")
    at(folder, "state.json").unlink()
    assert folder.state().next == 2
    at(folder, "state.json").write_text('{"clock": "x", "next": 1, "deletions": 0, "head": ""}')
    assert folder.state().next == 2
    assert second.startswith("0000000001-")


def test_time_never_goes_backwards() -> None:
    wall, steady = [1000.0], [0.0]
    clock = Clock(900, lambda: wall[0], lambda: steady[0])
    assert clock.now() == 1000
    wall[0], steady[0] = 10.0, 60.0
    assert clock.now() == 1060
    wall[0], steady[0] = 5000.0, 70.0
    assert clock.now() == 5000
    later = Clock(5000, lambda: 20.0, lambda: steady[0])
    steady[0] = 100.0
    assert later.now() == 5030


def test_only_one_process_at_a_time_changes_a_folder(folder: Folder) -> None:
    with (
        folder.locked(1),
        pytest.raises(InputOutputFault, match="another process holds"),
        folder.locked(0.1),
    ):
        pass
    with folder.locked(0.1):
        pass
