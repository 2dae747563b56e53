"""Sharded checkpoints that any layout of ranks can load."""
