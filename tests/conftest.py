"""What every test can count on: no network, no stray prints, one way to run the command line."""

from __future__ import annotations

import builtins
import fcntl
import importlib.util
import os
import random
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
OLD_PYTHONS = ("3.8", "3.9", "3.10", "3.11", "3.12", "3.13")
LOCAL_HOSTS = ("127.0.0.1", "::1", "localhost")
SHARED_CACHE = ROOT / ".cache" / "tests"
# As many processes as cores run at once, and a thread that spins for another one's result takes
# the core that computes it: with other work beside them, small convolutions in torch and products
# in numpy cost six times the CPU time. Only how threads wait and how many numpy has is set, and
# before the libraries are loaded: here, and in every process that a test starts.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# Files that take long come first: the short ones then keep all workers busy to the end.
_UNITS = "unit/packager/"
LONG = ("e2e/", "conformance/", "cli/", "house/", _UNITS + "importers/", _UNITS + "deliver/")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("edgepack")
    group.addoption("--slow", action="store_true", help="run tests marked `slow` as well")
    group.addoption("--update-goldens", action="store_true", help="rewrite files in tests/golden")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    slow_wanted = config.getoption("--slow") or "slow" in config.getoption("-m")
    absent = {}
    if not slow_wanted:
        absent["slow"] = "takes minutes; `--slow` runs it"
    if shutil.which("qemu-x86_64") is None:
        absent["emulator"] = "`qemu-x86_64` is not installed (package qemu-user)"
    if importlib.util.find_spec("torch") is None:
        absent["torch"] = "torch is not installed (extra `torch`)"
    # With `--no-loadscope-reorder` workers get files in this order, else those of most tests first.
    items.sort(key=lambda item: not str(item.path.relative_to(ROOT / "tests")).startswith(LONG))
    for item in items:
        for marker, reason in absent.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


class _NetworkGuard:
    """An audit hook, because hooks cannot be removed: it asks whether it is on."""

    def __init__(self) -> None:
        self.on = False

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on or not event.startswith("socket."):
            return
        host: object = None
        if event in ("socket.connect", "socket.sendto") and isinstance(arguments[1], tuple):
            host = arguments[1][0]
        elif event == "socket.getaddrinfo":
            host = arguments[0]
        if isinstance(host, bytes):
            host = host.decode()
        if host is not None and host not in LOCAL_HOSTS:
            raise PermissionError(f"this test has no `network` marker, but asks for {host!r}")


def pytest_configure(config: pytest.Config) -> None:
    guard = _NetworkGuard()
    sys.addaudithook(guard)
    config.stash[_GUARD] = guard


_GUARD: pytest.StashKey[_NetworkGuard] = pytest.StashKey()


@pytest.fixture(autouse=True)
def no_network(request: pytest.FixtureRequest) -> Iterator[None]:
    """Refuse every address but this machine's to tests without the `network` marker."""
    guard = request.config.stash[_GUARD]
    guard.on = request.node.get_closest_marker("network") is None
    yield
    guard.on = False


