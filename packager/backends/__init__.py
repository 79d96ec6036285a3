"""Backends: Model → Artifact, one engine a file."""
