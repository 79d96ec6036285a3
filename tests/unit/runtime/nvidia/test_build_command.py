"""The hidden command that builds: under every CPython, and not in the help."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from runtime.main import COMMANDS
from tests.unit.runtime.nvidia.graphs import ROOT, case, make_request

if TYPE_CHECKING:
    from pathlib import Path

PROGRAM = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); from runtime.main import main; "
    "sys.exit(main(sys.argv[1:], None))"
)


def command(*words: str | Path, python: str | Path = sys.executable) -> Any:
    return subprocess.run(
        [python, "-B", "-c", PROGRAM, ROOT, *words],
        capture_output=True, text=True, check=False, timeout=120, cwd="/",
    )  # fmt: skip


def test_it_is_not_in_the_help_but_there():
    assert COMMANDS["build-engine"].hidden
    assert "build-engine" not in command("--help").stdout
    unknown = command("buld-engin")
    assert "build-engine" not in unknown.stderr
    assert "needs REQUEST FOLDER" in command("build-engine", "one").stderr
    assert "does not take `c`" in command("build-engine", "a", "b", "c").stderr


def test_every_cpython_of_a_device_reads_the_request_and_misses_tensorrt(
    old_python: Path, tmp_path: Path
):
    request = case("mlp", tmp_path, module="tensorrt", version="10.3.0.30")
    (tmp_path / "request.json").write_text(request.to_json())
    done = command("build-engine", tmp_path / "request.json", tmp_path / "out", python=old_python)
    last = json.loads(done.stdout.splitlines()[-1])
    if "is not installed" not in last["error"]:
        pytest.skip(f"TensorRT is installed here: {last['error']}")
    assert done.returncode == last["exit_code"] == 3
    assert done.stderr.startswith("error: TensorRT is not installed for this interpreter\n\nhint: ")


def test_it_writes_the_engine_and_only_json_to_standard_output(tmp_path: Path):
    pytest.importorskip("tensorrt_rtx")
    request = case("mlp", tmp_path)
    (tmp_path / "request.json").write_text(request.to_json())
    done = command("build-engine", tmp_path / "request.json", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines[-1] == {"report": str(tmp_path / "out" / "report.json")}
    assert lines[-2]["progress"] == 1.0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"engine", "report.json"}
    assert "Engine generation completed" in done.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "`folder` in the build request must be an absolute path"),
        ("[" * 200_000, "the build request is not valid JSON"),
        (None, "request.json`: no such file or directory"),
    ],
    ids=["empty", "deep", "absent"],
)
def test_a_hostile_request_is_refused_in_both_ways(text: str | None, message: str, tmp_path: Path):
    if text is not None:
        (tmp_path / "request.json").write_text(text)
    done = command("build-engine", tmp_path / "request.json", tmp_path / "out")
    assert done.returncode == 5
    assert message in json.loads(done.stdout)["error"]
    assert message in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path):
    pytest.importorskip("tensorrt_rtx")
    request = case("mlp", tmp_path)
    (tmp_path / "request.json").write_text(request.to_json())
    (tmp_path / "out").write_text("a file")
    done = command("build-engine", tmp_path / "request.json", tmp_path / "out")
    assert f"the build ended at `{tmp_path / 'out'}`: file exists" in done.stderr


def test_a_recipe_for_another_major_version_is_refused(tmp_path: Path):
    pytest.importorskip("tensorrt_rtx")
    sha256 = case("mlp", tmp_path).artifact_sha256
    request = make_request(tmp_path, sha256, version="2.0.0.1")
    (tmp_path / "request.json").write_text(request.to_json())
    done = command("build-engine", tmp_path / "request.json", tmp_path / "out")
    assert done.returncode == 3
    assert "this bundle is for TensorRT-RTX 2.0.0.1, and 1.7" in done.stderr
