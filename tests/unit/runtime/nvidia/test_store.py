"""Engines are kept whole or not at all, found only undamaged, and swept when they are old."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from runtime.errors import InputOutputFault, IntegrityFault
from runtime.nvidia.fingerprint import digest
from runtime.nvidia.store import FORGOTTEN_S, EngineStore, open_store
from tests.unit.runtime.nvidia.simulated_maker import FACTS, SOFT

KEY = digest(FACTS)


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def store(tmp_path: Path, said: list[str]) -> EngineStore:
    return EngineStore(str(tmp_path / "store"), said.append)


def build(store: EngineStore, data: bytes = b"engine", key: str = KEY) -> str:
    folder = store.build_folder(key)
    for name, content in (("engine", data), ("timing.cache", b"timings")):
        (Path(folder) / name).write_bytes(content)
    return folder


def keep(store: EngineStore, data: bytes = b"engine", **changes: Any) -> str:
    facts = {**FACTS, **changes}
    key = digest(facts)
    return store.keep(key, build(store, data, key), facts, soft=SOFT)


def test_a_kept_engine_is_found_with_all_that_is_known_of_it(store: EngineStore) -> None:
    assert store.find(KEY) is None
    path = keep(store)
    assert store.find(KEY) == path
    assert Path(path).read_bytes() == b"engine"
    entry = store.entry(KEY)
    assert entry is not None
    assert entry["sha256"] == hashlib.sha256(b"engine").hexdigest()
    assert (entry["size"], entry["facts"], entry["soft"]) == (6, FACTS, SOFT)
    assert stat.S_IMODE(Path(store.folder).stat().st_mode) == 0o700
    cache = store.timing_cache(FACTS, {})
    assert cache is not None
    assert Path(cache).read_bytes() == b"timings"


def test_an_engine_read_ahead_is_not_read_again(
    store: EngineStore, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    path = Path(keep(store))
    again = EngineStore(store.folder, said.append)
    again.check_ahead()
    for thread, _ in again._ahead.values():
        thread.join()
    monkeypatch.setattr("runtime.nvidia.store.digest_file", lambda path: 1 / 0)
    assert again.find(KEY) == str(path)
    monkeypatch.undo()
    # only once: what is damaged later is seen
    path.write_bytes(b"damage")
    assert again.find(KEY) is None
    keep(store)
    path.write_bytes(b"damage")
    again.check_ahead()
    assert again.find(KEY) is None
    EngineStore(store.folder + "-empty").check_ahead()


def test_a_new_engine_takes_the_place_of_the_old_one(store: EngineStore) -> None:
    old = keep(store, b"old")
    store.remember_check(KEY, store.entry(KEY)["sha256"], {"min_cosine": 1.0})
    new = keep(store, b"new")
    assert (store.find(KEY), Path(old).exists()) == (new, False)
    # the check was of the other one
    assert store.checked(KEY, store.entry(KEY)["sha256"]) is None


def test_an_engine_must_be_what_its_builder_wrote(store: EngineStore) -> None:
    with pytest.raises(IntegrityFault, match="the engine has changed since it was built"):
        store.keep(KEY, build(store), FACTS, sha256="0" * 64)
    with pytest.raises(IntegrityFault, match="facts do not give the fingerprint"):
        store.keep(KEY, build(store), {**FACTS, "sparse": True})
    assert store.find(KEY) is None


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda path: path.write_bytes(b"enginE"), "its file differs from what was kept"),
        (lambda path: path.write_bytes(b"eng"), "its file has 3 bytes where 6 were kept"),
        (lambda path: path.write_bytes(b""), "its file has 0 bytes where 6 were kept"),
        (lambda path: path.unlink(), "its file is missing"),
        (lambda path: (path.unlink(), path.symlink_to("/etc/hostname")), "its file is missing"),
        (
            lambda path: (path.parent / "entry.json").write_text('{"engine": "../../x"}'),
            "its record does not fit",
        ),
    ],
)
def test_a_damaged_engine_is_removed_with_a_sentence(
    store: EngineStore, said: list[str], damage: Any, sentence: str, tmp_path: Path
) -> None:
    damage(tmp_path / "store" / KEY / Path(keep(store)).name)
    assert store.find(KEY) is None
    assert said == [f"the kept engine {KEY[:12]}… was damaged and is removed: {sentence}"]
    assert list((tmp_path / "store" / KEY).glob("*.engine")) == []
    assert store.find(KEY) is None
    assert len(said) == 1
    keep(store)
    assert store.find(KEY) is not None


@pytest.mark.parametrize("text", ["", "[]", "{", "\x00", "[" * 100_000])
def test_a_damaged_record_is_removed_with_a_sentence(
    store: EngineStore, said: list[str], text: str, tmp_path: Path
) -> None:
    store.reject(KEY, "slow")
    (tmp_path / "store" / KEY / "rejected.json").write_text(text)
    assert store.rejected(KEY) is None
    assert said == ["the record `rejected.json` of a kept engine was damaged and is removed"]
    assert not (tmp_path / "store" / KEY / "rejected.json").exists()


def test_a_rejection_outlives_the_process_until_it_is_forgiven(store: EngineStore) -> None:
    keep(store)
    store.reject(KEY, "it takes 20 ms")
    again = EngineStore(store.folder)
    assert again.rejected(KEY) == "it takes 20 ms"
    assert again.find(KEY) is None
    assert again.count(KEY, "failed_builds") == 1
    again.forgive(KEY)
    assert again.rejected(KEY) is None
    assert again.count(KEY, "failed_builds") == 1


def test_counts_outlive_the_process(store: EngineStore) -> None:
    assert [store.count(KEY, "a"), EngineStore(store.folder).count(KEY, "a")] == [1, 2]
    assert store.count(KEY, "b") == 1
    store.clear(KEY, "a")
    assert (store.count(KEY, "a"), store.count(KEY, "b")) == (1, 2)


def test_timings_of_another_tensorrt_or_gpu_are_not_offered(store: EngineStore) -> None:
    keep(store)
    assert store.timing_cache({**FACTS, "precision": "int8-static"}, SOFT) is not None
    for name in ("module", "version", "capabilities", "platform"):
        assert store.timing_cache({**FACTS, name: "other"}, SOFT) is None


def test_timings_of_another_driver_or_power_mode_are_not_offered(store: EngineStore) -> None:
    keep(store)
    assert store.timing_cache(FACTS, dict.fromkeys(SOFT)) is not None
    for name in SOFT:
        assert store.timing_cache(FACTS, {**SOFT, name: "other"}) is None


def test_one_process_at_a_time_builds_an_engine(store: EngineStore) -> None:
    asked = []

    def wait() -> bool:
        asked.append(1)
        return len(asked) < 3

    with store.building(KEY, wait) as first:
        assert first
        with EngineStore(store.folder).building(KEY, wait) as second:
            assert not second
    assert len(asked) == 3
    with store.building(KEY, lambda: False) as third:
        assert third


def test_the_newest_other_engine_stays_and_older_ones_go(
    store: EngineStore, tmp_path: Path
) -> None:
    keys = []
    for number in range(4):
        keep(store, version=f"10.{number}")
        key = digest({**FACTS, "version": f"10.{number}"})
        keys.append(key)
        record = tmp_path / "store" / key / "entry.json"
        record.write_text(json.dumps({**json.loads(record.read_text()), "made": number}))
    with store.building(keys[0], lambda: False):
        EngineStore(store.folder).sweep(keys[3])
    # the first is being built by somebody
    assert [store.find(key) is not None for key in keys] == [True, False, True, True]
    newest = store.newest()
    assert newest is not None
    assert newest["facts"]["version"] == "10.3"


def test_engines_of_bundles_that_nobody_starts_are_swept(tmp_path: Path) -> None:
    parent = tmp_path / "engines"
    mine, old, recent = (EngineStore(str(parent / (letter * 64))) for letter in "abc")
    for each in (mine, old, recent):
        keep(each)
    (parent / "notes").mkdir()
    long_ago = parent.stat().st_mtime - FORGOTTEN_S - 60
    for folder in (mine.folder, old.folder, str(parent / "notes")):
        os.utime(folder, (long_ago, long_ago))
    mine.sweep(KEY)
    assert sorted(path.name for path in parent.iterdir()) == ["a" * 64, "c" * 64, "notes"]


def test_a_store_that_cannot_be_written_says_where(store: EngineStore, tmp_path: Path) -> None:
    folder = build(store)
    place = tmp_path / "store" / KEY
    (place / "entry.json").mkdir()
    with pytest.raises(InputOutputFault, match="engines cannot be kept in") as fault:
        store.keep(KEY, folder, FACTS)
    assert fault.value.hint == (
        "make room there, or set XDG_CACHE_HOME to a folder that can be written"
    )


@dataclass
class Release:
    folder: str
    digest: str = "d" * 64


def test_the_store_lies_in_the_cache_under_the_bundles_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store = open_store(Release(str(tmp_path / "release")), print)
    assert store.folder == str(tmp_path / "cache" / "edgepack" / "engines" / ("d" * 64))
    store.close()
    assert Path(store.folder).is_dir()


def test_the_store_lies_beside_the_release_where_there_is_no_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store = open_store(Release(str(tmp_path / "release")), print)
    assert store.folder == str(tmp_path / "release.engines")


def test_a_store_that_others_can_write_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    for place in (tmp_path / "cache/edgepack/engines" / ("d" * 64), tmp_path / "release.engines"):
        place.mkdir(parents=True)
        place.chmod(0o777)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    store = open_store(Release(str(tmp_path / "release")), said.append)
    assert Path(store.folder).name.startswith("edgepack-engines-")
    place = tmp_path / "cache/edgepack/engines" / ("d" * 64)
    assert said == [f"engines cannot be kept in `{place}`: each start builds its own"]
    store.close()
    assert not Path(store.folder).exists()
