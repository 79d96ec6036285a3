"""Passes: graph → graph, one a file, under the contract in `contract.py`."""
