"""A policy served over WebSocket to the evaluation harnesses of others."""
