"""Checks: parity with the original, latency, emulated CPUs."""
