"""The study of what a training learns: the grid of WorldVLA's ablations at a laptop's scale.

`python -m benchmarks.learning --work DIR`; docs/learning.md has what is compared and what was found.
"""
