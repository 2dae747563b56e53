"""Runs on Ray: the supervisor, and the worker groups that train, prepare and evaluate."""
