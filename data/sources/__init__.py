"""Readers of robot demonstrations."""
