"""LitServe with one worker: `serve_litserve.py MODEL PORT`."""

import sys

import litserve
import numpy as np
import onnxruntime as ort


class Mlp(litserve.LitAPI):
    def setup(self, device: str) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = ort.InferenceSession(
            sys.argv[1], options, providers=["CPUExecutionProvider"]
        )

    def decode_request(self, request: dict) -> np.ndarray:
        given = request["inputs"][0]
        return np.array(given["data"], np.float32).reshape(given["shape"])

    def predict(self, row: np.ndarray) -> np.ndarray:
        return self.session.run(None, {"x": row})[0]

    def encode_response(self, logits: np.ndarray) -> dict:
        return {"outputs": [{"name": "logits", "data": logits.ravel().tolist()}]}


if __name__ == "__main__":
    server = litserve.LitServer(Mlp(), accelerator="cpu", workers_per_device=1)
    server.run(
        host="127.0.0.1", port=int(sys.argv[2]), log_level="warning", access_log=False,
        generate_client_file=False,
    )  # fmt: skip
