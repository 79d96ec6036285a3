"""A recipe: what the user wants, from `edgepack.toml` and the command line."""

from packager.recipe._inputs import AudioInput, ColumnsInput, ImageInput, TextInput
from packager.recipe._nouns import (
    DEFAULT_BATCH,
    OBJECTIVES,
    PRECISIONS,
    Compression,
    DataSource,
    DimRange,
    Drop,
    Recipe,
    TensorRTOptions,
    Training,
)
from packager.recipe._outputs import BoxOutputs, OutputSteps
from packager.recipe._read import read_recipe
from packager.recipe._serving import BATCHING, Privacy, Sequences, Server
from packager.recipe._words import (
    check_name,
    check_version,
    default_sequence,
    parse_dim,
    parse_drop,
    parse_duration,
    parse_shape,
    parse_source,
)

__all__ = [
    "BATCHING",
    "DEFAULT_BATCH",
    "OBJECTIVES",
    "PRECISIONS",
    "AudioInput",
    "BoxOutputs",
    "ColumnsInput",
    "Compression",
    "DataSource",
    "DimRange",
    "Drop",
    "ImageInput",
    "OutputSteps",
    "Privacy",
    "Recipe",
    "Sequences",
    "Server",
    "TensorRTOptions",
    "TextInput",
    "Training",
    "check_name",
    "check_version",
    "default_sequence",
    "parse_dim",
    "parse_drop",
    "parse_duration",
    "parse_shape",
    "parse_source",
    "read_recipe",
]
