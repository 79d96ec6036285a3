"""What a bundle needs and leaves behind: no network, no packager, nothing outside its folders."""

from __future__ import annotations

import filecmp
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.network


@pytest.fixture(scope="module")
def scaled(
    build: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """Build a small float model."""
    return build(_write_model(tmp_path_factory.mktemp("model")), "-t", "cpu-x86_64")


def _write_model(folder: Path) -> Path:
    from onnx import TensorProto, helper, numpy_helper, save

    weights = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Tanh", ["h"], ["y"])],
        "scaled",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(weights, "w")],
    )
    file = folder / "scaled.onnx"
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), file)
    return file


def _tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_predict_needs_no_network_and_no_environment(
    scaled: dict[str, Any], tmp_path: Path
) -> None:
    if shutil.which("unshare") is None or os.geteuid() != 0:
        pytest.skip("a network namespace needs unshare and root")
    np.savez(tmp_path / "in.npz", x=np.ones((2, 8), np.float32))
    root = Path(__file__).resolve().parents[2]
    command = ["unshare", "--net", "env", "-i", f"HOME={tmp_path}", "PATH=/usr/bin:/bin"]
    host = subprocess.run(
        [*command, f"PYTHONPATH={root}", sys.executable, "-m", "packager", "predict",
         scaled["path"], "-i", str(tmp_path / "in.npz"), "-o", str(tmp_path / "out.npz")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert host.returncode == 0, host.stderr
    with np.load(tmp_path / "out.npz") as out:
        assert out["y"].shape == (2, 4)
    device = subprocess.run(
        [*command, sys.executable, "-I", "-S", scaled["path"], "predict", "-i",
         str(tmp_path / "in.npz"), "-o", str(tmp_path / "out.npz")],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert device.returncode == 0, device.stderr


def test_serve_needs_no_network(scaled: dict[str, Any], tmp_path: Path) -> None:
    if shutil.which("unshare") is None or os.geteuid() != 0:
        pytest.skip("a network namespace needs unshare and root")
    script = (
        "ip link set lo up || exit 9\n"
        f"{sys.executable} -I -S {scaled['path']} serve --port 8123 & server=$!\n"
        "for i in $(seq 100); do\n"
        "  curl -sf http://127.0.0.1:8123/v2/health/ready && break; sleep 0.1\n"
        "done\n"
        "curl -sf -H 'Content-Type: application/json' -d '{\"data\": [[1,1,1,1,1,1,1,1]]}' "
        "http://127.0.0.1:8123/predict; code=$?\n"
        "kill $server; wait $server; exit $code\n"
    )
    done = subprocess.run(
        ["unshare", "--net", "env", "-i", f"HOME={tmp_path}", "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
         "sh", "-c", script], capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert '"result"' in done.stdout


def test_a_build_leaves_nothing_but_its_output_and_its_cache(edgepack: Any, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    model = _write_model(tmp_path)
    edgepack("build", model, "-t", "cpu-x86_64", cwd=work, check=True)
    assert {path.split("/")[0] for path in _tree(work)} == {"dist"}
    assert {path.split("/")[0] for path in _tree(edgepack.home)} == {".cache"}
    assert list((edgepack.cache / "work").iterdir()) == []
    assert _tree(tmp_path) - {"scaled.onnx"} == {
        "work", "work/dist", *(f"work/dist/scaled-1.0.0-cpu-x86_64{s}"
                               for s in (".edgepack", ".lock.json", ".record.json"))
    }  # fmt: skip


def test_predict_and_verify_leave_nothing_but_the_cache(
    scaled: dict[str, Any], edgepack: Any, tmp_path: Path
) -> None:
    np.savez(tmp_path / "in.npz", x=np.ones((1, 8), np.float32))
    before = _tree(Path(scaled["path"]).parent)
    edgepack("predict", scaled["path"], "-i", tmp_path / "in.npz", cwd=tmp_path, check=True)
    edgepack("verify", scaled["path"], cwd=tmp_path, check=True)
    assert _tree(tmp_path) == {"in.npz"}
    assert _tree(Path(scaled["path"]).parent) == before
    assert {path.split("/")[0] for path in _tree(edgepack.home)} == {".cache"}


def test_the_same_inputs_and_lock_give_the_same_bytes_in_two_folders(
    edgepack: Any, edgepack_session: Any, tmp_path: Path
) -> None:
    first, second = tmp_path / "a", tmp_path / "b" / "c"
    first.mkdir()
    second.mkdir(parents=True)
    (model_1, model_2) = _write_model(first), _write_model(second)
    edgepack("build", model_1, "-t", "cpu-x86_64", "-o", first / "dist", check=True)
    lock = first / "dist" / "scaled-1.0.0-cpu-x86_64.lock.json"
    edgepack_session(
        "build", model_2, "-t", "cpu-x86_64", "-o", second / "dist", "--lock", lock, check=True
    )
    name = "scaled-1.0.0-cpu-x86_64.edgepack"
    # Not by `==`: pytest would explain a difference of megabytes for minutes.
    assert filecmp.cmp(first / "dist" / name, second / "dist" / name, shallow=False)


def test_a_lock_for_another_model_is_refused(
    edgepack: Any, scaled: dict[str, Any], tmp_path: Path
) -> None:
    from onnx import load, save

    model = load(_write_model(tmp_path))
    model.graph.node[1].op_type = "Sigmoid"
    save(model, tmp_path / "scaled.onnx")
    lock = Path(scaled["path"]).with_suffix(".lock.json")
    done = edgepack(
        "build", tmp_path / "scaled.onnx", "-t", "cpu-x86_64", "--lock", lock, "-o", tmp_path / "d"
    )
    assert done.returncode == 2
    assert "lock" in done.stderr
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize("delay_s", [0.0, 0.2, 0.4, 0.6, 1.0, 1.5, 3.0])
def test_an_interrupted_build_leaves_no_partial_output(
    edgepack: Any, tmp_path: Path, delay_s: float
) -> None:
    model = _write_model(tmp_path)
    process = edgepack.start("build", model, "-t", "cpu-x86_64", "-o", tmp_path / "dist")
    _await_handler(process.pid)
    time.sleep(delay_s)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    if process.returncode == 0:
        pytest.skip("the build was quicker than the interruption")
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert not (tmp_path / "dist").exists() or list((tmp_path / "dist").iterdir()) == []
    work = edgepack.cache / "work"
    assert not work.exists() or list(work.iterdir()) == []


def _await_handler(pid: int) -> None:
    """Wait until the process catches SIGTERM: from then on an interruption is ours to answer."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
        caught = int(re.findall(r"SigCgt:\s*(\w+)", status)[0], 16)
        if caught >> (signal.SIGTERM - 1) & 1:
            return
        time.sleep(0.005)
    pytest.fail("the command set no handler in 30 s")


def test_a_port_in_use_is_refused(scaled: dict[str, Any], edgepack: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = edgepack("run", scaled["path"], "--port", port)
    assert done.returncode == 10
    assert f"port {port} is in use" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_bundle_for_another_architecture_is_refused(
    build: Callable[..., dict[str, Any]], edgepack: Any, tmp_path: Path
) -> None:
    built = build(_write_model(tmp_path), "-t", "raspberry-pi-5")
    assert built["checks"]["self-test"].startswith("not run here")
    np.savez(tmp_path / "in.npz", x=np.ones((1, 8), np.float32))
    done = edgepack("predict", built["path"], "-i", tmp_path / "in.npz")
    assert done.returncode == 3
    assert "aarch64" in done.stderr
    assert "x86_64" in done.stderr


@pytest.mark.parametrize("position", [0.01, 0.3, 0.6, 0.99])
def test_a_flipped_bit_is_found_before_anything_runs(
    scaled: dict[str, Any], edgepack: Any, tmp_path: Path, position: float
) -> None:
    content = bytearray(Path(scaled["path"]).read_bytes())
    content[int(len(content) * position)] ^= 1
    damaged = tmp_path / "damaged.edgepack"
    damaged.write_bytes(content)
    for command in (["verify"], ["inspect"], ["run", "--port", "0"]):
        done = edgepack(command[0], damaged, *command[1:])
        assert done.returncode == 8, done.stderr
        assert "Traceback" not in done.stderr


def test_bench_measures_a_bundle_and_a_model_in_the_same_terms(
    scaled: dict[str, Any], edgepack: Any, tmp_path: Path
) -> None:
    figures = {"p50_latency_ms", "p90_latency_ms", "p99_latency_ms", "throughput_per_s", "start_s",
               "peak_memory_mb", "threads", "engine"}  # fmt: skip
    for what in (scaled["path"], _write_model(tmp_path)):
        done = edgepack("bench", what, "--seconds", "0.3", "--threads", "1", "--json", check=True)
        result = json.loads(done.stdout)
        assert figures <= set(result)
        assert 0 < result["p50_latency_ms"] <= result["p99_latency_ms"]
        assert result["threads"] == 1


def test_a_bench_of_what_is_neither_is_refused(edgepack: Any, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("words")
    done = edgepack("bench", tmp_path / "notes.txt")
    assert done.returncode == 8
    assert "notes.txt" in done.stderr
