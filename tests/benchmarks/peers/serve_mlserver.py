"""MLServer with a runtime of ONNX Runtime, both protocols: `serve_mlserver.py MODEL PORT`."""

import asyncio
import os
import sys

import numpy as np
import onnxruntime as ort
from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Mlp(MLModel):
    async def load(self) -> bool:
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = ort.InferenceSession(
            os.environ["MODEL"], options, providers=["CPUExecutionProvider"]
        )
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        row = NumpyCodec.decode_input(payload.inputs[0]).astype(np.float32)
        logits = self.session.run(None, {"x": row})[0]
        output = NumpyCodec.encode_output("logits", logits)
        return InferenceResponse(model_name="mlp", outputs=[output])


async def main() -> None:
    port = int(sys.argv[2])
    settings = Settings(
        host="127.0.0.1", http_port=port, grpc_port=port + 1, metrics_port=port + 2,
        parallel_workers=0, debug=False, use_structured_logging=False,
    )  # fmt: skip
    server = MLServer(settings)
    await server.start([ModelSettings(name="mlp", implementation=Mlp)])


os.environ["MODEL"] = sys.argv[1]
asyncio.run(main())
