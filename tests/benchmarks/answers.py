"""Answers samples with ONNX models, also under an emulated processor: a script of its own.

    qemu-x86_64 -cpu Haswell python answers.py INPUTS.npz OUTPUTS.npz SECONDS MODEL…

Arrays are named INDEX/NAME among the inputs, and MODEL/INDEX/NAME among the outputs. All models
answer one sample before the next begins, and none begins once the seconds of CPU time are spent.
"""

from __future__ import annotations

import sys
import time

import numpy as np
import onnxruntime


def main(inputs: str, outputs: str, limit_s: float, models: list[str]) -> None:
    """Run every model on every sample and write what they say."""
    with np.load(inputs) as file:
        samples: dict[int, dict[str, np.ndarray]] = {}
        for key in file.files:
            index, _, name = key.partition("/")
            samples.setdefault(int(index), {})[name] = file[key]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = 2, 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    sessions = [
        onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        for model in models
    ]
    answers = {}
    for index in sorted(samples):
        for number, session in enumerate(sessions):
            names = [output.name for output in session.get_outputs()]
            for name, value in zip(names, session.run(names, samples[index]), strict=True):
                answers[f"{number}/{index}/{name}"] = value
        if time.process_time() > limit_s:
            break
    np.savez(outputs, **answers)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]), sys.argv[4:])
