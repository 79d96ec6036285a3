"""What keeps an engine from running here is said in one sentence, with what mends it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from packager.backends.tensorrt import needs
from runtime.nvidia import obstacles
from runtime.nvidia.device import reasons_against_engine
from runtime.nvidia.installed import Interpreter
from runtime.nvidia.obstacles import why_rebuilt
from tests.standin import machines
from tests.standin.machines import Machine, write

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    MakeFacts = Callable[[Machine], dict[str, Any]]

NANO: dict[str, Any] = {
    "module": "tensorrt", "version": "10.3.0.30", "cuda": "12.6", "l4t": "36.4.3",
    "compute_capabilities": ["8.7"], "dla_core": None, "engines": [],
}  # fmt: skip
H100: dict[str, Any] = {
    **NANO, "version": "10.13.3.9", "cuda": "12.9", "l4t": "", "compute_capabilities": ["9.0"],
}  # fmt: skip
RTX: dict[str, Any] = {
    **NANO, "module": "tensorrt_rtx", "version": "1.7.1.116", "cuda": "13.0", "l4t": "",
    "compute_capabilities": ["8.6", "8.9"], "engines": [{"fingerprint": "f"}],
}  # fmt: skip


@pytest.fixture
def nano(tmp_path: Path, driver: Path, facts_of: MakeFacts) -> dict[str, Any]:
    """Return the facts of an Orin Nano under JetPack 6.2."""
    return facts_of(machines.orin_nano(tmp_path / "nano", driver))


@pytest.fixture
def server(tmp_path: Path, driver: Path, facts_of: MakeFacts) -> dict[str, Any]:
    """Return the facts of a server with two H100."""
    return facts_of(machines.h100_server(tmp_path / "server", driver))


def only(wanted: dict[str, Any], facts: dict[str, Any]) -> str:
    """Return the only reason."""
    (reason,) = reasons_against_engine(wanted, facts)
    return reason


def test_nothing_is_against_the_devices_that_the_targets_are_for(
    tmp_path: Path, driver: Path, facts_of: MakeFacts, nano: Any, server: Any
) -> None:
    assert reasons_against_engine(NANO, nano) == []
    assert reasons_against_engine(H100, server) == []
    five = {**NANO, "version": "8.5.2.2", "cuda": "11.4", "l4t": "35.2.1"}
    agx = facts_of(machines.agx_orin(tmp_path / "agx", driver))
    assert reasons_against_engine({**five, "dla_core": 1}, agx) == []
    seven = {**NANO, "version": "10.16.2.10", "cuda": "13.2", "l4t": "39.2",
             "compute_capabilities": ["11.0"]}  # fmt: skip
    assert reasons_against_engine(seven, facts_of(machines.thor(tmp_path / "thor", driver))) == []


def test_a_machine_without_a_gpu_has_one_reason() -> None:
    assert "no NVIDIA GPU: in a container, start it with `docker run --gpus all`" in only(H100, {})


def test_a_missing_driver_is_the_first_thing_to_mend(server: dict[str, Any]) -> None:
    facts = {**server, "driver": None, "driver_cuda": None, "gpus": [], "gpu_fault": "x"}
    assert only(H100, facts) == (
        "the NVIDIA GPU has no driver loaded: `sudo apt-get install nvidia-driver-580-server`,"
        " then restart"
    )


@pytest.mark.parametrize(
    ("cuda", "found", "minimum"),
    [
        ("13.0", "575.51.03", "580.65.06"),
        ("12.9", "520.61.05", "525.60.13"),
        ("11.4", "418.39", "450.80.02"),
    ],
)
def test_a_driver_too_old_names_the_lowest(
    server: dict[str, Any], cuda: str, found: str, minimum: str
) -> None:
    reason = only({**H100, "cuda": cuda}, {**server, "driver": found})
    assert reason.startswith(
        f"driver {found} is too old for CUDA {cuda}, which needs {minimum} or later: `sudo apt-get"
    )


def test_every_minor_cuda_runs_on_the_lowest_driver_of_its_major(server: dict[str, Any]) -> None:
    facts = {**server, "driver": "525.60.13", "driver_cuda": "12.0"}
    assert reasons_against_engine(H100, facts) == []


def test_the_driver_of_a_jetson_comes_with_its_system(nano: dict[str, Any]) -> None:
    assert nano["driver"] is None
    assert reasons_against_engine(NANO, {**nano, "driver": "1.0"}) == []


def test_the_host_knows_the_same_drivers() -> None:
    assert needs.MINIMUM_DRIVERS == obstacles.MINIMUM_DRIVERS


def test_a_gpu_of_another_kind_gets_an_engine_of_its_own_in_one_sentence(
    server: dict[str, Any],
) -> None:
    wanted = {**H100, "compute_capabilities": ["8.0", "8.9"]}
    assert reasons_against_engine(wanted, server) == []
    (said,) = why_rebuilt(wanted, server)
    assert said.startswith("the bundle is for compute capability 8.0 or 8.9, and this GPU, NVIDIA")
    assert said.endswith("H100 80GB HBM3, has 9.0")
    assert why_rebuilt(H100, server) == []


def test_a_gpu_of_another_kind_is_not_of_the_targets_class(server: dict[str, Any]) -> None:
    wanted = {**H100, "compute_capabilities": ["8.0", "8.9"]}
    (obstacle,) = obstacles.obstacles(wanted, server, of_class=True)
    assert obstacle.what == (
        "the engine is for compute capability 8.0 or 8.9, and this machine has "
        "NVIDIA H100 80GB HBM3 (9.0), NVIDIA H100 80GB HBM3 (9.0)"
    )
    assert obstacle.fix == "`edgepack build MODEL -t TARGET`, with a target of that GPU"


def test_a_gpu_that_tensorrt_rtx_has_no_kernels_for_is_refused(server: dict[str, Any]) -> None:
    found = {"module": "tensorrt_rtx", "version": "1.7.1.116", "origin": "wheel", "path": "p"}
    reason = only({**RTX, "cuda": "12.9"}, {**server, "tensorrt": [found]})
    assert reason.startswith(
        "TensorRT-RTX has kernels for compute capability 7.5 or 8.0 or 8.6 or 8.9 or 12.0 or 12.1,"
    )
    assert "(9.0)" in reason
    blackwell = [{**server["gpus"][0], "compute_capability": "12.0"}]
    facts = {**server, "tensorrt": [found], "gpus": blackwell}
    assert reasons_against_engine({**RTX, "cuda": "12.9"}, facts) == []
    assert len(why_rebuilt(RTX, facts)) == 1


def test_what_the_bundle_carries_need_not_be_installed(server: dict[str, Any]) -> None:
    ada = {**server["gpus"][0], "compute_capability": "8.9"}
    facts = {**server, "gpus": [ada], "tensorrt": [], "cudart": []}
    wanted = {**RTX, "carried_pythons": ["3.8", "3.12"]}
    assert facts["python"] == "3.12"
    assert reasons_against_engine(wanted, facts) == []
    assert only(wanted, {**facts, "python": "3.14"}) == (
        "the bundle carries TensorRT-RTX for CPython 3.8 to 3.12, and this is 3.14:"
        " start the bundle with `python3.12`"
    )
    # What is installed beside it does not count.
    other = {"module": "tensorrt_rtx", "version": "1.8.0.15", "origin": "wheel", "path": "p"}
    assert reasons_against_engine(wanted, {**facts, "tensorrt": [other]}) == []
    assert why_rebuilt(wanted, {**facts, "tensorrt": [other]}) == []


def test_one_gpu_of_the_right_kind_among_others_is_enough(server: dict[str, Any]) -> None:
    other = {**server["gpus"][0], "compute_capability": "8.6"}
    facts = {**server, "gpus": [server["gpus"][0], other]}
    assert reasons_against_engine(H100, facts) == []
    assert reasons_against_engine(H100, {**server, "gpus": [other, server["gpus"][0]]}) == []


def test_a_gpu_that_does_not_answer_gives_the_drivers_reason(
    nano: dict[str, Any], server: dict[str, Any]
) -> None:
    silent = {"gpus": [], "gpu_fault": "the GPU has fallen off the bus"}
    assert only(H100, {**server, **silent}).startswith(
        "no GPU answers (the GPU has fallen off the bus): `nvidia-smi` tells more"
    )
    reason = only(NANO, {**nano, **silent})
    assert "`sudo usermod -aG video,render $USER`" in reason
    assert "`docker run --runtime nvidia`" in reason


def test_an_older_jetpack_is_refused(nano: dict[str, Any]) -> None:
    facts = {**nano, "l4t": "36.4.0", "jetpack": "6.1"}
    assert only(NANO, facts) == (
        "L4T 36.4.0 (JetPack 6.1) is older than the 36.4.3 that the bundle was built for:"
        " update the device's JetPack, or `edgepack build MODEL -t MODULE@6.1`"
    )
    newer = {**nano, "l4t": "36.5.0", "jetpack": "6.2.2"}
    assert reasons_against_engine(NANO, newer) == []
    assert reasons_against_engine({**NANO, "l4t": "36.4"}, nano) == []
    unknown = {**nano, "l4t": None, "jetpack": None}
    assert reasons_against_engine(NANO, unknown) == [], "a container does not tell"


def test_a_missing_tensorrt_comes_with_its_command(
    nano: dict[str, Any], server: dict[str, Any]
) -> None:
    none = {"tensorrt": [], "tensorrt_elsewhere": []}
    assert only(NANO, {**nano, **none}) == (
        "TensorRT 10.3.0.30 is not installed for Python 3.10:"
        " `sudo apt-get install python3-libnvinfer`"
    )
    assert only(H100, {**server, **none}) == (
        "TensorRT 10.13.3.9 is not installed for Python 3.12:"
        " `python3 -m pip install 'tensorrt-cu12==10.13.*'`"
    )
    old = {**H100, "version": "8.5.3.1", "cuda": "11.8"}
    assert only(old, {**server, **none}).endswith("`python3 -m pip install 'tensorrt==8.5.*'`")
    ada = {**server, **none, "gpus": [{**server["gpus"][0], "compute_capability": "8.9"}]}
    assert only(RTX, ada) == (
        "TensorRT-RTX 1.7.1.116 is not installed for Python 3.12:"
        " `python3 -m pip install 'tensorrt-rtx-cu13==1.7.1.116'`"
    )


def test_another_major_version_is_refused(nano: dict[str, Any], server: dict[str, Any]) -> None:
    eleven = [{**server["tensorrt"][0], "version": "11.4.0.106"}]
    assert only(H100, {**server, "tensorrt": eleven}) == (
        "the bundle is for TensorRT 10.13.3.9, and Python 3.12 has 11.4.0.106:"
        " `python3 -m pip install 'tensorrt-cu12==10.13.*'`"
    )
    # Where the JetPack itself has another, no package mends it: the bundle is of another JetPack.
    five = {**NANO, "version": "8.5.2.2", "cuda": "11.4", "l4t": "35.2.1"}
    assert only(five, nano).endswith("10.3.0.30: `edgepack build MODEL -t MODULE@6.2`, for the"
                                     " JetPack that is here")  # fmt: skip


def test_an_older_minor_version_is_refused_and_a_newer_one_is_not(server: dict[str, Any]) -> None:
    def with_version(version: str) -> dict[str, Any]:
        return {**server, "tensorrt": [{**server["tensorrt"][0], "version": version}]}

    reason = only(H100, with_version("10.7.0"))
    assert reason.startswith("TensorRT 10.7.0 is older than the 10.13.3.9 that the model was made")
    assert reasons_against_engine(H100, with_version("10.16.1.11")) == []
    assert reasons_against_engine(H100, with_version("10.13.0.35")) == []


def test_an_rtx_engine_runs_in_its_own_release_alone(server: dict[str, Any]) -> None:
    def ada(version: str | None) -> dict[str, Any]:
        found = {"module": "tensorrt_rtx", "version": version, "origin": "wheel", "path": "p"}
        gpu = {**server["gpus"][0], "compute_capability": "8.9"}
        return {**server, "gpus": [gpu], "tensorrt": [found]}

    assert reasons_against_engine(RTX, ada("1.7.1.116")) == []
    assert reasons_against_engine(RTX, ada(None)) == [], "its import will tell"
    said = "the engine runs in TensorRT-RTX 1.7.1.116 alone, and Python 3.12 has 1.8.0.15"
    (obstacle,) = obstacles.obstacles(RTX, ada("1.8.0.15"), of_class=True)
    assert obstacle == (said, "`python3 -m pip install 'tensorrt-rtx-cu13==1.7.1.116'`")
    # A later one builds its own.
    assert reasons_against_engine(RTX, ada("1.8.0.15")) == []
    assert why_rebuilt(RTX, ada("1.8.0.15")) == [said]
    assert why_rebuilt(RTX, ada("1.7.1.116")) == why_rebuilt(RTX, ada(None)) == []
    assert why_rebuilt({**RTX, "engines": []}, ada("1.8.0.15")) == []
    assert only(RTX, ada("1.6.0.2")).startswith(
        "TensorRT-RTX 1.6.0.2 is older than the 1.7.1.116 that the model was made for"
    )


@pytest.mark.parametrize(
    ("l4t", "jetpack", "version", "words"),
    [
        ("36.4.3", "6.2", "10.3.0", "whose wheels are for servers and not for JetPack 6.2"),
        ("39.2.0", "7.2", "10.13.3.9", "lacks this GPU's kernels"),
        ("39.2.0", "7.2", "10.16.1.11", None),
    ],
)
def test_a_wheel_for_servers_is_told_on_a_jetson(
    nano: dict[str, Any], l4t: str, jetpack: str, version: str, words: str | None
) -> None:
    wheel = {**nano["tensorrt"][0], "origin": "wheel", "version": version}
    facts = {**nano, "l4t": l4t, "jetpack": jetpack, "tensorrt": [wheel]}
    reasons = reasons_against_engine(NANO, facts)
    if words is None:
        assert reasons == []
        return
    (reason,) = reasons
    assert words in reason
    assert reason.endswith(
        ": `python3 -m pip uninstall tensorrt`, then `sudo apt-get install python3-libnvinfer`"
    )


def test_a_wheel_from_an_index_is_known_by_the_libraries_that_it_carries(
    tmp_path: Path, driver: Path, facts_of: MakeFacts
) -> None:
    machine = machines.orin_nano(tmp_path, driver)
    local = tmp_path / "home/.local/lib/python3.10/site-packages"
    write(local, "tensorrt/__init__.py", "")
    write(local, "tensorrt_libs/libnvinfer.so.10", "")
    write(local, "tensorrt-10.13.3.9.dist-info/METADATA", "")
    paths = (str(local), *machine.interpreter.paths)
    pip = Machine(root=tmp_path, interpreter=Interpreter("3.10", False, paths),
                  environment=machine.environment)  # fmt: skip
    assert "TensorRT 10.13.3.9 comes from a package index" in only(NANO, facts_of(pip))


def test_an_environment_that_hides_the_systems_tensorrt_is_told(
    tmp_path: Path, driver: Path, facts_of: MakeFacts
) -> None:
    machine = machines.orin_nano(tmp_path, driver)

    def under(version: str, *, isolated: bool) -> dict[str, Any]:
        interpreter = Interpreter(version, isolated, ())
        return facts_of(
            Machine(root=tmp_path, interpreter=interpreter, environment=machine.environment)
        )

    assert only(NANO, under("3.10", isolated=True)) == (
        "this virtual environment does not see the system's TensorRT 10.3.0.30:"
        " `python3 -m venv --system-site-packages FOLDER` makes one that does, or start the bundle"
        " with `/usr/bin/python3.10`"
    )
    assert only(NANO, under("3.12", isolated=True)) == (
        "TensorRT 10.3.0.30 is installed for another Python than this 3.12:"
        " start the bundle with `/usr/bin/python3.10`"
    )
    assert "not installed for Python 3.12" in only(
        {**RTX, "compute_capabilities": ["8.7"]}, under("3.12", isolated=False)
    )


def test_a_missing_cuda_runtime_comes_with_its_command(
    nano: dict[str, Any], server: dict[str, Any]
) -> None:
    assert only(NANO, {**nano, "cudart": []}) == (
        "the CUDA runtime (libcudart.so.12) is not installed:"
        " `sudo apt-get install cuda-cudart-12-6`"
    )
    assert only(H100, {**server, "cudart": []}).endswith(
        "`python3 -m pip install 'nvidia-cuda-runtime-cu12==12.*'`"
    )
    thirteen = {**H100, "cuda": "13.0"}
    assert only(thirteen, {**server, "cudart": []}).endswith(
        "`python3 -m pip install 'nvidia-cuda-runtime==13.*'`"
    )


def test_a_cuda_runtime_newer_than_the_driver_does_not_count(server: dict[str, Any]) -> None:
    facts = {**server, "driver": "550.54.15", "driver_cuda": "12.4"}
    later = {"version": "13.0.48", "path": "p"}
    reason = only(H100, {**facts, "cudart": [later]})
    assert reason.startswith("the CUDA runtime 13.0.48 needs a newer driver than this one, of CUDA")
    assert reasons_against_engine(H100, {**facts, "cudart": [later, *server["cudart"]]}) == []


def test_an_accelerator_that_the_module_lacks_is_told(nano: dict[str, Any]) -> None:
    reason = only({**NANO, "dla_core": 0}, nano)
    assert reason.startswith("the bundle wants DLA core 0, and Jetson Orin Nano 8 GB has 0:")


def test_every_reason_ends_with_something_to_run(
    nano: dict[str, Any], server: dict[str, Any]
) -> None:
    broken = {"cudart": [], "tensorrt": [], "tensorrt_elsewhere": []}
    jetson = {**nano, **broken, "l4t": "36.3.0", "jetpack": "6.0"}
    found = [
        *reasons_against_engine({**NANO, "dla_core": 1, "compute_capabilities": ["7.2"]}, jetson),
        *reasons_against_engine(RTX, {**server, **broken, "driver": "470.1"}),
    ]
    assert len(found) == 8
    for reason in found:
        what, colon, fix = reason.partition(": ")
        assert what[0].islower() or what.startswith(("L4T", "TensorRT"))
        assert colon
        assert "`" in fix
        assert not reason.endswith(".")
