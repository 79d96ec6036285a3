"""Which operators each TensorRT's own parser has, as data."""

from __future__ import annotations

from typing import Final

# Sources, of the project onnx-tensorrt, which is TensorRT's parser:
# [8.5]   docs/operators.md of 8.5: "up to Opset 17"
# [10.15] docs/operators.md of 10.15: "opset 9 to opset 24"
# [log]   docs/Changelog.md up to 10.15
# The pages of 8.6, 10.0 to 10.14 and of 10.16 and later could not be read; what changed between
# comes from [log]. TensorRT 9 came as a preview alone, so what it brought counts from 10.0.

# [8.5] "Y", and so in every later one as far as [10.15] says.
_SINCE_8_5: Final = """
    Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization Cast
    Ceil Celu Clip Concat Constant ConstantOfShape Conv ConvTranspose Cos Cosh CumSum DepthToSpace
    DequantizeLinear Div Dropout Einsum Elu Equal Erf Exp Expand EyeLike Flatten Floor GRU Gather
    GatherElements GatherND Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool Greater GreaterOrEqual
    GridSample HardSigmoid HardSwish Identity If InstanceNormalization IsNaN LRN LSTM LeakyRelu Less
    LessOrEqual Log LogSoftmax Loop LpNormalization LpPool MatMul Max MaxPool Mean
    MeanVarianceNormalization Min Mod Mul Neg NonMaxSuppression NonZero Not OneHot Or PRelu Pad Pow
    QuantizeLinear RNN RandomNormal RandomNormalLike RandomUniform RandomUniformLike Range
    Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin
    ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize ReverseSequence RoiAlign Round Scan
    Scatter ScatterElements ScatterND Selu Shape Shrink Sigmoid Sign Sin Sinh Size Slice Softmax
    Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tan Tanh ThresholdedRelu Tile TopK
    Transpose Trilu Unsqueeze Upsample Where Xor
"""
SINCE_8_5: Final = frozenset(_SINCE_8_5.split())

# The first TensorRT that has an operator which 8.5 has not.
SINCE: Final[dict[str, tuple[int, int]]] = {
    "GroupNormalization": (8, 6),  # [log] 8.6 EA
    "LayerNormalization": (8, 6),  # [log] 8.6 EA
    "IsInf": (8, 6),  # [log] 8.6 EA
    "Hardmax": (10, 0),  # [log] 9.2
    "CastLike": (10, 0),  # [10.15]; [uncertain] since when
    "Gelu": (10, 0),  # [10.15]; in the page of 10.0, whose operators are those of opset 20
    "Mish": (10, 0),  # [10.15]; [uncertain] since when: opset 18, which 8.x does not read
    "DeformConv": (10, 1),  # [log] 10.1
    "BlackmanWindow": (10, 4),  # [log] 10.4
    "HammingWindow": (10, 4),  # [log] 10.4
    "HannWindow": (10, 4),  # [log] 10.4
    "STFT": (10, 5),  # [log] 10.5, real values alone
    "Attention": (10, 14),  # [log] 10.14
    "RMSNormalization": (10, 15),  # [log] 10.15
    "RotaryEmbedding": (10, 15),  # [log] 10.15
    "TensorScatter": (10, 15),  # [log] 10.15
}

# TensorRT-RTX 1.7.1.116 parses these by a plugin that it does not carry, where TensorRT does.
# Measured with its parser on ONNX's own node tests.
RTX_LACKS_PLUGIN: Final = frozenset({"DeformConv", "NonZero", "RoiAlign"})

# TensorRT-RTX 1.7.1.116 parses these and then cannot build them. Measured: NonMaxSuppression "has
# no runners that implement it", Attention is "not supported by a dedicated kernel".
RTX_CANNOT_BUILD: Final = frozenset({"Attention", "NonMaxSuppression"})

# How many elements these give is decided by the values: an engine would have to allocate while it
# runs, and what is behind them has no shape to be tuned for.
SIZED_BY_DATA: Final = frozenset({"Compress", "NonMaxSuppression", "NonZero", "Unique"})

# The first TensorRT that has a dtype which 8.5 has not, as numpy and ml_dtypes name them.
DTYPE_SINCE: Final[dict[str, tuple[int, int]]] = {
    "bfloat16": (10, 0),  # [log] 9.0
    "float8_e4m3fn": (10, 0),  # [log] 9.0; 8.6 has the type and no operator of the parser
    "int4": (10, 0),  # [log] 10.0 EA
    "float4_e2m1fn": (10, 8),  # [log] 10.8
}

# [10.15] has no other than these, and [8.5] says as much for its own.
NO_DTYPES: Final = frozenset({
    "object", "int16", "uint16", "uint32", "uint64", "uint4", "complex64", "complex128",
    "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz",
})  # fmt: skip


def numbers(version: str) -> tuple[int, ...]:
    """Return a version as numbers, for comparison."""
    return tuple(int(part) for part in version.split(".") if part.isdigit())
