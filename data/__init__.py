"""Demonstrations, tokens, shards and the order in which ranks see them."""
