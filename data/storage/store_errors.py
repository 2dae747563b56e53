"""One-line descriptions of errors of object stores, with the credentials to set where they are missing."""

from __future__ import annotations

VARIABLES = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}
"""Environment variables with credentials, by scheme; docs/storage.md has the others."""

_METADATA_SERVER = "169.254.169.254"  # of every cloud: where obstore looks for credentials last


def describe_error(url: str, error: BaseException) -> str:
    """What an error of a store says, in one line, and what to set where there are no credentials."""
    line = first_line(error)
    if _METADATA_SERVER not in line:
        return line
    return (
        f"no credentials: set {credential_variables(url)}, or run on a machine that the cloud gives a role; "
        f"{line}"
    )


def credential_variables(url: str) -> str:
    """The environment variables with the credentials of a URL's store."""
    return VARIABLES.get(url.partition("://")[0], "the credentials of this store")


def first_line(error: BaseException) -> str:
    """An error's text without the pages that obstore adds."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__
