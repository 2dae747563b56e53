"""Demonstrations to token shards with an index."""
