"""What an engine computes in is read from the inspector's words of every TensorRT, and losses told.

The samples are written after NVIDIA's documents: no one here ran the versions that give them.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import ModelFault
from runtime.nvidia import inspection
from runtime.nvidia.inspection import (
    asked_precision,
    layers_by_precision,
    lost_precision,
    not_looked,
    per_layer,
)

ROOT = Path(inspection.__file__).resolve().parents[2]


def tensor(name: str, text: str, **more: Any) -> dict[str, Any]:
    return {"Name": name, "Dimensions": [1, 8, 4, 4], "Format/Datatype": text, **more}


# 8.5: sentences, with a final period; weights and their type; fused nodes in the name
TENSORRT_8_5 = {
    "Layers": [
        {
            "Name": "Reformatting CopyNode for Input Tensor 0 to QuantizeLinear_2",
            "LayerType": "Reformat",
            "Inputs": [tensor("x", "Row major linear FP32")],
            "Outputs": [tensor("x_c", "Four wide channel vectorized row major FP32 format")],
        },
        {
            "Name": "conv1.weight + QuantizeLinear_7 + Conv_9 + Relu_10",
            "LayerType": "CaskConvolution",
            "Inputs": [tensor("a", "Thirty-two wide channel vectorized row major Int8 format.")],
            "Outputs": [tensor("b", "Thirty-two wide channel vectorized row major Int8 format.")],
            "ParameterType": "Convolution",
            "Weights": {"Type": "Int8", "Count": 131072},
            "Bias": {"Type": "Float", "Count": 256},
            "TacticName": "sm80_xmma_fprop_implicit_gemm_interleaved_i8i8_i8i32_f32_nchw_vect_c",
        },
        {
            "Name": "conv2.weight + QuantizeLinear_17 + Conv_19",
            "LayerType": "CaskConvolution",
            "Inputs": [tensor("b", "Channel major FP16 format where channel % 8 == 0")],
            "Outputs": [tensor("c", "Channel major FP16 format where channel % 8 == 0")],
            "ParameterType": "Convolution",
            "Weights": {"Type": "Half", "Count": 64},
        },
        {
            "Name": "Conv_25",
            "LayerType": "CudnnConvolution",
            "Inputs": [tensor("c", "Row major linear FP32")],
            "Outputs": [tensor("d", "Row major linear FP32")],
            "ParameterType": "Convolution",
            "Weights": {"Type": "Float", "Count": 64},
        },
        {
            "Name": "PWN(Sigmoid_30)",
            "LayerType": "PointWiseV2",
            "Inputs": [tensor("d", "Row major linear FP32")],
            "Outputs": [tensor("y", "Row major linear FP32")],
        },
    ],
    "Bindings": ["x", "y"],
}
# 8.6 with dynamic shapes and no execution context
TENSORRT_8_6_DYNAMIC = {
    "Layers": [
        {
            "Name": "Conv_0",
            "LayerType": "CaskConvolution",
            "Inputs": [tensor("x", "N/A due to dynamic shapes")],
            "Outputs": [tensor("y", "N/A due to dynamic shapes")],
            "ParameterType": "Convolution",
            "TacticName": "",
        },
        {
            "Name": "{ForeignNode[onnx::MatMul_1...Softmax_8]}",
            "LayerType": "Myelin",
            "Inputs": [tensor("y", "Row major linear FP32")],
            "Outputs": [tensor("z", "Row major linear FP32")],
        },
    ],
    "Bindings": ["x", "z"],
}
# 10.x: words where no execution context was given, compiled kernels, the graph's nodes as metadata
TENSORRT_10 = {
    "Layers": [
        {
            "Name": "/layers.0/fc/MatMul_myl0_1",
            "LayerType": "gemm",
            "Inputs": [tensor("q", "Int8"), tensor("w", "Int8"), tensor("bias", "Float")],
            "Outputs": [tensor("r", "Half")],
            "TacticName": "sm80_xmma_gemm_i8f32_i8i32_f32_tn_n_tilesize64x64x64",
            "Metadata": "[ONNX Layer: /0/fc/MatMul]\u001e[ONNX Layer: /0/act[0]/Relu]",
        },
        {
            "Name": "__myl_AddMulCast_myl0_2",
            "LayerType": "kgen",
            "Inputs": [tensor("r", "Half"), tensor("s", "Int8")],
            "Outputs": [tensor("t", "Half")],
            "TacticName": "__myl_AddMulCast_0x1234",
            "Metadata": "[ONNX Layer: /layers.0/Add]",
        },
        {
            "Name": "/head/MatMul_myl0_3",
            "LayerType": "gemm",
            "Inputs": [tensor("t", "Half"), tensor("v", "Half")],
            "Outputs": [tensor("u", "Half")],
            "TacticName": "sm80_xmma_gemm_f16f16_f16f32_f32_tn_n_tilesize32x32x64",
            "Metadata": "[ONNX Layer: /head/MatMul]",
        },
        {"Name": "signal_1", "LayerType": "signal", "Inputs": [], "Outputs": [], "Metadata": ""},
        {
            "Name": "/TopK",
            "LayerType": "TopK",
            "Inputs": [tensor("ids", "Int64")],
            "Outputs": [tensor("k", "Int32")],
        },
    ],
    "Bindings": ["x", "y"],
}
# 11.x: tensors of the engine as objects, and a layer's type apart from its format
TENSORRT_11 = {
    "Layers": [
        {
            "Name": "/conv/Conv",
            "LayerType": "CaskConvolution",
            "Inputs": [{"Name": "x", "Format": "Row major linear format", "Datatype": "BFloat16"}],
            "Outputs": [{"Name": "y", "Format": "Row major linear format", "DataType": "BFloat16"}],
            "Metadata": "[ONNX Layer: /conv/Conv]",
        },
        {
            "Name": "/fc/Gemm",
            "LayerType": "gemm",
            "Inputs": [{"Name": "y", "Format/Datatype": "Row major linear FP8 format"}],
            "Outputs": [{"Name": "z", "Format/Datatype": "Row major linear FP16 format (kLINEAR)"}],
        },
    ],
    "I/O Tensors": [
        {"Name": "x", "IOMode": "Input", "DataType": "Float", "Dimensions": [1, 3, 8, 8]},
        {"Name": "z", "IOMode": "Output", "DataType": "Float", "Dimensions": [1, 10]},
    ],
}
NAMES_ONLY: dict[str, Any] = {"Layers": ["Conv_0 + Relu_1", "Gemm_2"], "Bindings": ["x", "y"]}


@pytest.mark.parametrize(
    ("sample", "counts"),
    [
        (TENSORRT_8_5, {"fp32": 2, "copy": 1, "fp16": 1, "int8": 1}),
        (TENSORRT_8_6_DYNAMIC, {"fp32": 1, "unknown": 1}),
        (TENSORRT_10, {"fp16": 2, "copy": 1, "int32": 1, "int8": 1}),
        (TENSORRT_11, {"bf16": 1, "fp8": 1}),
        (NAMES_ONLY, {"unknown": 2}),
        ({"Layers": []}, {}),
        ({}, {}),
        (None, {}),
    ],
)
def test_layers_are_counted_by_what_they_compute_in(sample: Any, counts: dict[str, int]) -> None:
    found = layers_by_precision(sample)
    assert found == counts
    assert list(found) == list(counts)
    # the most frequent first, whatever the order of the layers
    assert layers_by_precision(json.dumps(sample or {})) == counts
    assert layers_by_precision(per_layer(sample)) == counts


def test_a_layer_is_read_whole() -> None:
    conv = per_layer(TENSORRT_8_5)[1]
    assert conv.kind == "CaskConvolution"
    assert conv.precision == "int8"
    assert conv.nodes == ("conv1.weight", "QuantizeLinear_7", "Conv_9", "Relu_10")
    assert conv.weighted
    assert not conv.opaque
    gemm = per_layer(TENSORRT_10)[0]
    assert gemm.nodes == ("/0/fc/MatMul", "/0/act[0]/Relu")
    assert per_layer(TENSORRT_8_6_DYNAMIC)[1].opaque


def test_the_texts_of_single_layers_are_read_as_well() -> None:
    texts = [json.dumps(layer) for layer in TENSORRT_10["Layers"]]
    assert per_layer(texts) == per_layer(TENSORRT_10)
    assert per_layer(["{ForeignNode[a...b]}"])[0].name == "{ForeignNode[a...b]}"


@pytest.mark.parametrize(
    ("tactic", "precision"),
    [
        ("sm80_xmma_fprop_implicit_gemm_interleaved_i8i8_i8i32_f32_nchw_vect_c_32kcrs", "int8"),
        ("turing_int8_i8816cudnn_int8_256x64_ldg16_relu_large_nt", "int8"),
        ("ampere_first_layer_imma_filter3x3_fwd_swish_execute", "int8"),
        ("sm80_xmma_fprop_implicit_gemm_f16f16_f16f16_f16_nhwckrsc_nhwc", "fp16"),
        ("trt_volta_h884cudnn_256x64_ldg8_relu_exp_small_nhwc", "fp16"),
        ("ampere_fp16_s16816gemm_fp16_64x64_ldg8", "fp16"),
        ("sm80_xmma_gemm_bf16bf16_bf16f32_f32_tn_n", "bf16"),
        ("sm89_xmma_gemm_e4m3e4m3_e4m3f32_f32_tn_n", "fp8"),
        ("sm86_xmma_gemm_f32f32_tf32f32_f32_tn_n", "fp32"),
        ("sm80_xmma_fprop_implicit_gemm_tf32f32_tf32f32_f32_nhwckrsc_nhwc", "fp32"),
        ("trt_ampere_scudnn_128x64_relu_medium_nn", "fp32"),
        ("__myl_ConvMul_0x0123", "fp64"),
    ],
)
def test_a_kernels_name_tells_its_operands(tactic: str, precision: str) -> None:
    # a tensor of a type that no kernel here has: what is found came from the name, or it is left
    layer = {
        "Name": "Conv_0", "LayerType": "CaskConvolution", "TacticName": tactic,
        "Inputs": [tensor("x", "Row major linear Float64")],
    }  # fmt: skip
    assert per_layer([layer])[0].precision == precision


@pytest.mark.parametrize(
    ("text", "precision"),
    [
        ("Row major linear FP32", "fp32"),
        ("Row major linear FP16 format", "fp16"),
        ("Two wide channel vectorized row major FP16 format", "fp16"),
        ("Channel major FP16 format where channel % 8 == 0", "fp16"),
        ("Channel major INT8 format where channel == 4 and column stride % 32 == 0", "int8"),
        ("Sixteen wide channel vectorized row major Int8 with 3 spatial dimensions", "int8"),
        ("Row major linear BF16 format (kLINEAR)", "bf16"),
        ("Row major linear FP8 format", "fp8"),
        ("FP8E4M3", "fp8"),
        ("Float", "fp32"), ("Half", "fp16"), ("BFloat16", "bf16"), ("Int8", "int8"),
        ("FP4E2M1", "fp4"), ("Int4", "int4"), ("Int32", "int32"), ("Bool", "bool"),
        ("N/A due to dynamic shapes", "unknown"), ("Unknown format", "unknown"), ("", "unknown"),
    ],
)  # fmt: skip
def test_the_type_is_found_in_every_form_of_words(text: str, precision: str) -> None:
    layer = {"Name": "p", "LayerType": "Pooling", "Inputs": [tensor("x", text)]}
    assert per_layer([layer])[0].precision == precision


def conv(name: str, precision: str) -> dict[str, Any]:
    return {
        "Name": name,
        "LayerType": "CaskConvolution",
        "Inputs": [tensor("x", "Row major linear FP32")],
        "Weights": {"Type": precision, "Count": 1},
    }


def test_a_layer_that_fell_back_to_float32_is_named_with_its_share() -> None:
    layers = [conv("a + relu", "Int8"), conv("b", "Float"), conv("c", "Int8"), conv("d", "Float")]
    assert lost_precision("int8-static", layers, ["a", "b", "c"]) == (
        "int8 was asked for, but 1 of 3 layers meant for it (33 %) compute in fp32: `b`"
    )
    # `d` was left in float on purpose
    assert lost_precision("int8-static", layers, ["a", "c"]) is None
    many = [conv(f"n{index}", "Float") for index in range(9)]
    told = lost_precision("fp16", many, [f"n{index}" for index in range(9)])
    assert told is not None
    assert told.endswith("9 of 9 layers meant for it (100 %) compute in fp32: "
                         "`n0`, `n1`, `n2`, `n3`, `n4` and 4 more")  # fmt: skip


def test_an_engine_without_any_layer_in_the_precision_lost_it() -> None:
    layers = [conv("a", "Float"), conv("b", "Half"), conv("c", "Float")]
    assert lost_precision("int8", layers) == (
        "int8 was asked for, but no layer computes in it: 2 in fp32, 1 in fp16, as `a`, `b`, `c`"
    )
    assert lost_precision("int8", layers[1:2], ["b"]) == (
        "int8 was asked for, but no layer computes in it: 1 in fp16, as `b`"
    )
    assert lost_precision("fp16", layers) is None
    assert lost_precision("bf16", layers[:1]) is not None


@pytest.mark.parametrize(
    ("asked", "layers"),
    [
        ("fp32", [conv("a", "Float")]),
        ("float32", [conv("a", "Float")]),
        ("", [conv("a", "Float")]),
        ("int8-static", TENSORRT_8_5),
        ("int8-static", TENSORRT_10),
        ("fp16", TENSORRT_10),
        ("bf16", TENSORRT_11),
        # narrower than asked is none the worse
        ("fp16", [conv("a", "Int8")]),
        # what cannot be seen is no loss
        ("int8-static", NAMES_ONLY),
        ("int8-static", TENSORRT_8_6_DYNAMIC),
        ("int8-static", {"Layers": []}),
        ("int8-static", None),
    ],
)
def test_no_loss_is_told_where_there_is_none_or_it_cannot_be_seen(asked: str, layers: Any) -> None:
    assert lost_precision(asked, layers) is None


def test_a_layer_beside_one_that_cannot_be_seen_into_condemns_nothing() -> None:
    hidden = TENSORRT_8_6_DYNAMIC["Layers"][1]
    assert lost_precision("fp16", [conv("a", "Float")]) is not None
    assert lost_precision("fp16", [conv("a", "Float"), hidden]) is None
    # but a layer that was meant for it does
    assert lost_precision("fp16", [conv("a", "Float"), hidden], ["a"]) is not None


def test_it_says_where_it_could_not_look() -> None:
    assert not_looked(TENSORRT_8_5) is None
    assert not_looked(TENSORRT_10) is None
    assert not_looked(None) == (
        "could not look at the engine's precision: the inspector tells no layers"
    )
    told = not_looked(NAMES_ONLY)
    assert told is not None
    assert told.endswith("only names, for it was not built with detailed verbosity")
    assert not_looked(TENSORRT_8_6_DYNAMIC) == (
        "could not look at the precision of 2 of 2 layers: "
        "`{ForeignNode[onnx::MatMul_1...Softmax_8]}`, `Conv_0`"
    )


@pytest.mark.parametrize(
    ("asked", "word"),
    [("int8-static", "int8"), ("INT8", "int8"), ("int8", "int8"), ("fp16", "fp16"),
     ("float16", "fp16"), ("bf16", "bf16"), ("int4-block", "int4"), ("fp8", "fp8"), ("fp32", None),
     ("float64", None), ("int32", None), ("", None), ("anything", None)],
)  # fmt: skip
def test_the_manifests_word_is_understood(asked: str, word: str | None) -> None:
    assert asked_precision(asked) == word


@pytest.mark.parametrize("answer", ["", "no json", "[1", b"\xff\xfe", "3", '{"Layers": "x"}'])
def test_an_answer_that_cannot_be_read_is_told(answer: str | bytes) -> None:
    with pytest.raises(ModelFault, match="the engine inspector's answer"):
        per_layer(answer)


def test_control_characters_in_names_are_read() -> None:
    text = '{"Layers": [{"Name": "a", "LayerType": "Pooling", "Metadata": "[ONNX Layer: p]\x1e"}]}'
    assert per_layer(text)[0].nodes == ("p",)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(("Name", "LayerType", "Inputs", "Weights", "Type", "TacticName",
                         "Metadata", "Format/Datatype")),
        inner, max_size=4,
    ),
    max_leaves=12,
)  # fmt: skip


@given(st.lists(json_values, max_size=4))
def test_layers_of_any_form_are_read_or_left_unknown(layers: list[Any]) -> None:
    found = per_layer({"Layers": layers})
    assert len(found) == len(layers)
    assert sum(layers_by_precision(found).values()) == len(layers)
    lost_precision("int8", found)
    not_looked(found)


CHILD = """
import json, sys
sys.path.insert(0, sys.argv[1])
from runtime.nvidia.inspection import layers_by_precision, lost_precision
text = sys.stdin.read()
print(json.dumps([layers_by_precision(text), lost_precision("int8", text, ["Conv_25"])]))
"""


def test_every_cpython_reads_the_same(old_python: Path) -> None:
    run = subprocess.run(
        [str(old_python), "-I", "-X", "dev", "-c", CHILD, str(ROOT)],
        input=json.dumps(TENSORRT_8_5),
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert run.stderr == ""
    counts, lost = json.loads(run.stdout)
    assert counts == layers_by_precision(TENSORRT_8_5)
    assert lost == lost_precision("int8", TENSORRT_8_5, ["Conv_25"])
