"""Importers: torch module, exported program, ONNX file → Model."""
