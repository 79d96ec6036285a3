"""The pipeline: recipe × targets → plan → bundles."""

from packager.pipeline.plan import Plan, Step, make_plan
from packager.pipeline.run import Built, run_plan

__all__ = ["Built", "Plan", "Step", "make_plan", "run_plan"]
