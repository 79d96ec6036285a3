"""A device tells what NVIDIA has put into it, from files and from the driver's own libraries."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import runtime
from runtime import detect
from runtime.nvidia import jetson
from runtime.nvidia.device import describe_gpu, engine_outlook, gpu_facts
from runtime.nvidia.installed import Interpreter, this_interpreter
from tests.standin import machines
from tests.standin.machines import Machine, write

if TYPE_CHECKING:
    from collections.abc import Callable

    MakeFacts = Callable[[Machine], dict[str, Any]]


def test_an_orin_nano_under_jetpack_6_is_known(
    tmp_path: Path, driver: Path, facts_of: MakeFacts
) -> None:
    facts = facts_of(machines.orin_nano(tmp_path, driver))
    json.dumps(facts)
    assert facts["gpus"] == [
        {"name": "Orin", "compute_capability": "8.7", "memory_mib": 7800, "memory": "shared"}
    ]
    assert (facts["module"], facts["module_part"], facts["soc"], facts["dla_cores"]) == (
        "Jetson Orin Nano 8 GB", "p3767-0005", "tegra234", 0,
    )  # fmt: skip
    assert (facts["l4t"], facts["jetpack"], facts["power_mode"]) == ("36.4.3", "6.2", "MAXN_SUPER")
    assert facts["packages"] == {
        "python3-libnvinfer": "10.3.0.30-1+cuda12.5", "libnvinfer10": "10.3.0.30-1+cuda12.5",
    }  # fmt: skip
    (tensorrt,) = facts["tensorrt"]
    assert (tensorrt["module"], tensorrt["version"], tensorrt["origin"]) == (
        "tensorrt", "10.3.0.30", "apt",
    )  # fmt: skip
    assert facts["tensorrt_elsewhere"] == []
    (cudart,) = facts["cudart"]
    assert cudart["version"] == facts["cuda"] == "12.6.68"
    assert facts["driver_cuda"] == "12.6"
    assert facts["gpu_fault"] is None


def test_an_agx_orin_under_jetpack_5_is_known(
    tmp_path: Path, driver: Path, facts_of: MakeFacts
) -> None:
    facts = facts_of(machines.agx_orin(tmp_path, driver))
    assert (facts["l4t"], facts["jetpack"]) == ("35.2.1", "5.1")
    assert (facts["module"], facts["dla_cores"]) == ("Jetson AGX Orin 64 GB", 2)
    assert facts["gpus"][0]["compute_capability"] == "8.7"
    assert facts["tensorrt"][0]["version"] == "8.5.2.2", "apt's 8.5.2 lacks the build"
    assert facts["cudart"][0]["version"] == "11.4.298"
    assert facts["power_mode"] == "MODE_30W", "nvpmodel has recorded none, so its default holds"
    assert facts["driver"] is None


def test_a_thor_is_known_by_its_nvml(tmp_path: Path, driver: Path, facts_of: MakeFacts) -> None:
    facts = facts_of(machines.thor(tmp_path, driver))
    assert facts["gpus"] == [
        {
            "name": "NVIDIA Thor", "compute_capability": "11.0", "memory": "shared",
            "memory_mib": 7990784 >> 10,
        }
    ]  # fmt: skip
    assert (facts["driver"], facts["driver_cuda"]) == ("595.10.07", "13.2")
    assert (facts["module"], facts["jetpack"]) == ("Jetson AGX Thor T5000", "7.2")
    assert facts["power_mode"] == "mode 7, without a name"


def test_a_server_is_known(tmp_path: Path, driver: Path, facts_of: MakeFacts) -> None:
    facts = facts_of(machines.h100_server(tmp_path, driver))
    assert [gpu["compute_capability"] for gpu in facts["gpus"]] == ["9.0", "9.0"]
    assert facts["gpus"][0] == {
        "name": "NVIDIA H100 80GB HBM3", "compute_capability": "9.0", "memory_mib": 81559,
        "memory": "own",
    }  # fmt: skip
    assert (facts["driver"], facts["driver_cuda"]) == ("580.65.06", "13.0")
    (tensorrt,) = facts["tensorrt"]
    assert (tensorrt["version"], tensorrt["origin"]) == ("10.13.3.9", "wheel")
    (cudart,) = facts["cudart"]
    assert cudart["version"] == "12.9.79"
    assert cudart["path"].endswith("nvidia/cuda_runtime/lib/libcudart.so.12")
    assert [facts[key] for key in ("l4t", "jetpack", "soc", "module", "power_mode")] == [None] * 5
    assert facts["isolated"]


def test_nothing_is_said_and_no_library_asked_where_nothing_is_nvidias(
    tmp_path: Path, facts_of: MakeFacts
) -> None:
    assert facts_of(machines.plain_machine(tmp_path)) == {}


def test_a_gpu_without_a_driver_is_found_on_the_bus(tmp_path: Path, facts_of: MakeFacts) -> None:
    machine = machines.plain_machine(tmp_path)
    machines.write_pci_gpu(tmp_path)
    facts = facts_of(machine)
    assert facts["driver"] is None
    assert facts["gpus"] == []
    assert facts["gpu_fault"] == "`libcuda.so.1` is not there: the driver is not installed"


@pytest.mark.parametrize(
    ("status", "fault"),
    [
        ({"STANDIN_NVML_STATUS": "18", "STANDIN_CUINIT_STATUS": "803"}, "restart the machine"),
        ({"STANDIN_NVML_STATUS": "9", "STANDIN_CUINIT_STATUS": "100"}, "shows no GPU"),
        ({"STANDIN_NVML_STATUS": "4", "STANDIN_CUINIT_STATUS": "34"}, "a stand-in for linking"),
        ({"STANDIN_NVML_STATUS": "99", "STANDIN_CUINIT_STATUS": "999"}, "refuses with status 999"),
        ({"STANDIN_GPUS": ""}, "shows no GPU"),
    ],
)
def test_a_driver_that_does_not_answer_says_why(
    tmp_path: Path, driver: Path, facts_of: MakeFacts, status: dict[str, str], fault: str
) -> None:
    machine = machines.h100_server(tmp_path, driver)
    machine.environment.update(status)
    facts = facts_of(machine)
    assert facts["gpus"] == []
    assert fault in facts["gpu_fault"]
    assert facts["driver"] == "580.65.06", "the kernel knows it"


def test_a_library_that_cannot_be_loaded_counts_as_missing(
    tmp_path: Path, driver: Path, facts_of: MakeFacts
) -> None:
    machine = machines.h100_server(tmp_path, driver)
    for name in ("libnvidia-ml.so.1", "libcuda.so.1"):
        write(tmp_path, f"usr/lib/x86_64-linux-gnu/{name}", "no library")
    assert "is not there" in facts_of(machine)["gpu_fault"]


def test_cuda_alone_is_asked_where_gpus_are_hidden(
    tmp_path: Path, driver: Path, facts_of: MakeFacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = machines.h100_server(tmp_path, driver)
    machine.environment["STANDIN_GPUS"] = "NVIDIA A10|8|6|23028;NVIDIA L4|8|9|23034"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    facts = facts_of(machine)
    assert [gpu["name"] for gpu in facts["gpus"]] == ["NVIDIA L4"]
    assert facts["driver"] == "580.65.06"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    facts = facts_of(machine)
    assert facts["gpus"] == []
    assert facts["gpu_fault"] == "the driver shows no GPU to this process"


def test_what_another_python_has_is_told_apart(
    tmp_path: Path, driver: Path, facts_of: MakeFacts
) -> None:
    machine = machines.orin_nano(tmp_path, driver)
    other = Machine(
        root=tmp_path, environment=machine.environment,
        interpreter=Interpreter("3.12", True, (str(tmp_path / "home/venv"),)),
    )  # fmt: skip
    facts = facts_of(other)
    assert facts["tensorrt"] == []
    (elsewhere,) = facts["tensorrt_elsewhere"]
    assert (elsewhere["python"], elsewhere["version"]) == ("3.10", "10.3.0.30")


def test_a_later_wheel_of_one_version_has_that_version(
    tmp_path: Path, driver: Path, facts_of: MakeFacts
) -> None:
    machine = machines.h100_server(tmp_path, driver)
    (site,) = machine.interpreter.paths
    for path in Path(site).glob("tensorrt_cu12*"):
        path.rename(path.with_name(path.name.replace("10.13.3.9", "10.3.0.post1")))
    (found,) = facts_of(machine)["tensorrt"]
    assert found["version"] == "10.3.0"


def test_a_runtime_reached_by_two_names_is_one(
    tmp_path: Path, driver: Path, facts_of: MakeFacts
) -> None:
    machine = machines.orin_nano(tmp_path, driver)
    (tmp_path / "usr/local/cuda").symlink_to("cuda-12.6")
    wheel = tmp_path / "usr/lib/python3.10/dist-packages"
    write(wheel, "nvidia/cu13/lib/libcudart.so.13", "")
    write(wheel, "nvidia_cuda_runtime-13.0.48.dist-info/METADATA", "")
    facts = facts_of(machine)
    assert [found["version"] for found in facts["cudart"]] == ["13.0.48", "12.6.68"]
    assert facts["cudart"][1]["path"].startswith(str(tmp_path / "usr/local/cuda/"))


def test_a_jetson_in_a_container_is_known_by_its_device_tree(
    tmp_path: Path, driver: Path, facts_of: MakeFacts
) -> None:
    machine = machines.orin_nano(tmp_path, driver)
    (tmp_path / "etc/nv_tegra_release").unlink()
    facts = facts_of(machine)
    assert (facts["soc"], facts["l4t"], facts["jetpack"]) == ("tegra234", None, None)
    status = tmp_path / "var/lib/dpkg/status"
    entry = "Package: nvidia-l4t-core\nStatus: install ok installed\nVersion: 36.4.3-2025010\n"
    status.write_text(status.read_text() + entry)
    assert facts_of(machine)["jetpack"] == "6.2", "a package tells as well"


@pytest.mark.parametrize(
    ("l4t", "jetpack"),
    [
        ("35.4.1", "5.1.2"), ("36.4.7", "6.2.1"), ("36.5.0", "6.2.2"), ("38.2.2", "7.0"),
        ("39.2.2", "7.2.2"), ("36.2.0", None), ("32.7.1", None), ("40.1.0", None), (None, None),
    ],
)  # fmt: skip
def test_jetpack_follows_from_l4t(l4t: str | None, jetpack: str | None) -> None:
    assert jetson.jetpack_of(l4t) == jetpack


def test_the_facts_are_told_to_people(tmp_path: Path, driver: Path, facts_of: MakeFacts) -> None:
    shown = describe_gpu(facts_of(machines.orin_nano(tmp_path, driver)))
    assert shown == {
        "module": "Jetson Orin Nano 8 GB",
        "jetpack": "6.2 (L4T 36.4.3)",
        "gpu": "Orin, compute capability 8.7, 7800 MiB shared with the processor",
        "cuda runtime": "12.6.68",
        "tensorrt": "10.3.0.30 (apt)",
        "power mode": "MAXN_SUPER",
    }


def test_a_machine_that_lacks_everything_is_told_to_people(
    tmp_path: Path, facts_of: MakeFacts
) -> None:
    machine = machines.plain_machine(tmp_path)
    machines.write_pci_gpu(tmp_path)
    facts = facts_of(machine)
    assert describe_gpu(facts) == {
        "gpu": "does not answer: `libcuda.so.1` is not there: the driver is not installed",
        "driver": "none loaded",
        "cuda runtime": "not found",
        "tensorrt": "not found for Python 3.11",
    }
    lines = detect.describe({"arch": "x86_64", "gpu": facts})
    assert lines[0].split() == ["arch", "x86_64"]
    assert lines[2].split(None, 1) == ["driver", "none loaded"]


def test_this_machine_can_be_asked() -> None:
    json.dumps(gpu_facts())
    assert this_interpreter().version == "{}.{}".format(*sys.version_info[:2])


def test_every_python_reads_the_same(
    tmp_path: Path, driver: Path, facts_of: MakeFacts, old_python: Path
) -> None:
    machine = machines.orin_nano(tmp_path, driver)
    ours = facts_of(machine)
    code = (
        "import json, sys\n"
        f"sys.path.append({str(Path(runtime.__file__).parents[1])!r})\n"
        "from runtime.nvidia.device import gpu_facts\n"
        "from runtime.nvidia.installed import Interpreter\n"
        f"interpreter = Interpreter{tuple(machine.interpreter)!r}\n"
        f"print(json.dumps(gpu_facts({machine.path!r}, interpreter)))\n"
        "assert 'tensorrt' not in sys.modules\n"
    )
    done = subprocess.run(
        [old_python, "-I", "-S", "-B", "-c", code], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == ours


def test_a_bundle_tells_which_engine_it_will_use(
    tmp_path: Path, driver: Path, facts_of: MakeFacts
) -> None:
    manifest: dict[str, Any] = {
        "engine": {"name": "onnxruntime", "version": "1.32.0"},
        "tensorrt": {
            "module": "tensorrt", "version": "10.3.0.30", "cuda": "12.6", "precision": "fp16",
            "compute_capabilities": ["8.7"], "needs": ["a GPU"], "engines": [],
        },
    }  # fmt: skip
    here = engine_outlook(manifest, facts_of(machines.orin_nano(tmp_path, driver)))
    assert here["engine"] == "TensorRT 10.3.0.30, fp16, once it is built here and checked"
    assert here["reasons"] == []
    assert here["rebuilt"] == []
    server = engine_outlook(
        {**manifest, "tensorrt": {**manifest["tensorrt"], "version": "10.13.3.9"}},
        facts_of(machines.h100_server(tmp_path / "server", driver)),
    )
    assert server["engine"] == (
        "TensorRT 10.13.3.9, fp16, once it is built here and checked: the bundle is for compute "
        "capability 8.7, and this GPU, NVIDIA H100 80GB HBM3, has 9.0"
    )
    there = engine_outlook(manifest, {})
    assert there["engine"].startswith("onnxruntime 1.32.0 on the CPU, not TensorRT 10.3.0.30: ")
    assert there["engine"].endswith("; ".join(there["reasons"]))
    assert there["needs"] == ["a GPU"]
