"""The device's command line: answers on standard output, errors in one form, no tracebacks."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import urllib.request
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from packager.bundle.assemble import assemble
from packager.bundle.golden import make_golden
from packager.recipe import Recipe
from packager.target import find_target

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from packager.artifact import Artifact
    from packager.bundle.assemble import Bundle
    from packager.bundle.library import FetchedLibrary

    Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def run(small_bundle: Bundle, home: Path, tmp_path: Path) -> Run:
    def running(
        *arguments: str | Path, root: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-I", "-S", root or small_bundle.path, *arguments],
            capture_output=True, text=True, check=False, cwd=tmp_path, env={"HOME": str(home)},
        )  # fmt: skip
        assert "Traceback" not in done.stderr
        return done

    return running


@pytest.fixture
def one_row(tmp_path: Path) -> Path:
    np.savez(tmp_path / "in.npz", x=np.ones((1, 8), np.float32))
    return tmp_path / "in.npz"


def expected(artifact: Artifact, rows: Any) -> Any:
    import onnxruntime

    session = onnxruntime.InferenceSession(artifact.path, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": rows})[0]


def test_predict_shows_the_top_classes_with_their_labels(
    run: Run, one_row: Path, small_artifact: Artifact
) -> None:
    done = run("predict", "-i", one_row, "--top", "2")
    assert done.returncode == 0, done.stderr
    scores = expected(small_artifact, np.ones((1, 8), np.float32))[0]
    best = ["north", "east", "south", "west wind"][int(scores.argmax())]
    lines = done.stdout.splitlines()
    assert lines[0] == "in.npz:"
    assert lines[2].split()[:-1] == best.split()
    assert len(lines) == 4


def test_predict_gives_json(run: Run, one_row: Path, small_artifact: Artifact) -> None:
    document = json.loads(run("predict", "-i", one_row, "--json", "--top", "4").stdout)
    (result,) = document["results"]
    top = result["outputs"]["y"]["top"][0]
    scores = expected(small_artifact, np.ones((1, 8), np.float32))[0]
    assert [entry["index"] for entry in top] == np.argsort(-scores).tolist()
    np.testing.assert_allclose([e["score"] for e in top], np.sort(scores)[::-1], atol=1e-6)


def test_predict_takes_several_files_and_an_npy(run: Run, one_row: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "two.npy", np.zeros((3, 8), np.float32))
    done = run("predict", "-i", one_row, "--input", "two.npy", "--json")
    results = json.loads(done.stdout)["results"]
    assert [r["input"] for r in results] == ["in.npz", "two.npy"]
    assert len(results[1]["outputs"]["y"]["top"]) == 3


def test_predict_writes_one_array_per_output_name(
    run: Run, one_row: Path, tmp_path: Path, small_artifact: Artifact
) -> None:
    assert run("predict", "-i", one_row, "-o", "out.npz").returncode == 0
    with np.load(tmp_path / "out.npz") as out:
        got = out["y"]
    np.testing.assert_allclose(
        got, expected(small_artifact, np.ones((1, 8), np.float32)), atol=1e-6
    )


@pytest.mark.parametrize(
    "mistake",
    [
        (["predikt"], 2, "there is no command `predikt`", "did you mean `predict`?"),
        (["predict"], 2, "`predict` needs an input", "-i FILE.npz"),
        (["predict", "-i"], 2, "`-i` needs a value: FILE", None),
        (["predict", "--tpo", "3"], 2, "`predict` has no option `--tpo`", "did you mean `--top`?"),
        (["predict", "-i", "in.npz", "--top=0"], 2, "`--top` cannot be `0`", "give 1 to 10000"),
        (["predict", "-i", "a.png"], 2, "`a.png` is of no kind that this bundle", "give an .npz"),
        (["predict", "-i", "a.dat"], 2, "`a.dat` is no input file", "give an .npz"),
        (["predict", "-i", "none.npz"], 10, "none.npz", None),
        (["predict", "-i", "none.npy"], 10, "`none.npy` cannot be read: no such file", None),
        (["predict", "-i", "in.npz", "-i", "in.npz", "-o", "o.npz"], 2, "`-o` holds", "one `-i`"),
        (["predict", "-i", "in.npz", "-o", "none/o.npz"], 10, "none/o.npz", None),
        (["predict", "-i", "wrong.npz"], 2, "input `x`", None),
        (["predict", "-i", "named.npz"], 2, "`z`", None),
        (["serve", "--port", "70000"], 2, "`--port` cannot be `70000`", "give 0 to 65535"),
        (["serve", "--json"], 2, "`serve` has no option `--json`", "one of --host"),
        (["unpack"], 2, "`unpack` needs DIR", None),
        (["unpack", "a", "b"], 2, "`unpack` does not take `b`", None),
        (["unpack", "."], 2, "`.` is not empty", "name a new folder"),
        (["verify", "--json=1"], 2, "`--json` takes no value", None),
        (["verify", "none"], 10, "`none` cannot be read: no such file", None),
        (["bench", "--seconds", "nan"], 2, "`--seconds` cannot be `nan`", "a number above 0"),
    ],
)  # fmt: skip
def test_a_mistake_is_explained_in_one_form(
    run: Run, one_row: Path, tmp_path: Path, mistake: tuple[list[str], int, str, str | None]
) -> None:
    arguments, code, message, hint = mistake
    np.savez(tmp_path / "wrong.npz", x=np.ones((1, 9), np.float32))
    np.savez(tmp_path / "named.npz", z=np.ones((1, 8), np.float32))
    done = run(*arguments)
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    first, _, second = done.stderr.partition("\n\nhint: ")
    assert message in first
    if hint is not None:
        assert hint in second
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.npz", "named.npz", "wrong.npz"]


def test_help_lists_every_command(run: Run) -> None:
    for arguments in ([], ["--help"], ["predict", "--help"]):
        done = run(*arguments)
        assert done.returncode == 0
        for command in ("serve", "predict", "verify", "detect", "unpack", "bench"):
            assert command in done.stdout


def test_verify_tells_what_was_proven(run: Run, small_bundle: Bundle) -> None:
    result = json.loads(run("verify", "--json").stdout)
    assert result["digest"] == small_bundle.digest
    assert result["self_test"] == "passed, 4 golden samples"
    assert result["engine"].startswith("onnxruntime 1.")
    assert "left out" in run("verify", "--no-self-test").stdout


def test_a_golden_sample_that_comes_out_otherwise_fails_the_self_test(
    run: Run, small_artifact: Artifact, plain_library: FetchedLibrary, tmp_path: Path
) -> None:
    from dataclasses import replace

    import onnx

    golden = make_golden(small_artifact, samples=None, seed=0, min_cosine=0.99, workdir=tmp_path)
    model = onnx.load(small_artifact.path)
    model.graph.node[1].op_type = "Sigmoid"
    onnx.save(model, tmp_path / "other.onnx")
    bundle = assemble(
        replace(small_artifact, path=tmp_path / "other.onnx"),
        target=find_target("cpu-x86_64"), recipe=Recipe(model="m", name="other"),
        golden=golden, library=plain_library, out_dir=tmp_path,
    )  # fmt: skip
    done = run("verify", root=bundle.path)
    assert done.returncode == 8
    assert "the self-test failed on this device: golden sample 0, output `y`" in done.stderr


def test_a_bundle_for_another_machine_says_so_and_still_verifies(
    run: Run, small_artifact: Artifact, plain_library: FetchedLibrary, tmp_path: Path,
    one_row: Path,
) -> None:  # fmt: skip
    bundle = assemble(
        small_artifact,
        target=find_target("raspberry-pi-5"), recipe=Recipe(model="m", name="pi"),
        golden=make_golden(
            small_artifact, samples=None, seed=0, min_cosine=0.9, workdir=tmp_path
        ),
        library=plain_library, out_dir=tmp_path,
    )  # fmt: skip
    for arguments in (["predict", "-i", one_row], ["serve", "--port", "0"], ["bench"]):
        done = run(*arguments, root=bundle.path)
        assert done.returncode == 3
        assert "built for `raspberry-pi-5`: it is for aarch64, and this machine is" in done.stderr
    done = run("verify", "--json", root=bundle.path)
    assert done.returncode == 0
    assert json.loads(done.stdout)["self_test"].startswith("not run: it is for aarch64")


def test_bench_measures(run: Run) -> None:
    result = json.loads(run("bench", "--seconds", "0.1", "--threads", "1", "--json").stdout)
    assert result["threads"] == 1
    assert 0 < result["p50_latency_ms"] <= result["p90_latency_ms"] <= result["p99_latency_ms"]
    assert result["throughput_per_s"] > 0
    assert 10 < result["memory_mb"] <= result["peak_memory_mb"]
    assert 0 < result["start_s"] < 60
    assert json.loads(run("bench", "--runs", "3", "--json").stdout)["runs"] == 3


def test_serve_answers_until_it_is_told_to_stop(small_bundle: Bundle, home: Path) -> None:
    for stop in (signal.SIGTERM, signal.SIGINT):
        with subprocess.Popen(
            [sys.executable, "-I", "-S", small_bundle.path, "serve", "--port", "0"],
            stderr=subprocess.PIPE, text=True, env={"HOME": str(home)},
        ) as process:  # fmt: skip
            assert process.stderr is not None
            match = re.search(r"http://\S+:\d+", process.stderr.readline())
            assert match is not None
            with urllib.request.urlopen(f"{match[0]}/v2/health/ready", timeout=10) as answer:
                assert answer.status == 200
            process.send_signal(stop)
            assert process.wait(20) == 0
            assert process.stderr.read() == "stopping: answering what was begun\n"


def test_an_interruption_is_130_and_leaves_nothing(small_bundle: Bundle, tmp_path: Path) -> None:
    code = (
        "import signal, sys\n"
        f"sys.path.insert(0, {str(small_bundle.path)!r})\n"
        "from runtime import archive, main\n"
        "stop = signal.Signals(int(sys.argv[1]))\n"
        "archive.sync_folder = lambda folder: signal.raise_signal(stop)\n"
        f"sys.exit(main.main(['unpack', {str(tmp_path / 'out')!r}], {str(small_bundle.path)!r}))\n"
    )
    for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        done = subprocess.run(
            [sys.executable, "-I", "-c", code, str(int(number))],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == status, done.stderr
        assert done.stderr == ""
        assert list(tmp_path.iterdir()) == []


def test_our_own_bug_is_70_with_the_traceback_in_a_file(
    small_bundle: Bundle, tmp_path: Path
) -> None:
    code = (
        "import sys, tempfile\n"
        f"tempfile.tempdir = {str(tmp_path)!r}\n"
        f"sys.path.insert(0, {str(small_bundle.path)!r})\n"
        "from runtime import detect, main\n"
        "detect.detect_device = lambda: 1 / 0\n"
        "sys.exit(main.main(['detect'], None))\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 70
    assert "Traceback" not in done.stderr
    (log,) = tmp_path.iterdir()
    assert str(log) in done.stderr
    assert "ZeroDivisionError" in log.read_text()


def test_whoever_stops_reading_gets_no_complaint(small_bundle: Bundle, home: Path) -> None:
    environment = {"HOME": str(home), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        ["sh", "-c", '"$0" -I -S "$1" detect | true', sys.executable, small_bundle.path],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    assert done.stderr == ""


def test_help_says_defaults_and_how_a_switch_is_turned_off(run: Run) -> None:
    told = run("--help").stdout
    assert "--port N                 0 takes a free one; by default 8000\n" in told
    assert "--no-page                leave out the page at /\n" in told
    assert "--name HOST              a name clients call this server by; repeatable\n" in told
