"""Checks of what the client of object stores takes from the environment, before it is made.

obstore ends with a panic, which is no `Exception`, on an endpoint that is no URL and on a control character
in a value that becomes part of a request's head.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from data.errors import InputError

_PREFIXES = {"s3": "AWS_", "s3a": "AWS_", "gs": "GOOGLE_", "az": "AZURE_"}
_ENDPOINTS = frozenset(
    {
        "AWS_ENDPOINT",
        "AWS_ENDPOINT_URL",
        "AWS_ENDPOINT_URL_S3",
        "GOOGLE_BASE_URL",
        "AZURE_ENDPOINT",
        "AZURE_STORAGE_ENDPOINT",
    }
)
_ENDPOINT = re.compile(
    r"https?://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:([0-9]{1,5}))?(/[!-~]*)?", re.IGNORECASE
)
_LAST_PORT = 65535
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def check_store_settings(url: str, environment: Mapping[str, str]) -> None:
    """Refuse variables of a URL's store that cannot be used.

    Args:
        url: Of an object, or of a prefix.
        environment: Of the process.

    Raises:
        InputError: An endpoint is no address, or a value has a control character. No value is shown.
    """
    prefix = _PREFIXES.get(url.partition("://")[0])
    if prefix is None:
        return
    for name, value in sorted(environment.items()):
        if not name.startswith(prefix):
            continue
        if name in _ENDPOINTS:
            check_endpoint(name, value)
        check_value(name, value)


def check_endpoint(name: str, value: str) -> None:
    """Refuse an endpoint that is no address of a server; `name` says where it is set.

    Raises:
        InputError: It is none; a password in it is not shown.
    """
    match = _ENDPOINT.fullmatch(value)
    if match is None or int(match[3] or 0) > _LAST_PORT:
        shown = "an address with a user or password" if "@" in value else repr(value[:60])
        raise InputError(
            f"{name} is {shown}, expected http(s)://HOST or http(s)://HOST:PORT; correct or unset it"
        )


def check_value(name: str, value: str) -> None:
    """Refuse a value that no request can carry; `name` says where it is set.

    Raises:
        InputError: It has a control character; the value is not shown.
    """
    if _CONTROL.search(value):
        raise InputError(
            f"{name}: its value has a line break or another control character, which no request can carry; "
            "set it again without"
        )
