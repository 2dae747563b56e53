"""Policies: the interface, and the checkpoint and expert behind it."""
