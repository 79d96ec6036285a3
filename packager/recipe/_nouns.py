"""What the user wants: the recipe and its parts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from packager.recipe._serving import Privacy, Sequences, Server

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from packager.recipe._inputs import AudioInput, ColumnsInput, ImageInput, TextInput
    from packager.recipe._outputs import BoxOutputs, OutputSteps

PRECISIONS = (
    "auto", "fp32", "fp16", "bf16", "int8", "int8-static", "int8-static+fp16", "int8-dynamic",
    "int8-weights", "int4",
)  # fmt: skip
OBJECTIVES = ("latency", "size", "balanced")


@dataclass(frozen=True, kw_only=True)
class DimRange:
    """The sizes of a dynamic dimension that requests may have."""

    min: int
    max: int
    opt: int


DEFAULT_BATCH = DimRange(min=1, max=32, opt=1)


@dataclass(frozen=True, kw_only=True)
class DataSource:
    """Where samples come from.

    Attributes:
        word: As the user typed it, for messages.
        path: A folder of photos, `.wav`, `.npy` or `.npz` files; one `.npy`, `.npz`, `.csv` or
            `.parquet` file with a row per sample; or a `.py` file. None for random samples.
        function: The generator in a `.py` file: yields a dict of arrays by input name, or
            (dict, label).
        random: So many made-up samples, which only the word `random` asks for.
    """

    word: str
    path: Path | None = None
    function: str = ""
    random: int = 0


@dataclass(frozen=True, kw_only=True)
class Drop:
    """How much worse than the original's a metric may be.

    Attributes:
        value: In the metric's unit (0.005 for half a point of a share), at least 0.
        relative: It is a share of the original's value instead.
    """

    value: float
    relative: bool = False


@dataclass(frozen=True, kw_only=True)
class Compression:
    """What compression may do.

    Without `metric` a candidate keeps the budget where its answers are the original's: top-1
    agreement of at least 0.99, or a cosine of at least `min_cosine`.

    Attributes:
        precision: One of PRECISIONS; `auto` leaves the choice to the search.
        objective: One of OBJECTIVES: what the best candidate is best at.
        metric: A name from `checks.metrics`, or `file.py:function`; empty for none.
        max_drop: The budget in that metric; one hundredth where only the metric is named.
        time_budget_s: The search starts no further candidate after this time.
        min_cosine: A candidate whose mean cosine similarity is below has drifted.
        min_agreement: A candidate whose top-1 agreement is below has drifted whatever its metric
            says, where at least 20 rows were compared: a metric alone hides damage.
        op_types: Operators that static int8 quantizes; empty for the pass's own choice.
    """

    precision: str = "auto"
    objective: str = "latency"
    metric: str = ""
    max_drop: Drop | None = None
    time_budget_s: float = 600.0
    min_cosine: float = 0.99
    min_agreement: float = 0.9
    op_types: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Training:
    """Compression that trains: `[train]` in a recipe; only for a torch module from a factory.

    Attributes:
        function: The user's hook, `file.py:function(module, session)`, see `training.Session`.
        prune: Share of the parameters to remove by pruning channels and heads; 0 for none.
        sparsity: `2:4` for targets that run it, else empty.
        quantize: Train with simulated int8 quantization.
        distill: Give the hook the original as a teacher.
        student: Another factory, `file.py:make_student`: its module is trained by the hook with
            the original as its teacher, and then competes with it.
        time_limit_s: How long the hook may take for each of the forms above.
    """

    function: str | None = None
    prune: float = 0.0
    sparsity: str = ""
    quantize: bool = False
    distill: bool = False
    student: str | None = None
    time_limit_s: float = 600.0


@dataclass(frozen=True, kw_only=True)
class TensorRTOptions:
    """How engines are built: `[tensorrt]` in a recipe; only for targets that have TensorRT.

    Attributes:
        workspace_mib: Memory that one layer may use while it computes; 0 takes a share of the
            device's.
        dla_core: The deep learning accelerator to run on, with the GPU for what it cannot; -1 for
            the GPU alone.
        version_compatible: The engine outlives an update of TensorRT, at some cost in speed; it
            then carries code of its own.
        cuda_graphs: Record the kernels of each shape once and launch them as one.
    """

    workspace_mib: int = 0
    dla_core: int = -1
    version_compatible: bool = False
    cuda_graphs: bool = False


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What the user wants, resolved against the folder of its file.

    Attributes:
        model: `file.py:factory`, `package.module:factory`, `.pt2` or `.onnx`.
        shapes: Per input, one entry per axis: a number or a dimension's name.
        dims: Ranges of the dynamic dimensions by name.
        calibration: Data that ranges are found on.
        evaluation: Labelled data that the metric is measured on.
        label: The column, or the array in an `.npz` file, that holds the label.
        golden: Real samples to carry instead of synthetic ones.
        images, audio, columns: Per input name.
        text: For a model that takes tokens.
        outputs: Per output name.
        sequences: For a model that keeps state from request to request.
        privacy: What may be kept of requests; None for nothing.
        sequence: The integer that decides downgrades; None derives it from the version.
        file: The recipe's own file, None where there is none.
    """

    model: str
    name: str
    version: str = "1.0.0"
    targets: tuple[str, ...] = ()
    sequence: int | None = None
    shapes: Mapping[str, tuple[int | str, ...]] = field(default_factory=dict)
    dims: Mapping[str, DimRange] = field(default_factory=dict)
    calibration: DataSource | None = None
    evaluation: DataSource | None = None
    label: str = "label"
    golden: Path | None = None
    seed: int = 0
    images: Mapping[str, ImageInput] = field(default_factory=dict)
    audio: Mapping[str, AudioInput] = field(default_factory=dict)
    columns: Mapping[str, ColumnsInput] = field(default_factory=dict)
    text: TextInput | None = None
    outputs: Mapping[str, OutputSteps] = field(default_factory=dict)
    boxes: BoxOutputs | None = None
    compress: Compression = field(default_factory=Compression)
    train: Training = field(default_factory=Training)
    server: Server = field(default_factory=Server)
    sequences: Sequences | None = None
    privacy: Privacy | None = None
    tensorrt: TensorRTOptions = field(default_factory=TensorRTOptions)
    file: Path | None = None
