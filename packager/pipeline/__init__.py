"""The pipeline: recipe × targets → plan → bundles, or as far as the search."""

from packager.pipeline.plan import Plan, make_plan
from packager.pipeline.run import Built, run_plan
from packager.pipeline.searching import Compressed, run_search
from packager.pipeline.steps import Step

__all__ = ["Built", "Compressed", "Plan", "Step", "make_plan", "run_plan", "run_search"]
