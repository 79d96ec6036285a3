"""Every name of TensorRT that our sources read exists in the real libraries, by release."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from runtime.nvidia.vendor import FEATURES
from tests.unit.runtime.nvidia.graphs import BATCHES, ROOT, make_request, mlp, save

CACHE = ROOT / ".cache" / "tests"
SOURCES = ("builder", "messages", "progress", "loading", "lane", "profiles")
# What a variable or attribute of that name holds in our sources.
HELD = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "parser_error": "ParserError",
    "config": "IBuilderConfig",
    "profile": "IOptimizationProfile",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "inspector": "EngineInspector",
    "context": "IExecutionContext",
    "tensor": "ITensor",
}
HELD_WHILE_LOADING = {"config": "IRuntimeConfig", "cache": "IRuntimeCache"}
# There `tensor` and `profile` are our own.
OURS = {"lane": {"tensor"}, "profiles": {"profile"}}
RETURNED = {"get_timing_cache": "ITimingCache", "create_timing_cache": "ITimingCache"}
# What lies behind a question for another name: RTX's own, asked by `hasattr(trt, "IRuntimeCache")`.
RTX_ALONE = re.compile(
    r"IRuntimeC(onfig|ache)(\.|\Z)|CudaGraphStrategy\.|\w+\.create_runtime_config"
)
# What our sources ask for before they read it.
GUARDED = set(FEATURES.values())

PROGRAM = """
import importlib, json, sys
module = importlib.import_module(sys.argv[1])
missing = []
for path in json.load(sys.stdin):
    found = module
    for name in path.split("."):
        if not hasattr(found, name):
            missing.append(path)
            break
        found = getattr(found, name)
print(json.dumps([module.__version__, missing]))
"""


def names_read() -> set[str]:
    """Return every name below the vendor's module, as `BuilderFlag.FP16`, that our sources read."""
    found: set[str] = set()
    for source in SOURCES:
        held = {**HELD, **(HELD_WHILE_LOADING if source == "loading" else {})}
        for own in OURS.get(source, ()):
            del held[own]
        tree = ast.parse((ROOT / "runtime" / "nvidia" / f"{source}.py").read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute):
                path = _path(node, held)
                if path is not None:
                    found.add(path)
    return {path for path in found if not any(other.startswith(f"{path}.") for other in found)}


def _path(node: ast.Attribute, held: dict[str, str]) -> str | None:
    names = [node.attr]
    base: ast.expr = node.value
    while isinstance(base, ast.Attribute):
        if base.attr == "trt":
            return ".".join(names)
        word = held.get(base.attr.lstrip("_"))
        if word is not None:
            return ".".join([word, *names])
        names.insert(0, base.attr)
        base = base.value
    if isinstance(base, ast.Name):
        if base.id == "trt":
            return ".".join(names)
        word = held.get(base.id)
        return None if word is None else ".".join([word, *names])
    if isinstance(base, ast.Call) and isinstance(base.func, ast.Attribute):
        word = RETURNED.get(base.func.attr)
        return None if word is None else ".".join([word, *names])
    return None


def missing_in(module: str, names: set[str], python: str | Path, **env: str) -> set[str]:
    done = subprocess.run(
        [python, "-c", PROGRAM, module], input=json.dumps(sorted(names)), env={**os.environ, **env},
        capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    _, missing = json.loads(done.stdout.splitlines()[-1])
    return set(missing)


def _is_guarded(path: str) -> bool:
    return any(path == asked or path.startswith(f"{asked}.") for asked in GUARDED)


def test_the_names_are_really_found_in_our_sources():
    names = names_read()
    assert {
        "Builder.build_serialized_network", "BuilderFlag.FP16", "IBuilderConfig.set_flag",
        "ITimingCache.serialize", "ILogger.Severity.WARNING", "IExecutionContext.execute_async_v3",
        "EngineInspector.get_engine_information", "ProfilingVerbosity.DETAILED", "ILogger",
    } <= names | {"ILogger"}  # fmt: skip
    assert len(names) > 60


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="no `rtx` extra")
def test_all_exist_in_tensorrt_rtx_but_the_flags_of_weak_typing():
    missing = missing_in("tensorrt_rtx", names_read(), sys.executable)
    assert {path for path in missing if not _is_guarded(path)} == set()
    assert missing >= {"BuilderFlag.FP16", "TacticSource.CUDNN"}


