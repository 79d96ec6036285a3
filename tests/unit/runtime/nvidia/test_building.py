"""The parent of a build: room, limits, every way in which the child ends, and what is left."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from runtime.errors import InputOutputFault, TargetMismatch
from runtime.nvidia import building, room
from runtime.nvidia.builder import BuildFailed
from runtime.nvidia.building import read_report, reproduce_script, start_build
from tests.unit.runtime.nvidia.graphs import CHILD, ROOT, case

if TYPE_CHECKING:
    from runtime.nvidia.progress import Step
    from runtime.nvidia.request import BuildRequest

GOOD = """
import json, os, sys
out = sys.argv[2]
open(out + "/engine", "wb").write(b"plan")
report = {"sha256": "00", "size": 4, "facts": {}, "seconds": 1.5, "layers": {"fp16": 3},
          "not_inspected": None, "lost_precision": None, "peak_memory_mib": 7, "log": ["[I] fine"]}
json.dump(report, open(out + "/report.json", "w"))
print(json.dumps({"progress": 0.25, "seconds_left": 3.0, "phase": "timing"}), flush=True)
print("not json", flush=True)
print(json.dumps({"report": "report.json"}), flush=True)
"""


@pytest.fixture
def request_(tmp_path: Path) -> BuildRequest:
    (tmp_path / "release").mkdir()
    return case("mlp", tmp_path / "release")


def run(
    request: BuildRequest, folder: Path, program: str, *, timeout_s: float = 60, **options: Any
) -> Any:
    argv = [sys.executable, "-c", program]
    return start_build(argv, request, str(folder), timeout_s=timeout_s, **options)


def failure(request: BuildRequest, folder: Path, program: str, **options: Any) -> BuildFailed:
    with pytest.raises(BuildFailed) as caught:
        run(request, folder, program, **options)
    assert not (folder / "engine").exists()
    assert (folder / "build.log").is_file()
    assert (folder / "reproduce.sh").is_file()
    return caught.value


def test_steps_and_the_report_of_a_child_come_back(request_: BuildRequest, tmp_path: Path):
    steps: list[Step] = []
    report = run(request_, tmp_path / "out", GOOD, on_progress=steps.append)
    assert [(step.fraction, step.seconds_left, step.phase) for step in steps] == [
        (0.25, 3.0, "timing")
    ]
    assert report.engine == str(tmp_path / "out" / "engine")
    assert report.layers == {"fp16": 3}
    assert report.log == ("[I] fine",)
    assert report == read_report(str(tmp_path / "out"))
    assert json.loads((tmp_path / "out" / "request.json").read_text())["precision"] == "fp32"


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("import os; os.kill(os.getpid(), 11)", "the build crashed (SIGSEGV)"),
        ("import os; os.abort()", "the build crashed (SIGABRT)"),
        ("import os; os.kill(os.getpid(), 9)", "the build was killed (SIGKILL)"),
        ("import os; os.kill(os.getpid(), 15)", "the build was ended (SIGTERM)"),
        ("import sys; sys.exit('no such module')", "ended with status 1: no such module"),
        ("raise SystemExit(0)", "the builder ended with status 0"),
        (
            "print('{\"report\": \"x\"}')\nimport os; os._exit(3)",
            "the builder ended with status 3",
        ),
    ],
    ids=["segfault", "abort", "kill", "term", "exit", "silence", "report and failure"],
)  # fmt: skip
def test_every_way_of_dying_is_one_sentence(
    program: str, message: str, request_: BuildRequest, tmp_path: Path
):
    fault = failure(request_, tmp_path / "out", program)
    assert message in fault.message
    assert "\n" not in fault.message
    assert fault.hint is not None
    assert "reproduce.sh" in fault.hint
    assert fault.log[0].startswith("$ ")


def test_a_kill_by_the_kernel_for_lack_of_memory_is_told(
    request_: BuildRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    counts = iter([4, 5])
    monkeypatch.setattr(building, "oom_kills", lambda: next(counts))
    program = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    fault = failure(request_, tmp_path / "out", program)
    assert fault.message == "the kernel ended the build: the machine's memory had run out"


def test_the_childs_own_explanation_comes_with_its_exit_code(
    request_: BuildRequest, tmp_path: Path
):
    program = (
        "import json; print(json.dumps({'error': 'no TensorRT', 'hint': 'install it',"
        " 'exit_code': 3, 'log': ['[E] x']})); raise SystemExit(3)"
    )
    fault = failure(request_, tmp_path / "out", program)
    assert (fault.message, fault.hint, fault.log) == ("no TensorRT", "install it", ("[E] x",))
    assert fault.exit_code == TargetMismatch.exit_code


ENDLESS = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open(sys.argv[2] + "/grandchild", "w").write(str(child.pid))
open(sys.argv[2] + "/engine.part", "wb").write(b"half")
print('{"progress": 0.5}', flush=True)
time.sleep(600)
"""


