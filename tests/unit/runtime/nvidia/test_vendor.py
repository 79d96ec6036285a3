"""Finding TensorRT, and each way in which it is not there or not the right one."""

from __future__ import annotations

import ctypes
import importlib.util
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from runtime.nvidia import vendor as vendor_module
from runtime.nvidia.vendor import (
    FEATURES,
    NAMES,
    VendorMissing,
    load_vendor,
    numbers_of,
    working_tactic_libraries,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Return what puts a module of that name and content where Python finds it first."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = {name: sys.modules.pop(name) for name in NAMES if name in sys.modules}

    def put(name: str, content: str, *beside: str) -> None:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(content)
        for other in beside:
            (tmp_path / other).mkdir()

    yield put
    for name in NAMES:
        sys.modules.pop(name, None)
    sys.modules.update(before)


@pytest.fixture
def jetson(tmp_path: Path) -> str:
    path = tmp_path / "nv_tegra_release"
    path.write_text("# R36 (release), REVISION: 4.3, GCID: 1, BOARD: generic\n")
    return str(path)


def refusal(module: str, **options: str) -> VendorMissing:
    with pytest.raises(VendorMissing) as caught:
        load_vendor(module, **{"l4t_file": "/none", **options})
    assert caught.value.exit_code == 3
    assert caught.value.hint
    return caught.value


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="no `rtx` extra")
def test_the_installed_rtx_tells_its_build_and_what_it_can():
    found = load_vendor("tensorrt_rtx", wanted="1.7.1.116")
    assert found.numbers[:2] >= (1, 7)
    assert len(found.numbers) == 4
    assert found.is_rtx
    assert found.has_strong_typing
    assert found.has_progress_monitor
    assert not found.has_precision_flags
    assert not found.has_timing_cache
    assert found.has("compute_capabilities")


def test_a_missing_tensorrt_is_told_with_where_to_get_it(jetson: str):
    if importlib.util.find_spec("tensorrt") is not None:
        pytest.skip("TensorRT is installed here")
    fault = refusal("tensorrt")
    assert fault.message == "TensorRT is not installed for this interpreter"
    assert "pip install tensorrt" in str(fault.hint)
    on_jetson = refusal("tensorrt", l4t_file=jetson)
    assert "sudo apt install python3-libnvinfer" in str(on_jetson.hint)
    assert "pip" not in str(on_jetson.hint)


def test_a_module_that_is_none_of_ours_is_not_imported():
    assert refusal("os").message == "`os` is no TensorRT module"


def test_another_major_version_is_refused_with_both(install: Callable[..., None]):
    install("tensorrt", "__version__ = '10.3.0.30'")
    fault = refusal("tensorrt", wanted="8.5.2.2")
    assert fault.message == "this bundle is for TensorRT 8.5.2.2, and 10.3.0.30 is installed"
    assert load_vendor("tensorrt", wanted="10.7.0.1", l4t_file="/none").numbers == (10, 3, 0, 30)


def test_a_version_before_8_5_is_too_old(install: Callable[..., None], jetson: str):
    install("tensorrt", "__version__ = '8.4.1.5'")
    assert refusal("tensorrt").message == "TensorRT 8.4.1.5 is too old: edgepack needs 8.5 or later"
    assert "JetPack" in str(refusal("tensorrt", l4t_file=jetson).hint)


@pytest.mark.parametrize("beside", ["tensorrt_libs", "tensorrt_bindings"])
def test_the_wheel_of_the_package_index_is_refused_on_a_jetson(
    install: Callable[..., None], jetson: str, tmp_path: Path, beside: str
):
    install("tensorrt", "__version__ = '10.7.0'", beside)
    fault = refusal("tensorrt", l4t_file=jetson)
    assert "comes from the package index" in fault.message
    assert fault.hint == ("python3 -m pip uninstall tensorrt; sudo apt install python3-libnvinfer")
    # Elsewhere, and from JetPack 7 on, the same wheel is right.
    assert load_vendor("tensorrt", l4t_file="/none").version == "10.7.0"
    newer = tmp_path / "newer"
    newer.write_text("# R39 (release), REVISION: 2.0\n")
    assert load_vendor("tensorrt", l4t_file=str(newer)).version == "10.7.0"


