"""Demonstrations recorded in a simulator: by the scripted expert, or replayed."""