@pytest.fixture(autouse=True)
def no_stray_prints(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail a test in which product code other than the console called `print`."""
    strays: list[str] = []
    plain_print = builtins.print

    def watched(*values: object, **options: Any) -> None:
        module = sys._getframe(1).f_globals.get("__name__", "")
        if module.startswith("packager.") and module != "packager.console":
            strays.append(f"{module}: {' '.join(map(str, values))}")
        plain_print(*values, **options)

    monkeypatch.setattr(builtins, "print", watched)
    yield
    assert not strays, "only packager.console prints: " + "; ".join(strays)


@pytest.fixture(autouse=True)
def same_seeds() -> None:
    """Start every test from the same random state."""
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Return a function that compares a text with a file in tests/golden.

    `pytest --update-goldens` rewrites the files; the difference is then read in `git diff`.
    """

    def compare(path: str, text: str) -> None:
        file = ROOT / "tests" / "golden" / path
        if request.config.getoption("--update-goldens"):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
            return
        assert file.is_file(), f"tests/golden/{path} is missing: run pytest --update-goldens"
        assert text == file.read_text(encoding="utf-8")

    return compare


def _find_python(version: str) -> Path | None:
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = [str(path / "bin" / "python") for path in sorted(pyenv.glob(f"{version}.*"))]
    found.append(shutil.which(f"python{version}") or "")
    for candidate in filter(None, reversed(found)):
        # A shim may stand for a version that is not there, so each is asked.
        asked = subprocess.run(
            [candidate, "-Ic", "import lzma, ctypes, sys; print('%d.%d' % sys.version_info[:2])"],
            capture_output=True, text=True, check=False, timeout=30,
        )  # fmt: skip
        if asked.stdout.strip() == version:
            return Path(candidate)
    return None


@pytest.fixture(scope="session")
def old_pythons() -> dict[str, Path]:
    """Return every CPython from 3.8 to 3.13 found here, by version."""
    found = {version: _find_python(version) for version in OLD_PYTHONS}
    return {version: path for version, path in found.items() if path is not None}


@pytest.fixture(params=OLD_PYTHONS)
def old_python(request: pytest.FixtureRequest, old_pythons: dict[str, Path]) -> Path:
    """Run the test once under each CPython a device may have; skip those not installed here."""
    if request.param not in old_pythons:
        pytest.skip(f"CPython {request.param} is not installed")
    return old_pythons[request.param]


@pytest.fixture(scope="session")
def engine_library() -> Path:
    """Return the shared library of the installed ONNX Runtime."""
    spec = importlib.util.find_spec("onnxruntime")
    assert spec is not None
    assert spec.origin is not None
    (library,) = (Path(spec.origin).parent / "capi").glob("libonnxruntime.so.*.*.*")
    return library


@dataclass(frozen=True, kw_only=True)
class Finished:
    """What a run of the command line left behind."""

    argv: tuple[str, ...]
    returncode: int
    stdout: str
    stderr: str


class Edgepack:
    """Runs `edgepack` in a process of its own, with a home of its own.

    Engine libraries are downloaded and compressed once per checkout; every other cached thing
    lasts as long as the test. What would run under an emulated processor runs on this one, in a
    second instead of four; tests/conformance gives the command the `PATH` with the real emulator.
    """

    def __init__(self, home: Path, *, network: bool) -> None:
        self.home = home
        self.cache = home / ".cache" / "edgepack"
        self.cache.mkdir(parents=True)
        shared = SHARED_CACHE / "engines"
        shared.mkdir(parents=True, exist_ok=True)
        (self.cache / "engines").symlink_to(shared)
        kept = {key: value for key, value in os.environ.items() if not _is_ours(key)}
        self.env = {
            **kept,
            "HOME": str(home),
            "PATH": f"{ROOT / 'tests' / 'standin' / 'emulator'}{os.pathsep}{kept.get('PATH', '')}",
            "XDG_CACHE_HOME": str(home / ".cache"),
            "PYTHONPATH": str(ROOT),
            "PYTHONHASHSEED": "random",
            "COLUMNS": "100",
        }
        if not network:
            self.env["PIP_NO_INDEX"] = "1"

    def __call__(
        self,
        *arguments: str | Path,
        check: bool = False,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        timeout_s: float = 280,
    ) -> Finished:
        """Run a command to its end; with `check`, anything but exit 0 fails the test."""
        argv = (sys.executable, "-m", "packager", *map(str, arguments))
        done = subprocess.run(
            argv, cwd=cwd or self.home, env={**self.env, **(env or {})}, text=True,
            stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=timeout_s,
        )  # fmt: skip
        finished = Finished(
            argv=argv, returncode=done.returncode, stdout=done.stdout, stderr=done.stderr
        )
        assert not check or done.returncode == 0, f"{argv}\n{done.stdout}\n{done.stderr}"
        return finished

    def start(
        self, *arguments: str | Path, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """Start a command that goes on, as `run`; whoever starts it ends it."""
        return subprocess.Popen(
            [sys.executable, "-m", "packager", *map(str, arguments)],
            cwd=self.home, env={**self.env, **(env or {})}, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip


def _is_ours(key: str) -> bool:
    return re.match(r"EDGEPACK_|XDG_|NO_COLOR$|PYTHONPATH$|COV_|_EDGEPACK", key) is not None


@pytest.fixture
def edgepack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Edgepack:
    """Return the command line with an empty home; `edgepack("targets", "list").stdout`."""
    network = request.node.get_closest_marker("network") is not None
    return Edgepack(tmp_path_factory.mktemp("home"), network=network)


@pytest.fixture(scope="session")
def edgepack_session(tmp_path_factory: pytest.TempPathFactory) -> Edgepack:
    """Return the command line for bundles that several tests share; it may use the network."""
    return Edgepack(tmp_path_factory.mktemp("session-home"), network=True)


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """A model trained in this session.

    Attributes:
        factory: What `edgepack build` is given: `…/digits_cnn.py:make_model`.
        calibration: A folder of `.npz` files, one training row each.
        module: The module of the factory, for its data and its original answers.
        input_name: The model's only input.
        test_x: Rows held out of training, and `test_y` their labels.
        accuracy: Of the trained model on them.
    """

    factory: str
    folder: Path
    calibration: Path
    module: ModuleType
    input_name: str
    test_x: Any
    test_y: Any
    accuracy: float

    def answers(self, rows: Any) -> Any:
        """Return the original model's scores as an array."""
        import torch

        model, _ = self.module.make_model()
        with torch.inference_mode():
            return model(torch.from_numpy(rows)).numpy()


def _load_module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _train(
    stem: str, minimum: float, made: pytest.TempPathFactory
) -> tuple[Path, ModuleType, float]:
    """Return a folder with the trained model, its module and accuracy; one worker trains for all.

    Each gets a copy, for what a test writes beside the model is no other worker's.
    """
    base = made.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / f"trained-{stem}"
    shared.mkdir(exist_ok=True)
    with (shared / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (shared / "accuracy").exists():
            (shared / "accuracy").write_text(repr(_trained(stem, shared)))
    folder = made.mktemp(stem)
    for name in (f"{stem}.py", f"{stem}.pt"):
        shutil.copy(shared / name, folder)
    accuracy = float((shared / "accuracy").read_text())
    assert accuracy >= minimum, f"{stem} learned too little: {accuracy:.3f}"
    return folder, _load_module(folder / f"{stem}.py"), accuracy


def _trained(stem: str, folder: Path) -> float:
    import torch

    shutil.copy(ROOT / "tests" / "models" / f"{stem}.py", folder)
    module = _load_module(folder / f"{stem}.py")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny layers: hand-overs between threads cost more than they gain
    try:
        return float(module.train(folder))
    finally:
        torch.set_num_threads(threads)


def _save_rows(folder: Path, name: str, rows: Sequence[Any]) -> Path:
    import numpy as np

    folder.mkdir()
    for index, row in enumerate(rows):
        np.savez(folder / f"{index:03}.npz", **{name: row[None]})
    return folder


@pytest.fixture(scope="session")
def digits_cnn(tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:
    """Train the digits network: input `x` float32 [batch, 1, 8, 8], scores [batch, 10]."""
    pytest.importorskip("torch", reason="torch is not installed (extra `torch`)")
    folder, module, accuracy = _train("digits_cnn", 0.97, tmp_path_factory)
    train_x, _, test_x, test_y = module.load_data()
    return TrainedModel(
        factory=f"{folder / 'digits_cnn.py'}:make_model",
        folder=folder,
        calibration=_save_rows(folder / "calibration", "x", train_x[:64]),
        module=module,
        input_name="x",
        test_x=test_x,
        test_y=test_y,
        accuracy=accuracy,
    )


@pytest.fixture(scope="session")
def motion_gru(tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:
    """Train the bidirectional GRU: input `signal` float32 [batch, time, 6], scores [batch, 4]."""
    pytest.importorskip("torch", reason="torch is not installed (extra `torch`)")
    folder, module, accuracy = _train("motion_gru", 0.9, tmp_path_factory)
    train_x, _ = module.make_data(64, time=40, seed=0)
    test_x, test_y = module.make_data(100, time=40, seed=1)
    return TrainedModel(
        factory=f"{folder / 'motion_gru.py'}:make_model",
        folder=folder,
        calibration=_save_rows(folder / "calibration", "signal", train_x),
        module=module,
        input_name="signal",
        test_x=test_x,
        test_y=test_y,
        accuracy=accuracy,
    )
