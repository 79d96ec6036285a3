"""TensorRT on the device: engines built, checked, kept and run."""
