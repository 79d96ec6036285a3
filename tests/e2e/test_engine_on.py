"""`edgepack build --engine-on ssh://…` through the command line, with a real SSH server."""

from __future__ import annotations

import importlib.util
import json
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save

from packager.bundle.local import read_manifest
from tests.sshd import SshServer, ssh_server

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.network,
    pytest.mark.timeout(600),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the bundles are for x86_64"),
]


def write_model(path: Path) -> Path:
    """Write a network of two layers."""
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.normal(size=size).astype(np.float32), name)
        for name, size in (("first", (8, 16)), ("second", (16, 4)))
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "second"], ["y"]),
    ]
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size])
        for name, size in (("x", 8), ("y", 4))
    )
    graph = helper.make_graph(nodes, "net", [x], [y], weights)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshServer]:
    """A device: this machine behind a real SSH server, without a GPU."""
    with ssh_server(tmp_path_factory.mktemp("sshd")) as running:
        yield running


@pytest.fixture
def build(edgepack_session: Any, server: SshServer, tmp_path: Path) -> Iterator[Any]:
    """Build the small network with options of the test's; nothing may be left on the device."""
    config = {"EDGEPACK_SSH_CONFIG": str(server.config)}
    model = write_model(tmp_path / "net.onnx")

    def run(*arguments: str, out: str = "dist", check: bool = True) -> Any:
        return edgepack_session(
            "build", model, "--precision", "fp32", "--json",
            "-o", tmp_path / out, *arguments, check=check, env=config,
        )  # fmt: skip

    yield run
    assert server.left() == []


@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="the extra `rtx` is not installed"
)
def test_the_engine_comes_back_into_the_bundle_as_if_built_here(
    build: Any, server: SshServer
) -> None:
    there, here = (
        json.loads(build("-t", "rtx-ada", *options, out=out).stdout)[0]
        for out, options in (
            ("there", ("--engine-on", server.url(python=sys.executable))), ("here", ())
        )
    )  # fmt: skip
    manifests = [read_manifest(Path(built["path"])) for built in (there, here)]
    engines = [manifest["tensorrt"]["engines"] for manifest in manifests]
    (one,), (other,) = engines
    assert one["fingerprint"] == other["fingerprint"]
    digests = [{file["path"]: file["sha256"] for file in m["files"]} for m in manifests]
    assert digests[0] == digests[1]
    assert one["path"] in digests[0]
    record = json.loads(Path(there["path"]).with_suffix(".record.json").read_text())
    assert f"{server.user}@127.0.0.1" in json.dumps(record)
    assert there["checks"]["self-test"].startswith("passed here")


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="this machine has a GPU")
def test_a_device_without_a_gpu_is_refused_and_no_bundle_is_left(
    build: Any, server: SshServer, tmp_path: Path
) -> None:
    url = server.url(python=sys.executable)
    done = build("-t", "server-l4", "--engine-on", url, check=False)
    assert done.returncode == 3
    assert f"error: `{server.user}@127.0.0.1` cannot build for server-l4: " in done.stderr
    assert "this machine shows no NVIDIA GPU" in done.stderr
    assert "→ import" not in done.stderr  # before anything that takes minutes
    assert "`--engine-on` wants a device of the class server-l4" in done.stderr
    assert done.stdout == ""
    assert not list((tmp_path / "dist").glob("*"))


def test_a_device_of_another_kind_is_refused(build: Any, server: SshServer) -> None:
    url = server.url(python=sys.executable)
    done = build("-t", "jetson-orin-nano-8gb@6.2", "--engine-on", url, check=False)
    assert done.returncode == 3
    assert "it is for aarch64, and this machine is x86_64" in done.stderr


def test_a_device_that_does_not_answer_is_told(build: Any) -> None:
    done = build("-t", "server-l4", "--engine-on", "ssh://127.0.0.1:1", check=False)
    assert done.returncode == 9
    assert "no SSH server listens there" in done.stderr


def test_one_device_builds_for_one_target(build: Any, server: SshServer) -> None:
    done = build("-t", "server-l4", "-t", "rtx-ada", "--engine-on", server.url(), check=False)
    assert done.returncode == 2
    assert "`--engine-on` builds the engine of one target on a device like it" in done.stderr
