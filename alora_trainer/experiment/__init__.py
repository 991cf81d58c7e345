"""Experiments: methods, a recipe, its plan, its run and sweep, the results and their report, the demo."""
