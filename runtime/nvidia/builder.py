"""Builds an engine from an ONNX graph, in the same way for TensorRT 8.5 to 11 and TensorRT-RTX."""

from __future__ import annotations

import json
import time
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from ..errors import ModelFault
from .driver import read_kernel_driver
from .messages import Journal, explain, known_cause, make_logger, parser_sentences
from .progress import LogLines, Pace, Phases, Report, make_monitor
from .request import BuildRequest, Profile, reason_against_dla
from .vendor import Vendor, working_tactic_libraries

_DYNAMIC = -1
# Building again from the timing cache skips the timing, which is most of the work.
_SHARE_OF_INSPECTED = 0.85
_NO_GPU_LOOKED = "TensorRT-RTX builds for other machines, and no GPU was there to look"


class BuildFailed(ModelFault):
    """An engine could not be built.

    Args:
        message: One sentence.
        hint: The fix, where one is known.
        log: The last lines of TensorRT's logger.
    """

    def __init__(self, message: str, hint: Optional[str] = None, log: Tuple[str, ...] = ()) -> None:
        super().__init__(message, hint)
        self.log = log


class BuildResult(NamedTuple):
    """A built engine.

    Attributes:
        plan: The serialized engine, a buffer that the vendor's library owns.
        timing_cache: What was measured, for a later build; None where nothing is measured.
        layers: From the engine inspector: one entry for each layer; None where it was not asked.
        not_inspected: Why not, in a sentence.
        log: The logger's last lines.
        seconds: From the first call to the finished plan.
    """

    plan: Any
    timing_cache: Optional[bytes]
    layers: Optional[List[Any]]
    not_inspected: Optional[str]
    log: List[str]
    seconds: float


def build_engine(
    vendor: Vendor,
    request: BuildRequest,
    *,
    progress: Report,
    timing_cache: Optional[bytes] = None,
    inspect: bool = True,
    journal: Optional[Journal] = None,
) -> BuildResult:
    """Build the engine of a request on this machine.

    Where it is inspected, the engine is built twice: once with all that the inspector can tell,
    and from the same timings once without, which is the one to use.

    Args:
        vendor: From `load_vendor`.
        request: What to build.
        progress: Takes each step.
        timing_cache: Of an earlier build with this TensorRT on this GPU.
        inspect: Ask the inspector what each layer computes in. TensorRT-RTX, which builds for
            other machines, has none to ask.
        journal: Keeps the logger's lines.

    Raises:
        BuildFailed: with what TensorRT said, as a sentence and in its own words.
    """
    return _Build(vendor, request, journal or Journal()).run(
        progress, timing_cache, inspect=inspect
    )


