"""The host starts the runtime isolated, and hands on what it says as an error of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from packager.bundle import device
from packager.bundle.assemble import target_fields
from packager.console import Silent
from packager.errors import (
    EdgepackError,
    ExternalToolError,
    InputOutputError,
    IntegrityError,
    TargetError,
    UsageError,
)  # fmt: skip
from packager.process import Completed
from packager.target import all_targets
from runtime.detect import reasons_against as runtime_reasons_against

if TYPE_CHECKING:
    from pathlib import Path

    from packager.bundle.assemble import Bundle


def test_our_own_runtime_verifies_a_bundle_without_running_it(
    small_bundle: Bundle, tmp_path: Path
) -> None:
    done = device.run_runtime(
        ["verify", str(small_bundle.path), "--no-self-test", "--json"], cache_dir=tmp_path
    )
    assert json.loads(done.stdout)["digest"] == small_bundle.digest
    # Nothing was unpacked; our own modules are kept compiled for the next time.
    assert [path.name for path in tmp_path.iterdir()] == ["compiled"]


def test_a_damaged_bundle_is_an_integrity_error(small_bundle: Bundle, tmp_path: Path) -> None:
    data = bytearray(small_bundle.path.read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "x.edgepack").write_bytes(data)
    with pytest.raises(IntegrityError, match=r"lib/libonnxruntime\.so"):
        device.run_runtime(["verify", str(tmp_path / "x.edgepack")], cache_dir=tmp_path)


def test_the_bundles_own_runtime_unpacks_into_our_cache(
    small_bundle: Bundle, tmp_path: Path
) -> None:
    for cache in (tmp_path / "edgepack", tmp_path / "other"):
        done = device.run_runtime(
            ["verify", "--json"], bundle=small_bundle.path, cache_dir=cache, timeout_s=60
        )
        assert json.loads(done.stdout)["self_test"].startswith("passed")
    release = f"edgepack/releases/{small_bundle.digest}/manifest.json"
    assert (tmp_path / release).is_file()
    assert (tmp_path / "other" / release).is_file()


class Told(Silent):
    """Keeps the steps that it is told."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, int, str]] = []

    def progress(self, done: int, total: int, text: str) -> None:
        self.steps.append((done, total, text))


def test_which_golden_sample_is_run_is_told(small_bundle: Bundle, tmp_path: Path) -> None:
    told = Told()
    result = device.verify_here(small_bundle.path, cache_dir=tmp_path, reporter=told)
    assert result["digest"] == small_bundle.digest
    count = int(result["self_test"].removeprefix("passed, ").split()[0])
    assert told.steps == [
        (done, count, f"golden sample {done + 1} of {count}") for done in range(count)
    ]
    release = tmp_path / "edgepack" / "releases" / small_bundle.digest
    assert (release / "manifest.json").is_file()


def test_a_bundle_that_fails_its_samples_keeps_the_class(
    small_bundle: Bundle, tmp_path: Path
) -> None:
    data = bytearray(small_bundle.path.read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "x.edgepack").write_bytes(data)
    with pytest.raises(IntegrityError, match=r"lib/libonnxruntime\.so"):
        device.verify_here(tmp_path / "x.edgepack", cache_dir=tmp_path, reporter=Silent())
    with pytest.raises(InputOutputError, match="no such file"):
        device.verify_here(tmp_path / "none", cache_dir=tmp_path, reporter=Silent())


@pytest.mark.parametrize("line", ["", "[]", "{}", '{"sample": "x", "of": 1}', "3", '{"sample": 1}'])
def test_a_line_that_tells_no_sample_is_passed_over(line: str) -> None:
    told = Told()
    device.tell_sample(line, told)
    assert told.steps == []


def test_a_missing_file_and_a_wrong_argument_keep_their_classes(
    small_bundle: Bundle, tmp_path: Path
) -> None:
    with pytest.raises(InputOutputError, match="no such file"):
        device.run_runtime(["verify", str(tmp_path / "none")], cache_dir=tmp_path)
    with pytest.raises(UsageError, match="there is no command `predikt`") as caught:
        device.run_runtime(["predikt"], bundle=small_bundle.path, cache_dir=tmp_path)
    assert caught.value.hint == "did you mean `predict`?"


def finished(returncode: int, stderr: str) -> Completed:
    return Completed(argv=("x",), returncode=returncode, stdout="", stderr=stderr, log=None)


@pytest.mark.parametrize(
    ("stderr", "message", "hint"),
    [
        ("error: it broke\n", "it broke", None),
        ("error: it broke\n\nhint: mend it\n", "it broke", "mend it"),
        ("ready on http://x\nerror: two\nlines\n\nhint: a\nb\n", "two\nlines", "a\nb"),
    ],
)
def test_the_runtimes_words_come_back(stderr: str, message: str, hint: str | None) -> None:
    fault = device.to_error(finished(3, stderr))
    assert type(fault) is TargetError
    assert (fault.message, fault.hint) == (message, hint)


@pytest.mark.parametrize(
    ("code", "stderr"), [(70, "error: a bug\n"), (1, "Traceback\n"), (-11, ""), (3, "no words")]
)
def test_what_is_not_explained_shows_the_command(code: int, stderr: str) -> None:
    fault = device.to_error(finished(code, stderr))
    assert isinstance(fault, EdgepackError)
    assert type(fault) is ExternalToolError
    assert "$ x" in fault.message


def test_the_environment_is_a_minimal_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/evil")
    monkeypatch.setenv("LD_PRELOAD", "/evil.so")
    monkeypatch.setenv("LANG", "C.UTF-8")
    environment = device.bundle_environment(tmp_path)
    assert environment["XDG_CACHE_HOME"] == str(tmp_path)
    assert environment["LANG"] == "C.UTF-8"
    assert set(environment) <= {"HOME", "TMPDIR", "LANG", "LC_ALL", "XDG_CACHE_HOME"}


def test_our_own_runtime_imports_nothing_from_where_it_is_started(tmp_path: Path) -> None:
    for name in ("json.py", "runtime.py", "hashlib.py"):
        (tmp_path / name).write_text("raise SystemExit('imported from the working folder')")
    done = subprocess.run(
        device.own_argv(["detect", "--json"]),
        capture_output=True, text=True, check=True, cwd=tmp_path, env={},
    )  # fmt: skip
    assert json.loads(done.stdout)["python"] == "{}.{}.{}".format(*sys.version_info[:3])


def test_this_machine_is_described() -> None:
    facts = device.detect_device()
    assert {"arch", "os", "libc", "cpu_features", "cpu_level", "cores"} <= set(facts)


_DEVICES: list[dict[str, Any]] = [
    {"arch": arch, "os": os_name, "libc": libc, "cpu_features": features}
    for arch in ("x86_64", "aarch64", "armv7l")
    for os_name in ("linux", "darwin")
    for libc in ("glibc 2.28", "glibc 2.4", "musl 1.2", None)
    for features in ([], ["avx2", "fma"], ["avx2", "fma", "avx512_vnni"], ["asimd", "asimddp"])
]


def test_host_and_device_have_the_same_reasons_against_a_target() -> None:
    for target in all_targets():
        for facts in _DEVICES:
            ours = device.reasons_against(target, facts)
            assert ours == runtime_reasons_against(target_fields(target), facts)
