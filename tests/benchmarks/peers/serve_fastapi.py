"""FastAPI on uvicorn, as its own tutorial would have it: `serve_fastapi.py MODEL PORT`."""

import sys

import fastapi
import numpy as np
import onnxruntime as ort
import pydantic
import uvicorn


class Tensor(pydantic.BaseModel):
    name: str
    shape: list[int]
    datatype: str
    data: list[float]


class Request(pydantic.BaseModel):
    inputs: list[Tensor]


options = ort.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
options.add_session_config_entry("session.intra_op.allow_spinning", "0")
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
app = fastapi.FastAPI()


@app.post("/v2/models/mlp/infer")
def infer(request: Request) -> dict:
    given = request.inputs[0]
    row = np.array(given.data, np.float32).reshape(given.shape)
    logits = session.run(None, {"x": row})[0]
    output = {"name": "logits", "datatype": "FP32", "shape": list(logits.shape)}
    return {"model_name": "mlp", "outputs": [{**output, "data": logits.ravel().tolist()}]}


uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="warning", access_log=False)