class _Build:
    """The vendor's objects of one build; a network lives only as long as builder and parser."""

    def __init__(self, vendor: Vendor, request: BuildRequest, journal: Journal) -> None:
        self._vendor = vendor
        self._request = request
        self._journal = journal
        self._name = "%s %s" % (vendor.name, vendor.version)
        self._started = time.monotonic()
        self._check()
        trt = vendor.trt
        self._logger = make_logger(trt, journal)
        try:
            self._builder = trt.Builder(self._logger)
        except Exception as fault:  # a factory that returned nothing, or more
            raise self._failed() from fault

    def run(self, progress: Report, timing_cache: Optional[bytes], *, inspect: bool) -> BuildResult:
        trt, journal = self._vendor.trt, self._journal
        network = self._builder.create_network(self._network_flags())
        parser = trt.OnnxParser(network, self._logger)
        config = self._builder.create_builder_config()
        self._prepare_parser(parser, config)
        if not parser.parse_from_file(self._request.path):
            raise self._not_parsed(parser)
        self._configure(config)
        self._add_profiles(network, config)
        cache = self._use_timing_cache(config, timing_cache)
        layers, refusal = None, _NO_GPU_LOOKED if self._vendor.is_rtx else None
        wanted = inspect and refusal is None
        share = _SHARE_OF_INSPECTED if wanted else 0.0
        if wanted:
            config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
            plan = self._serialize(network, config, Pace(progress, share=share))
            layers = self._inspect(plan)
            del plan
        # Names of nodes are nobody's business. TensorRT-RTX 1.7 keeps them whatever is asked.
        config.profiling_verbosity = trt.ProfilingVerbosity.NONE
        pace = Pace(progress, start=share, share=1.0 - share, since=self._started)
        plan = self._serialize(network, config, pace)
        pace.tell(1.0, "done")
        if not inspect and refusal is None:
            refusal = "the build was told not to look"
        return BuildResult(
            plan=plan,
            timing_cache=None if cache is None else bytes(config.get_timing_cache().serialize()),
            layers=layers,
            not_inspected=refusal,
            log=list(journal.lines),
            seconds=round(time.monotonic() - self._started, 3),
        )

    def _check(self) -> None:
        """Refuse what this TensorRT cannot do, before anything is loaded into it."""
        vendor, request = self._vendor, self._request
        if not request.strongly_typed and not vendor.has_precision_flags:
            raise BuildFailed(
                "the recipe is for a weakly typed network, which %s does not have" % self._name,
                "build the bundle for the target that has %s" % self._name,
            )
        if request.strongly_typed and not vendor.has_strong_typing:
            raise BuildFailed(
                "the recipe is for a strongly typed network, which %s does not have" % self._name,
                "build the bundle for the target that has %s" % self._name,
            )
        if request.version_compatible and (vendor.is_rtx or not vendor.has("version_compatible")):
            raise BuildFailed(
                "%s builds no version-compatible engines" % self._name,
                "leave `tensorrt.version_compatible` out of the recipe",
            )
        reason = reason_against_dla(request, vendor.numbers, self._name)
        if reason is not None:
            raise BuildFailed(reason, "build with `--precision fp16`, or without `dla_core`")

    def _network_flags(self) -> int:
        trt, flags = self._vendor.trt, 0
        if self._request.strongly_typed:
            flags |= 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        # Before 10 a network has an implicit batch without this; later it says nothing.
        if self._vendor.numbers < (10,) and self._vendor.has("explicit_batch"):
            flags |= 1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH)
        return flags

    def _prepare_parser(self, parser: Any, config: Any) -> None:
        """Let the parser shape layers for the accelerator, where it can."""
        if self._request.dla_core is None:
            return
        if not (self._vendor.has("adjust_for_dla") and self._vendor.has("parser_flags")):
            return
        parser.set_flag(self._vendor.trt.OnnxParserFlag.ADJUST_FOR_DLA)
        if self._vendor.has("parser_config"):
            parser.set_builder_config(config)

    def _configure(self, config: Any) -> None:
        trt, request, vendor = self._vendor.trt, self._request, self._vendor
        if request.workspace_mib is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request.workspace_mib << 20)
        if "fp16" in request.flags:
            config.set_flag(trt.BuilderFlag.FP16)
        if "int8" in request.flags:
            config.set_flag(trt.BuilderFlag.INT8)
        if request.sparse:
            config.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)
        if request.version_compatible:
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        if request.dla_core is not None:
            self._use_dla(config, request.dla_core)
        if vendor.is_rtx:
            self._set_compute_capabilities(config)
        else:
            self._leave_out_tactics(config)

    def _use_dla(self, config: Any, core: int) -> None:
        trt, count = self._vendor.trt, int(self._builder.num_DLA_cores)
        if core >= count:
            raise BuildFailed(
                "the recipe is for DLA core %d, and %s finds %s here"
                % (core, self._name, "%d of them" % count if count else "none"),
                "build the bundle without `dla_core`",
            )
        config.default_device_type = trt.DeviceType.DLA
        config.DLA_core = core
        if self._request.gpu_fallback:
            config.set_flag(trt.BuilderFlag.GPU_FALLBACK)

    def _set_compute_capabilities(self, config: Any) -> None:
        """Name the GPUs to build for; without any, the library's default stands."""
        wanted = self._request.compute_capabilities
        if not wanted or not self._vendor.has("compute_capabilities"):
            return
        known = self._vendor.trt.ComputeCapability
        config.num_compute_capabilities = len(wanted)
        for index, word in enumerate(wanted):
            value = getattr(known, "SM" + word.replace(".", ""), None)
            if value is None or not config.set_compute_capability(value, index):
                names = [name for name in dir(known) if name.startswith("SM")]
                raise BuildFailed(
                    "%s builds nothing for compute capability %s" % (self._name, word),
                    "it builds for " + ", ".join(sorted(names)),
                    tuple(self._journal.lines),
                )

    def _leave_out_tactics(self, config: Any) -> None:
        """Take kernels of cuBLAS and cuDNN only where those libraries are there (8.5, 8.6)."""
        trt, mask = self._vendor.trt, 0
        if self._vendor.has("cublas_tactics"):
            mask |= 1 << int(trt.TacticSource.CUBLAS)
        if self._vendor.has("cublaslt_tactics"):
            mask |= 1 << int(trt.TacticSource.CUBLAS_LT)
        if self._vendor.has("cudnn_tactics"):
            mask |= 1 << int(trt.TacticSource.CUDNN)
        sources = config.get_tactic_sources()
        if not sources & mask:
            return
        for word in working_tactic_libraries():
            mask &= ~(1 << int(getattr(trt.TacticSource, word)))
        config.set_tactic_sources(sources & ~mask)

    def _add_profiles(self, network: Any, config: Any) -> None:
        inputs = [network.get_input(index) for index in range(network.num_inputs)]
        dynamic = {
            tensor.name for tensor in inputs if _DYNAMIC in tensor.shape or tensor.is_shape_tensor
        }
        names = {tensor.name for tensor in inputs}
        if dynamic and not self._request.profiles:
            raise BuildFailed(
                "input `%s` has no fixed shape, and the recipe has no profile" % min(dynamic),
                "build the bundle again with `--dim`, which gives each size a range",
            )
        for shapes in self._request.profiles:
            lacking, strange = dynamic - set(shapes), set(shapes) - names
            if lacking or strange:
                raise BuildFailed(
                    "a profile of the recipe lacks input `%s`" % min(lacking)
                    if lacking
                    else "a profile of the recipe names input `%s`, which the graph does not have"
                    % min(strange),
                    "build the bundle again",
                )
            self._add_profile(inputs, shapes, config)

    def _add_profile(self, inputs: List[Any], shapes: Profile, config: Any) -> None:
        profile = self._builder.create_optimization_profile()
        for tensor in inputs:
            bounds = shapes.get(tensor.name)
            if bounds is None:
                continue
            low, usual, high = bounds["min"], bounds["opt"], bounds["max"]
            try:
                if tensor.is_shape_tensor:
                    profile.set_shape_input(tensor.name, low, usual, high)
                    continue
                _check_rank(tensor, bounds)
                profile.set_shape(tensor.name, low, usual, high)
            except (RuntimeError, ValueError) as fault:
                raise BuildFailed(
                    "the profile of input `%s` cannot be: %s" % (tensor.name, fault),
                    "build the bundle again",
                    tuple(self._journal.lines),
                ) from fault
        if config.add_optimization_profile(profile) < 0:
            raise self._failed()

    def _use_timing_cache(self, config: Any, data: Optional[bytes]) -> Any:
        """Start from earlier timings; ones that this TensorRT refuses are as good as none."""
        if not self._vendor.has_timing_cache:
            return None
        for content in (data, b""):
            if content is None:
                continue
            cache = config.create_timing_cache(content)
            if cache is not None and config.set_timing_cache(cache, False):
                return cache
        return None

    def _serialize(self, network: Any, config: Any, pace: Pace) -> Any:
        profiles = len(self._request.profiles)
        if self._vendor.has_progress_monitor:
            phases = Phases(profiles, timed=not self._vendor.is_rtx)
            config.progress_monitor = make_monitor(self._vendor.trt, phases, pace)
        else:
            lines = LogLines(profiles)
            self._journal.watch = lambda text: _tell(pace, lines.read(text))
        try:
            plan = self._builder.build_serialized_network(network, config)
        except Exception as fault:  # whatever the library raises is kept
            self._journal.add("ERROR", str(fault))
            raise self._failed() from fault
        finally:
            self._journal.watch = None
        if plan is None:
            raise self._failed()
        return plan

    def _inspect(self, plan: Any) -> List[Any]:
        """Return what the inspector tells of each layer."""
        trt = self._vendor.trt
        runtime = trt.Runtime(self._logger)
        if self._request.version_compatible:
            # The plan was made by this process from a graph that was checked.
            runtime.engine_host_code_allowed = True
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise self._failed()
        inspector = engine.create_engine_inspector()
        context = self._context(engine)
        if context is not None:
            inspector.execution_context = context
        text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
        try:
            # Names may hold the control characters that part the nodes of a fused layer.
            layers = json.loads(text, strict=False)["Layers"]
        except (ValueError, KeyError, TypeError) as fault:
            raise BuildFailed(
                "the engine inspector's answer is no JSON with layers", None, (text[:600],)
            ) from fault
        return list(layers)

    def _context(self, engine: Any) -> Any:
        """Return a context at the usual sizes, without which dynamic layers tell no formats."""
        context = engine.create_execution_context()
        if context is not None:
            for name, bounds in (self._request.profiles or ({},))[0].items():
                if engine.get_tensor_location(name) == self._vendor.trt.TensorLocation.DEVICE:
                    context.set_input_shape(name, bounds["opt"])
        return context

    def _not_parsed(self, parser: Any) -> BuildFailed:
        sentences = parser_sentences(parser, self._request.path, self._name)
        if not sentences or known_cause(self._journal, self._name) is not None:
            return self._failed()
        more = len(sentences) - 1
        return BuildFailed(
            sentences[0] + ("; and %d more" % more if more else ""),
            "build the bundle again for this target, which moves such nodes to the CPU",
            tuple(self._journal.lines),
        )

    def _failed(self) -> BuildFailed:
        message, hint = explain(self._journal, self._name, driver=read_kernel_driver("/"))
        return BuildFailed(message, hint, tuple(self._journal.lines))


def _check_rank(tensor: Any, bounds: Dict[str, Tuple[int, ...]]) -> None:
    """Refuse shapes that the graph's input cannot have.

    Raises:
        ValueError: another rank, or another size where the graph has a fixed one.
    """
    shape = tuple(tensor.shape)
    for bound, given in sorted(bounds.items()):
        fits = len(given) == len(shape) and all(
            shape[axis] in (_DYNAMIC, size) for axis, size in enumerate(given)
        )
        if not fits:
            raise ValueError(
                "%s %s does not fit the graph's %s" % (bound, list(given), list(shape))
            )


def _tell(pace: Pace, fraction: Optional[float]) -> None:
    if fraction is not None:
        pace.tell(fraction, "timing kernels" if fraction < 1 else "done")
