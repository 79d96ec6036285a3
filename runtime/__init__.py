"""What a device runs: standard library and ctypes only, CPython 3.8 to 3.13."""