def _gone(pid: int) -> bool:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def test_a_build_past_its_time_is_ended_with_all_that_it_started(
    request_: BuildRequest, tmp_path: Path
):
    fault = failure(request_, tmp_path / "out", ENDLESS, timeout_s=2)
    assert fault.message == "the build took longer than 2 s"
    assert fault.hint == "allow it more time, or build with fewer profiles"
    assert _gone(int((tmp_path / "out" / "grandchild").read_text()))
    assert not (tmp_path / "out" / "engine.part").exists()


def test_a_build_ends_soon_after_it_is_stopped(request_: BuildRequest, tmp_path: Path):
    begun = threading.Event()
    fault = failure(
        request_, tmp_path / "out", ENDLESS, timeout_s=600,
        on_progress=lambda _: begun.set(), stopped=begun.is_set,
    )  # fmt: skip
    assert fault.message == "the build was stopped"
    assert _gone(int((tmp_path / "out" / "grandchild").read_text()))


def test_what_the_listener_raises_ends_the_build(request_: BuildRequest, tmp_path: Path):
    def interrupt(_: Step) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(request_, tmp_path / "out", ENDLESS, on_progress=interrupt, timeout_s=600)
    assert _gone(int((tmp_path / "out" / "grandchild").read_text()))


def test_a_build_is_ended_before_it_takes_the_servers_memory(
    request_: BuildRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    free = iter([8000, 8000])
    monkeypatch.setattr(building, "available_mib", lambda: next(free, 10))
    monkeypatch.setattr(building, "left_mib", lambda: 96)
    fault = failure(request_, tmp_path / "out", ENDLESS, timeout_s=600)
    assert fault.message == (
        "the build was ended: it left 10 MiB of memory, and others here need 96 MiB"
    )


def test_a_flood_without_line_ends_is_not_kept(request_: BuildRequest, tmp_path: Path):
    program = "import sys\nfor _ in range(64): sys.stdout.write('x' * (1 << 20))\n" + GOOD
    with pytest.raises(BuildFailed, match="status 0") as caught:
        run(request_, tmp_path / "out", program.replace("print(", "sys.stderr.write(").replace(
            ", flush=True", ""))  # fmt: skip
    assert caught.value.log


def test_the_child_is_the_kernels_first_choice_and_last_to_run(
    request_: BuildRequest, tmp_path: Path
):
    program = (
        "import json, os, resource, sys\n"
        "from runtime.nvidia import child\n"
        "child._limit(os.environ[child.LIMITS])\n"
        "json.dump([os.nice(0), open('/proc/self/oom_score_adj').read(), os.getsid(0),"
        " resource.getrlimit(resource.RLIMIT_CORE)[0],"
        " resource.getrlimit(resource.RLIMIT_DATA)[0]], open(sys.argv[2] + '/limits', 'w'))\n"
    )
    failure(
        request_, tmp_path / "out", program, memory_mib=500,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    nice, oom, session, core, data = json.loads((tmp_path / "out" / "limits").read_text())
    assert nice >= os.nice(0) + 10 or nice == 19
    assert int(oom) == 1000
    assert session != os.getsid(0)
    assert (core, data) == (0, 500 << 20)


def test_a_build_ends_with_whoever_started_it(request_: BuildRequest, tmp_path: Path):
    folder = tmp_path / "out"
    waiting = (
        "import os, sys, time\n"
        "from runtime.nvidia import child\n"
        "child._limit(os.environ[child.LIMITS])\n"
        "open(sys.argv[2] + '/pid', 'w').write(str(os.getpid()))\n"
        "time.sleep(600)\n"
    )
    starter = (
        "import sys\n"
        "from runtime.nvidia.building import start_build\n"
        "from runtime.nvidia.request import BuildRequest\n"
        "request = BuildRequest.from_json(open(sys.argv[1]).read())\n"
        "start_build([sys.executable, '-c', sys.argv[3]], request, sys.argv[2], timeout_s=600)\n"
    )
    (tmp_path / "asked.json").write_text(request_.to_json())
    parent = subprocess.Popen(
        [sys.executable, "-c", starter, tmp_path / "asked.json", folder, waiting],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        deadline = time.monotonic() + 60
        while not (folder / "pid").exists() or not (folder / "pid").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    assert _gone(int((folder / "pid").read_text()))


def test_a_command_that_is_not_there_is_named(request_: BuildRequest, tmp_path: Path):
    with pytest.raises(BuildFailed, match="`no-such-python` cannot be started: no such file"):
        start_build(["no-such-python"], request_, str(tmp_path / "out"), timeout_s=5)


def test_too_little_disk_or_memory_is_refused_with_both_numbers(
    request_: BuildRequest, tmp_path: Path
):
    with (tmp_path / "release" / "model.onnx").open("r+b") as stream:
        stream.truncate(1 << 43)  # sparse: takes no room
    with pytest.raises(InputOutputFault, match=r"needs about 33554464 MiB of disk .* are free"):
        run(request_, tmp_path / "out", GOOD)


def test_too_little_memory_is_refused_with_both_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(room, "available_mib", lambda: 400)
    with pytest.raises(InputOutputFault) as caught:
        room.check_room(str(tmp_path), 100 << 20, "tensorrt_rtx")
    assert caught.value.message == (
        "building this engine needs about 500 MiB of memory, and 400 MiB are free"
    )
    assert caught.value.hint is not None
    assert "--engine-on" in caught.value.hint
    room.check_room(str(tmp_path), 40 << 20, "tensorrt_rtx")


def test_this_machines_memory_is_read():
    assert 0 < room.available_mib() < 1 << 24
    assert 96 <= room.left_mib() < 1 << 20
    assert room.oom_kills() >= 0


def test_an_engine_of_another_size_than_reported_is_refused(request_: BuildRequest, tmp_path: Path):
    program = GOOD.replace('b"plan"', 'b"pla"')
    with pytest.raises(BuildFailed, match="is not of the size that was built"):
        run(request_, tmp_path / "out", program)


def test_what_an_earlier_build_left_is_no_result_of_this_one(
    request_: BuildRequest, tmp_path: Path
):
    run(request_, tmp_path / "out", GOOD)
    failure(request_, tmp_path / "out", 'print(\'{"report": "report.json"}\'); raise SystemExit(1)')
    with pytest.raises(BuildFailed, match="no readable report"):
        read_report(str(tmp_path / "out"))


def test_a_timing_cache_is_put_where_the_child_reads_it(request_: BuildRequest, tmp_path: Path):
    (tmp_path / "kept").write_bytes(b"timings")
    report = run(request_, tmp_path / "out", GOOD, timing_cache=str(tmp_path / "kept"))
    assert report.timing_cache is not None
    assert Path(report.timing_cache).read_bytes() == b"timings"
    again = run(request_, tmp_path / "out", GOOD, timing_cache=report.timing_cache)
    assert again.timing_cache == report.timing_cache
    assert run(request_, tmp_path / "out", GOOD).timing_cache is None


def test_reproduce_repeats_the_build_byte_for_byte(request_: BuildRequest, tmp_path: Path):
    pytest.importorskip("tensorrt_rtx")
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    folder = tmp_path / "a folder with 'quotes'"
    report = start_build(CHILD, request_, str(folder), timeout_s=60, env=env)
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run(
        ["sh", folder / "reproduce.sh", tmp_path / "again"],
        cwd="/", env=kept, check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    assert (tmp_path / "again" / "engine").read_bytes() == Path(report.engine).read_bytes()


def test_the_script_is_sound_shell():
    if shutil.which("shellcheck") is None:
        pytest.skip("`shellcheck` is not installed")
    variables = {"LD_LIBRARY_PATH": "/a b:$c", "CUDA_VISIBLE_DEVICES": "1", "SECRET": "s"}
    script = reproduce_script(["python3", "it's a bundle.edgepack", "build-engine"], variables)
    assert "SECRET" not in script
    done = subprocess.run(
        ["shellcheck", "-"], input=script, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
