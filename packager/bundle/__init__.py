"""The bundle: render, archive, lock, record, golden samples, engine libraries."""
