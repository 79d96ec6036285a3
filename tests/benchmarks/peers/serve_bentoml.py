"""A BentoML service; `bentoml serve serve_bentoml:Mlp` starts it, the model named by MODEL."""

import os

import bentoml
import numpy as np
import onnxruntime as ort


@bentoml.service(workers=1)
class Mlp:
    def __init__(self) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = ort.InferenceSession(
            os.environ["MODEL"], options, providers=["CPUExecutionProvider"]
        )

    @bentoml.api(route="/v2/models/mlp/infer")
    def infer(self, inputs: list[dict]) -> dict:
        given = inputs[0]
        row = np.array(given["data"], np.float32).reshape(given["shape"])
        logits = self.session.run(None, {"x": row})[0]
        return {"outputs": [{"name": "logits", "data": logits.ravel().tolist()}]}
