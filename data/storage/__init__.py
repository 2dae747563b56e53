"""Shards and indexes in object storage or local folders."""
