"""Opens the engine that a release names."""

from __future__ import annotations

import os
from typing import Any, Callable, Dict, Mapping, Optional, Protocol, Sequence

from .cgroups import available_cores
from .errors import ModelFault
from .onnxruntime import Session
from .signature import Signature
from .tensor import Tensor


class Engine(Protocol):
    """What a server needs of an engine; `run` may be called from several threads at once."""

    # properties: an engine that switches says what serves at that moment
    @property
    def name(self) -> str:
        """As in the manifest."""

    @property
    def version(self) -> str:
        """What the library itself says."""

    @property
    def provider(self) -> str:
        """What really runs the model."""

    @property
    def precision(self) -> str:
        """The artifact's, such as `int8-static`."""

    @property
    def threads(self) -> int:
        """Intra-op threads."""

    def run(
        self, feeds: Mapping[str, Tensor], outputs: Optional[Sequence[str]] = None
    ) -> Dict[str, Tensor]:
        """Return the outputs by name, as copies."""

    def close(self) -> None:
        """Wait for the calls under way and free the model."""


class OnnxRuntimeEngine:
    """The release's model in ONNX Runtime on the processor.

    Attributes:
        name: As in the manifest.
        version: What the library itself says.
        provider: What really runs the model.
        precision: The artifact's, such as `int8-static`, and whether its products are float here.
        threads: Intra-op threads.
        interface: The names of its inputs and of its outputs.

    Args:
        release: Has `.folder` and `.manifest`.
        threads: As for `open_engine`.
        artifact: The file to load, None for the manifest's.
    """

    name = "onnxruntime"
    provider = "CPUExecutionProvider"

    def __init__(
        self, release: Any, threads: Optional[int], artifact: Optional[str] = None
    ) -> None:
        engine: Mapping[str, Any] = release.manifest["engine"]
        asked = engine.get("threads", 0) if threads is None else threads
        keeps_pairs = _keeps_pairs(engine)
        self.precision = str(engine.get("precision", ""))
        if keeps_pairs:
            self.precision += ", multiplied in float32"
        self.threads = asked or available_cores()
        self._session = Session(
            os.path.join(release.folder, engine["library"]),
            os.path.join(release.folder, artifact or engine["artifact"]),
            threads=self.threads,
            keep_pairs=keeps_pairs,
        )
        self.version = self._session.version
        self.interface = (
            tuple(info.name for info in self._session.inputs),
            tuple(info.name for info in self._session.outputs),
        )
        # bound here, not wrapped: a server calls it for every request
        self.run = self._session.run
        self.close = self._session.close

    @property
    def signature(self) -> Signature:
        """What the file itself declares; a size that it leaves open has no bounds here."""
        return Signature(
            {
                kind: [
                    {
                        "name": info.name,
                        "dtype": info.dtype,
                        "shape": [
                            dim if isinstance(dim, int) else {"name": dim} for dim in info.shape
                        ],
                    }
                    for info in infos
                ]
                for kind, infos in (
                    ("inputs", self._session.inputs),
                    ("outputs", self._session.outputs),
                )
            }
        )


def _keeps_pairs(engine: Mapping[str, Any]) -> bool:
    """Tell whether Q/DQ pairs run as they stand; an unfused one rounds alike on every processor."""
    kept = engine.get("keep_pairs")
    if kept == "saturating":
        from .cpu import products_saturate

        return products_saturate()
    return kept == "always"


_ENGINES: Dict[str, Callable[[Any, Optional[int]], Engine]] = {
    "onnxruntime": OnnxRuntimeEngine,
}


def open_engine(
    release: Any, threads: Optional[int] = None, *, serving: bool = False, retune: bool = False
) -> Engine:
    """Return the release's engine with its model loaded.

    Where the release is for TensorRT, ONNX Runtime is loaded first and answers whenever there is
    no engine; `runtime.nvidia.switching` says which one does.

    Args:
        release: Has `.folder` and `.manifest`.
        threads: 0 for every core that this process may use, None for the manifest's choice.
        serving: Build an engine of TensorRT where there is none, in the background; otherwise one
            is used only if it is there.
        retune: With `serving`, build a new one even where one fits.

    Raises:
        ModelFault: an engine that this runtime does not have, or a model that does not load.
        TargetMismatch: the engine's library does not fit this machine.
    """
    name = release.manifest["engine"]["name"]
    make = _ENGINES.get(name)
    if make is None:
        raise ModelFault(
            "the release needs the engine `%s`, and this runtime has %s"
            % (name, ", ".join("`%s`" % known for known in sorted(_ENGINES))),
            hint="install a bundle made for this device",
        )
    engine = _open(make, release, threads)
    if not release.manifest.get("tensorrt"):
        return engine
    from .nvidia.maker import serve_switching, use_kept

    if serving:
        return serve_switching(release, engine, retune=retune)
    return use_kept(release, engine)


def _open(
    make: Callable[[Any, Optional[int]], Engine], release: Any, threads: Optional[int]
) -> Engine:
    if release.manifest["engine"].get("parts") is None:
        return make(release, threads)
    from .parts import open_parts

    return open_parts(release, threads)


def describe_choice(engine: Engine) -> Optional[str]:
    """Return in a sentence which engine answers and why, None where there is no choice."""
    status = getattr(engine, "status", None)
    if status is None:
        return None
    told = status()
    running = told["engine"]
    said = "%s %s, %s, %s; %s is %s" % (
        running["name"],
        running["version"],
        running["provider"],
        running["precision"],
        told["wanted"],
        told["state"],
    )
    reasons = [reason for reason in (told["reason"], *told["notes"]) if reason]
    return ": ".join([said, "; ".join(reasons)]) if reasons else said
