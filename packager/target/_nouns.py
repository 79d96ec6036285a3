"""What a target is made of: engine, int8 scheme, TensorRT, flashing."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class EngineLibrary:
    """The engine's shared library inside a package of the index, bound by digests.

    Attributes:
        platform: The wheel's platform tag, for `pip download --platform`.
        python_tag: The wheel's interpreter tag; the library itself needs no Python.
        wheel_sha256: Digest of the whole wheel file.
        member: Path of the library inside the wheel.
        member_sha256: Digest of the library.
        licenses: Paths inside the wheel of the texts that must travel along.
    """

    package: str
    version: str
    python_tag: str
    platform: str
    wheel_sha256: str
    member: str
    member_sha256: str
    member_size: int
    licenses: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Engine:
    """What loads the artifact on the device.

    Attributes:
        name: `onnxruntime`.
        max_opset: The highest opset of the default domain that the engine reads.
        max_ir_version: The highest ONNX IR version that it reads.
        library: Where the shared library comes from.
    """

    name: str
    version: str
    max_opset: int
    max_ir_version: int
    library: EngineLibrary


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """The int8 scheme that the target's kernels want.

    Attributes:
        activation: `uint8` or `int8`.
        weight: `uint8` or `int8`.
        reduce_range: Weights use seven bits, so that 16-bit partial sums never saturate.
        per_channel: One weight scale per output channel.
        why: The reason, shown in the plan.
        symmetric: Zero points of activations are zero.
        bias: `int32`, or `float` where the engine takes no quantized biases (TensorRT).
    """

    activation: str
    weight: str
    reduce_range: bool
    per_channel: bool
    why: str
    symmetric: bool = False
    bias: str = "int32"

    def in_words(self) -> str:
        """Return the scheme as `U8S8 per channel, 7-bit weights`."""
        kinds = (self.activation, self.weight)
        letters = "".join("U8" if kind == "uint8" else "S8" for kind in kinds)
        channels = "per channel" if self.per_channel else "per tensor"
        return f"{letters} {channels}{', 7-bit weights' if self.reduce_range else ''}"


@dataclass(frozen=True, kw_only=True)
class TensorRT:
    """What builds and runs the engine on an NVIDIA GPU.

    Attributes:
        module: `tensorrt`, whose engines are built on the device (or on one like it), or
            `tensorrt_rtx`, whose engines are built ahead of time on any host.
        version: As the device has it, `10.3.0.30`: an engine belongs to one build of TensorRT.
        cuda: Version of CUDA, as `12.6`.
        compute_capability: Of the GPU, as `8.7`.
        compute_capabilities: All that one engine is built for; more than one with
            `tensorrt_rtx` alone.
        memory: `shared` where CPU and GPU have the same (Jetson, DGX Spark), else `own`.
        gpu_memory_mib: What the GPU can address; with `shared` memory, the device's.
        max_opset: The highest opset of the default domain that the parser reads.
        max_ir_version: The highest ONNX IR version that the parser was built with.
        dla_cores: Deep learning accelerators beside the GPU.
        dla_version: Their generation, `1.0` on Xavier and `2.0` on Orin.
        l4t: Lowest Jetson Linux of the JetPack, as `36.4.3`.
        packages: What the device must have installed, as apt or pip names.
        uncertain: What no one could verify, one sentence each.
    """

    module: str
    version: str
    cuda: str
    compute_capability: str
    memory: str
    gpu_memory_mib: int
    max_opset: int
    max_ir_version: int
    compute_capabilities: tuple[str, ...] = ()
    dla_cores: int = 0
    dla_version: str = ""
    l4t: str = ""
    packages: tuple[str, ...] = ()
    uncertain: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Build for the GPU's own compute capability where nothing else is said."""
        if not self.compute_capabilities:
            object.__setattr__(self, "compute_capabilities", (self.compute_capability,))

    @property
    def strongly_typed(self) -> bool:
        """Tell whether precision lies in the graph alone, and not in builder flags as in 8.x."""
        return self.module == "tensorrt_rtx" or int(self.version.partition(".")[0]) >= 10


@dataclass(frozen=True, kw_only=True)
class Flash:
    """How a Jetson module is called by the tools that write its system.

    Attributes:
        parts: NVIDIA's part numbers with their SKU, as `p3767-0003`, which
            /proc/device-tree/compatible carries too.
        board: Board configuration for flash.sh and l4t_initrd_flash.sh.
        root_device: Where the root file system lies, as `nvme0n1p1`.
    """

    parts: tuple[str, ...]
    board: str
    root_device: str


@dataclass(frozen=True, kw_only=True)
class Target:
    """One class of device.

    Attributes:
        arch: `x86_64` or `aarch64`, as `platform.machine()` says it.
        libc: Lowest C library, as `glibc 2.28`.
        python: Lowest CPython on the device, as `3.8`.
        cpu_features_all: Flags of /proc/cpuinfo that the device must have.
        cpu_features_any: Of these it must have at least one; empty for no such demand.
        memory_mib: Memory of the whole device.
        threads: Intra-op threads of the engine; 0 for one per core of the device.
        precisions: What the target runs fast, best first.
        sparsity: Patterns of zero weights that the target's kernels gain from, as `2:4`.
        emulators: CPU models of `qemu-<arch>` under which artifacts are checked as well.
        verified: How this target was tried, in a sentence.
        board: What a person calls the device; None for a whole class of them.
        tensorrt: What builds and runs its engine; None for a target without an NVIDIA GPU.
        flash: How its system is written; None for all but Jetson modules.
        jetpack: The JetPack that the values hold for, which `name` ends in: `…@6.2`.
        jetpacks: Every JetPack that the target file has.
    """

    name: str
    title: str
    family: str
    arch: str
    os: str
    libc: str
    python: str
    memory_mib: int
    threads: int
    precisions: tuple[str, ...]
    engine: Engine
    quantization: Quantization
    cpu_features_all: tuple[str, ...] = ()
    cpu_features_any: tuple[str, ...] = ()
    sparsity: tuple[str, ...] = ()
    emulators: tuple[str, ...] = ()
    verified: str = "not run"
    board: str | None = None
    tensorrt: TensorRT | None = None
    flash: Flash | None = None
    jetpack: str = ""
    jetpacks: tuple[str, ...] = ()

    @property
    def module_name(self) -> str:
        """The name without the JetPack, as the target file is called."""
        return self.name.partition("@")[0]
