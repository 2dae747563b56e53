"""Rank grid, process groups, tensor-parallel layers and the ZeRO engine."""
