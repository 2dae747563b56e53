"""Which environment variables open an object store, for those who forgot them."""

from __future__ import annotations

from data.storage.request_checks import first_line

VARIABLES = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}
"""By scheme; docs/storage.md has the others."""

_METADATA_SERVER = "169.254.169.254"  # of every cloud: the last place where credentials are looked for


def told(url: str, error: BaseException) -> str:
    """What an error of a store says, in a line, and what to do where there are no credentials."""
    line = first_line(error)
    if _METADATA_SERVER not in line:
        return line
    return f"no credentials: set {hint(url)}, or run on a machine that the cloud gives a role; {line}"


def hint(url: str) -> str:
    """The variables of the credentials for a place."""
    return VARIABLES.get(url.partition("://")[0], "the credentials of this store")
