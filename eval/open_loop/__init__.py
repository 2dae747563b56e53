"""A policy beside the recorded actions of held-out demonstrations."""
