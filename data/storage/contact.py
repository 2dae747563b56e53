"""Which servers of object stores have answered this process.

A connection that is refused is an outage where the server has answered before, and else most likely a wrong
endpoint, which no waiting corrects.
"""

from __future__ import annotations

_answered: set[str] = set()  # schemes: one endpoint for each, from the environment


def mark_answered(url: str) -> None:
    """Note that the server of a URL has answered."""
    _answered.add(_server(url))


def has_answered(url: str) -> bool:
    """Whether the server of a URL has answered this process."""
    return _server(url) in _answered


def _server(url: str) -> str:
    return url.partition("://")[0]
