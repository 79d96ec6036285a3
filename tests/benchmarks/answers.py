"""Answers samples with ONNX models, also under an emulated processor: a script of its own.

    qemu-x86_64 -cpu Haswell python answers.py INPUTS.npz OUTPUTS.npz MODEL…

Arrays are named INDEX/NAME among the inputs, and MODEL/INDEX/NAME among the outputs.
"""

from __future__ import annotations

import sys

import numpy as np
import onnxruntime


def main(inputs: str, outputs: str, models: list[str]) -> None:
    """Run every model on every sample and write what they say."""
    with np.load(inputs) as file:
        samples: dict[int, dict[str, np.ndarray]] = {}
        for key in file.files:
            index, _, name = key.partition("/")
            samples.setdefault(int(index), {})[name] = file[key]
    answers = {}
    for number, model in enumerate(models):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        for index, sample in samples.items():
            for name, value in zip(names, session.run(names, sample), strict=True):
                answers[f"{number}/{index}/{name}"] = value
    np.savez(outputs, **answers)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