@pytest.mark.parametrize(
    ("content", "message", "hint"),
    [
        (
            "raise ImportError('libcudnn.so.8: cannot open shared object file: No such file')",
            "cannot be imported: libcudnn.so.8: cannot open shared object file",
            "install CUDA's `libcudnn.so.8`, or add its folder to LD_LIBRARY_PATH",
        ),
        (
            "raise ImportError('libnvinfer.so.10: cannot open shared object file')",
            "cannot be imported: libnvinfer.so.10",
            "pip install tensorrt",
        ),
        (
            "raise AttributeError(\"module 'numpy' has no attribute 'bool'\")",
            "has no attribute 'bool'",
            "install a numpy that fits",
        ),
        (
            "raise ImportError('x.so: failed to map segment from shared object')",
            "failed to map segment",
            "stop what else uses the memory",
        ),
        ("raise RuntimeError", "cannot be imported: RuntimeError", "pip install tensorrt"),
        ("import no_such_module_here", "lacks the Python package `no_such_module_here`", "install"),
        ("", "a module called `tensorrt` is installed that has no version", "pip install tensorrt"),
    ],
    ids=["cuDNN", "TensorRT's own", "numpy", "memory", "no words", "a package", "another module"],
)
def test_a_broken_installation_is_told_with_its_repair(
    content: str, message: str, hint: str, install: Callable[..., None]
):
    install("tensorrt", content)
    fault = refusal("tensorrt")
    assert message in fault.message
    assert hint in str(fault.hint)


def test_the_build_number_is_asked_of_the_library_where_the_module_lacks_it(
    install: Callable[..., None], tmp_path: Path
):
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    source = "".join(
        f"int getInferLib{part}Version(void) {{ return {number}; }}\n"
        for part, number in (("Major", 10), ("Minor", 3), ("Patch", 0), ("Build", 30))
    )
    (tmp_path / "version.c").write_text(source)
    library = tmp_path / "libnvinfer.so.10.3.0"
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-o", library, tmp_path / "version.c"], check=True
    )  # fmt: skip
    install("tensorrt", "__version__ = '10.3.0'")
    assert load_vendor("tensorrt", l4t_file="/none").version == "10.3.0"
    ctypes.CDLL(str(library))
    sys.modules.pop("tensorrt")
    assert load_vendor("tensorrt", l4t_file="/none").version == "10.3.0.30"


@pytest.mark.parametrize(
    ("version", "numbers"),
    [("8.6.1.post1", (8, 6, 1)), ("10.3.0.30", (10, 3, 0, 30)), ("", ()), ("x", ())],
)
def test_the_numbers_of_a_version_end_at_the_first_word(version: str, numbers: tuple[int, ...]):
    assert numbers_of(version) == numbers


def test_a_stand_in_for_cudnn_does_not_count_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    table = {}
    for word, body in (("CUDNN", "return 1;"), ("CUBLAS_LT", "return 110401;"), ("CUBLAS", "")):
        _, function, lowest = vendor_module._VERSION_OF[word]
        source = f"unsigned long {function}(void) {{ {body} }}\n" if body else "int nothing;\n"
        (tmp_path / "a.c").write_text(source)
        library = tmp_path / f"{word}.so"
        subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "a.c"], check=True)
        table[word] = ((str(tmp_path / "absent.so"), str(library)), function, lowest)
    monkeypatch.setattr(vendor_module, "_VERSION_OF", table)
    assert working_tactic_libraries() == ("CUBLAS_LT",)


def test_features_are_told_by_attributes(install: Callable[..., None]):
    install("tensorrt", "__version__ = '8.5.3.1'\nclass BuilderFlag:\n    FP16 = 0\n")
    found = load_vendor("tensorrt", l4t_file="/none")
    assert found.has_precision_flags
    assert not found.has_strong_typing
    assert {feature for feature in FEATURES if found.has(feature)} == {"precision_flags"}