@pytest.fixture(scope="module")
def tensorrt_85(old_pythons: dict[str, Path]) -> tuple[Path, dict[str, str]]:
    """Return CPython 3.10 and the environment in which it imports the real TensorRT 8.5.3.1.

    The wheel is 549 MB. Its cuBLAS and cuDNN are stand-ins, whose every function fails: enough to
    import, and to see a builder stop at the missing driver.
    """
    if "3.10" not in old_pythons:
        pytest.skip("CPython 3.10 is not installed")
    for tool in ("cc", "nm"):
        if shutil.which(tool) is None:
            pytest.skip(f"`{tool}` is not installed")
    python, folder = old_pythons["3.10"], CACHE / "tensorrt-8.5.3.1"
    if not folder.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as fresh:
            _download(python, Path(fresh))
            (Path(fresh) / "site").rename(folder)
    return python, {"LD_LIBRARY_PATH": str(folder / "lib"), "PYTHONPATH": f"{ROOT}:{folder}"}


def _download(python: Path, fresh: Path) -> None:
    done = subprocess.run(
        [
            python, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:",
            "--python-version", "3.10", "--platform", "manylinux_2_17_x86_64",
            "-d", fresh, "tensorrt==8.5.3.1",
        ],
        capture_output=True, text=True, check=False, timeout=1500,
    )  # fmt: skip
    if done.returncode != 0:
        pytest.skip(f"tensorrt 8.5.3.1 cannot be downloaded: {done.stderr[-200:]}")
    (wheel,) = fresh.glob("*.whl")
    site = fresh / "site"
    shutil.unpack_archive(wheel, site, "zip")
    libraries = list((site / "tensorrt").glob("*.so*"))
    (site / "lib").mkdir()
    listed = subprocess.run(
        ["nm", "-D", "--undefined-only", *libraries], capture_output=True, text=True, check=True
    ).stdout
    wanted = {line.split()[-1].split("@")[0] for line in listed.splitlines() if " U " in line}
    for soname, pattern in (
        ("libcublasLt.so.11", r"cublasLt\w+"),
        ("libcublas.so.11", r"cublas(?!Lt)\w+"),
        ("libcudnn.so.8", r"cudnn\w+"),
    ):
        functions = sorted(name for name in wanted if re.fullmatch(pattern, name))
        source, versions = fresh / "standin.c", fresh / "standin.map"
        source.write_text("".join(f"int {name}(void) {{ return 1; }}\n" for name in functions))
        versions.write_text(f"{soname} {{ global: *; }};\n")
        subprocess.run(
            [
                "cc", "-shared", "-fPIC", "-o", site / "lib" / soname, source,
                f"-Wl,-soname,{soname}", f"-Wl,--version-script={versions}",
            ],
            check=True,
        )  # fmt: skip


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.timeout(1800)
def test_all_exist_in_tensorrt_8_5_but_what_is_asked_for_before(
    tensorrt_85: tuple[Path, dict[str, str]],
):
    python, env = tensorrt_85
    missing = missing_in("tensorrt", names_read(), python, **env)
    unguarded = {path for path in missing if not _is_guarded(path) and not RTX_ALONE.match(path)}
    assert unguarded == set()
    assert missing >= {
        "NetworkDefinitionCreationFlag.STRONGLY_TYPED", "IProgressMonitor.__init__",
        "ParserError.node_name",
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.timeout(1800)
def test_the_real_8_5_is_loaded_and_stops_at_the_missing_driver_with_a_sentence(
    tensorrt_85: tuple[Path, dict[str, str]], tmp_path: Path
):
    python, env = tensorrt_85
    program = (
        "import json\n"
        "from runtime.nvidia.vendor import *\n"
        "v = load_vendor('tensorrt', wanted='8.5.2.2')\n"
        "print(json.dumps([v.version, v.has_strong_typing, v.has_precision_flags,"
        " v.has_progress_monitor, working_tactic_libraries()]))\n"
    )
    told = _output(python, env, "-c", program)
    assert json.loads(told.stdout) == ["8.5.3.1", False, True, False, []]
    if Path("/dev/nvidiactl").exists():
        pytest.skip("this machine has a driver")
    request = make_request(
        tmp_path, save(mlp(), tmp_path), module="tensorrt", version="8.5.2.2",
        strongly_typed=False, flags=("fp16",), precision="fp16", profiles=(BATCHES,),
    )  # fmt: skip
    (tmp_path / "request.json").write_text(request.to_json())
    done = _output(
        python, env, "-m", "runtime.nvidia.child", tmp_path / "request.json", tmp_path / "out"
    )
    assert done.returncode == 5
    last = json.loads(done.stdout.splitlines()[-1])
    assert last["error"] == "TensorRT 8.5.3.1 cannot start: there is no NVIDIA driver here"
    assert last["hint"].startswith("install the driver")


def _output(python: Path, env: dict[str, str], *words: Any) -> Any:
    return subprocess.run(
        [python, *words], env={**os.environ, **env}, capture_output=True, text=True,
        check=False, timeout=240, cwd="/",
    )  # fmt: skip
