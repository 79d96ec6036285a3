"""Engines built on a reference device: this machine behind a real SSH server, with TensorRT-RTX."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import platform
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import pytest
from onnx import helper

from packager.artifact import Artifact, Parts
from packager.backends.tensorrt.ahead import build_ahead
from packager.backends.tensorrt.recipe import engine_recipe
from packager.bundle.assemble import assemble
from packager.bundle.golden import make_golden
from packager.console import Silent
from packager.deliver.reference import build_on, look_at
from packager.errors import (
    BackendMissing,
    DeviceUnreachable,
    ExternalToolError,
    IntegrityError,
    ModelUnsupported,
    TargetError,
    UsageError,
)
from packager.manifest import sha256_file
from packager.pipeline.cache import StageCache
from packager.recipe import Recipe, TensorRTOptions
from packager.target import find_target

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from packager.bundle.assemble import Bundle
    from packager.bundle.library import FetchedLibrary
    from tests.sshd import SshServer

    Make = Callable[..., tuple[Path, dict[str, Any], Path]]

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("tensorrt_rtx") is None,
        reason="tensorrt_rtx is not installed (extra `rtx`)",
    ),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the bundles are for x86_64"),
]


class Heard(Silent):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.steps: list[tuple[int, int, str]] = []

    def stage(self, text: str) -> None:
        self.said.append(text)

    def note(self, text: str) -> None:
        self.said.append(text)

    def progress(self, done: int, total: int, text: str) -> None:
        self.steps.append((done, total, text))


@pytest.fixture(scope="module")
def make(
    small_artifact: Artifact,
    plain_library: FetchedLibrary,
    tmp_path_factory: pytest.TempPathFactory,
) -> Make:
    """Make a bundle with an engine recipe, each once: its path, the recipe, and the graph."""

    @functools.cache
    def call(target_name: str = "rtx-ada", core: Path = small_artifact.path) -> Any:
        folder = tmp_path_factory.mktemp("bundle")
        target = find_target(target_name)
        recipe = engine_recipe(
            target=target,
            precision="fp32",
            profiles=[{"x": {"min": [1, 8], "opt": [1, 8], "max": [32, 8]}}],
            options=TensorRTOptions(),
            artifact="model/model.onnx",
            artifact_sha256=sha256_file(core),
            needs=["an NVIDIA GPU"],
        )
        artifact = dataclasses.replace(
            small_artifact, tensorrt=recipe, parts=Parts(head=None, core=core, tail=None)
        )
        bundle = assemble(
            artifact,
            target=target,
            recipe=Recipe(model="model.onnx", name="small", version="1.0.0"),
            golden=make_golden(
                small_artifact, samples=None, seed=0, min_cosine=0.99, workdir=folder
            ),
            library=plain_library,
            out_dir=folder,
        )
        return bundle.path, recipe, core

    return call


@pytest.fixture
def build(server: SshServer, tmp_path: Path) -> Iterator[Any]:
    """Build on the device, and hold it to an empty folder afterwards."""

    def call(bundle: Path, target: str = "rtx-ada", python: str = sys.executable, **options: Any):
        workdir = tmp_path / "reference-work"
        workdir.mkdir()
        options.setdefault("reporter", Silent())
        return build_on(
            server.url(python=python), bundle, find_target(target), workdir=workdir,
            config=server.config, **options,
        )  # fmt: skip

    yield call
    assert server.left() == []


def impostor(tmp_path: Path, then: str, before: str = "") -> str:
    """Return a Python that does something else around `build-engine`."""
    path = tmp_path / "python3"
    path.write_text(
        "#!/bin/sh\n"
        f'if [ "$2" = build-engine ]; then\n:\n{before}\n'
        f'{shlex.quote(sys.executable)} "$@" || exit $?\n{then}\nexit 0\nfi\n'
        f'exec {shlex.quote(sys.executable)} "$@"\n'
    )
    path.chmod(0o755)
    return str(path)


def test_the_device_s_engine_comes_back_and_is_the_host_s_own_byte_for_byte(
    make: Make, build: Any, tmp_path: Path, server: SshServer
) -> None:
    bundle, recipe, core = make()
    heard = Heard()
    engine, measured = build(bundle, reporter=heard)

    tensorrt = find_target("rtx-ada").tensorrt
    assert tensorrt is not None
    work = tmp_path / "ahead"
    work.mkdir()
    ours, _ = build_ahead(
        recipe, core, tensorrt, cache=StageCache(tmp_path / "cache"), workdir=work,
        reporter=Silent(),
    )  # fmt: skip
    assert engine.path.read_bytes() == ours.path.read_bytes()
    assert engine.fingerprint == ours.fingerprint
    assert engine.facts == ours.facts
    assert sha256_file(engine.path) == measured["sha256"]
    login = f"{server.user}@127.0.0.1"
    assert measured["device"] == login
    assert [text.partition(" (")[0] for text in heard.said] == [
        f"connect to {login}",
        f"copy small-1.0.0-rtx-ada.edgepack to {login}",
        f"build the engine on {login}",
    ]
    assert heard.steps[-1] == (100, 100, "done")


def test_a_device_of_another_processor_is_refused(make: Make, build: Any) -> None:
    bundle, _, _ = make("jetson-orin-nano-8gb@6.2")
    with pytest.raises(TargetError) as caught:
        build(bundle, "jetson-orin-nano-8gb@6.2")
    assert (
        "cannot build for jetson-orin-nano-8gb@6.2: it is for aarch64, and this machine is x86_64"
        in (caught.value.message)
    )


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="this machine has a GPU")
def test_a_device_without_a_gpu_builds_nothing_for_tensorrt(make: Make, build: Any) -> None:
    bundle, _, _ = make("server-l4")
    with pytest.raises(TargetError) as caught:
        build(bundle, "server-l4")
    assert "cannot build for server-l4: " in caught.value.message
    assert "NVIDIA GPU" in caught.value.message
    assert "`--engine-on` wants a device of the class server-l4" in (caught.value.hint or "")


@pytest.fixture
def look(server: SshServer, tmp_path: Path) -> Iterator[Any]:
    """Look at the device, and hold it to an empty folder afterwards."""

    def call(target: str, python: Path | str = sys.executable) -> None:
        look_at(
            server.url(python=str(python)), find_target(target), workdir=tmp_path,
            reporter=Silent(), config=server.config,
        )  # fmt: skip

    yield call
    assert server.left() == []


def test_a_look_lets_the_right_processor_build_for_rtx(
    look: Any, old_pythons: dict[str, Path]
) -> None:
    look("rtx-ada", next(iter(old_pythons.values()), sys.executable))


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="this machine has a GPU")
def test_a_look_finds_what_a_build_would_be_refused_for(look: Any) -> None:
    with pytest.raises(TargetError, match=r"cannot build for server-l4: .* no NVIDIA GPU"):
        look("server-l4")
    with pytest.raises(TargetError, match=r"orin-nano-8gb@6\.2: it is for aarch64"):
        look("jetson-orin-nano-8gb@6.2")


def test_a_look_hears_of_a_python_that_says_nothing(look: Any, tmp_path: Path) -> None:
    mute = tmp_path / "python3"
    mute.write_text(
        '#!/bin/sh\ncase "$1" in *look.pyz) exit 0;; esac\n'
        f'exec {shlex.quote(sys.executable)} "$@"\n'
    )
    mute.chmod(0o755)
    with pytest.raises(ExternalToolError, match="does not say what it is"):
        look("rtx-ada", mute)


def test_a_bundle_without_a_recipe_is_refused_before_anybody_is_asked(
    small_bundle: Bundle, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="has no recipe for a TensorRT engine"):
        build_on(
            "ssh://nobody@127.0.0.1:1", small_bundle.path, find_target("rtx-ada"),
            workdir=tmp_path, reporter=Silent(),
        )  # fmt: skip


def test_a_device_that_does_not_answer_is_unreachable(make: Make, tmp_path: Path) -> None:
    bundle, _, _ = make()
    with pytest.raises(DeviceUnreachable, match="no SSH server listens there"):
        build_on(
            "ssh://127.0.0.1:1", bundle, find_target("rtx-ada"), workdir=tmp_path,
            reporter=Silent(),
        )  # fmt: skip


def test_a_device_without_tensorrt_rtx_says_so(make: Make, build: Any, tmp_path: Path) -> None:
    bundle, _, _ = make()
    bare = tmp_path / "python3"
    bare.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -S "$@"\n')
    bare.chmod(0o755)
    with pytest.raises(BackendMissing, match="TensorRT-RTX is not installed"):
        build(bundle, python=str(bare))


def test_a_node_that_the_device_cannot_build_is_named(
    make: Make, build: Any, small_artifact: Artifact, tmp_path: Path
) -> None:
    model = onnx.load(small_artifact.path)
    model.graph.node[1].CopyFrom(helper.make_node("Det", ["h"], ["y"], name="odd"))
    onnx.save(model, tmp_path / "odd.onnx")
    bundle, _, _ = make(core=tmp_path / "odd.onnx")
    with pytest.raises(ModelUnsupported, match=r"`odd` \(Det\)"):
        build(bundle)


def test_a_builder_that_crashes_there_is_one_error(
    make: Make, build: Any, tmp_path: Path, server: SshServer
) -> None:
    bundle, _, _ = make()
    with pytest.raises(ExternalToolError) as caught:
        build(bundle, python=impostor(tmp_path, "", before="kill -SEGV $$"))
    assert f"was ended by signal 11 on `{server.user}@127.0.0.1`" in caught.value.message


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("printf x >> out/engine", "its digest differs"),
        (r"sed -i 's/\"8\.9\"/\"8.6\"/' out/report.json", "says that it is of another fingerprint"),
        (r"sed -i 's/\"fp32\"/\"fp16\"/' out/report.json", "says that it is of another precision"),
    ],
)
def test_an_engine_that_is_not_the_one_asked_for_is_refused(
    make: Make, build: Any, tmp_path: Path, change: str, says: str
) -> None:
    bundle, _, _ = make()
    with pytest.raises(IntegrityError) as caught:
        build(bundle, python=impostor(tmp_path, change))
    assert says in caught.value.message


def test_a_bundle_that_was_damaged_on_the_way_is_refused_there(
    make: Make, build: Any, tmp_path: Path
) -> None:
    bundle, _, _ = make()
    data = bytearray(bundle.read_bytes())
    data[len(data) // 2] ^= 1
    damaged = tmp_path / bundle.name
    damaged.write_bytes(data)
    with pytest.raises(IntegrityError):
        build(damaged)


def test_an_interrupted_build_leaves_nothing_there(make: Make, build: Any) -> None:
    bundle, _, _ = make()

    class Impatient(Silent):
        """Presses Ctrl-C at the first step."""

        def progress(self, done: int, total: int, text: str) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(bundle, reporter=Impatient())
