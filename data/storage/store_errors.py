"""One-line descriptions of errors of object stores: the cause, and the variable to set."""

from __future__ import annotations

import re

from data.errors import first_line

VARIABLES = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}
"""Environment variables with credentials, by scheme; docs/storage.md has the others."""

NO_CREDENTIALS = "no credentials"
"""Begins the description of an error of a store that there is nothing to ask with."""

_ENDPOINTS = {"s3": "AWS_ENDPOINT_URL", "gs": "GOOGLE_BASE_URL", "az": "AZURE_STORAGE_ENDPOINT"}
_ALLOW_HTTP = {"s3": "AWS_ALLOW_HTTP=true", "az": "AZURE_ALLOW_HTTP=true"}
_PROFILES = (
    ' or write keys into ~/.aws/credentials (eval "$(aws configure export-credentials --format env)" sets '
    "the variables of single sign-on or of a role)"
)
_METADATA_SERVER = "169.254.169.254"  # of every cloud: where obstore looks for credentials last
# In the pages that obstore adds to an error.
_NO_TLS = "source: BadScheme"
_CERTIFICATE = re.compile(r"InvalidCertificate\(\s*(\w+)")
_NOT_TLS = "InvalidContentType"
_REFUSED = "kind: ConnectionRefused"
_UNKNOWN_HOST = "failed to lookup address information"
_ADDRESS = re.compile(r"[a-z]+://[^/\s]+")
_CAUSE = re.compile(r'(?:message|error): "([^"]+)"')


def describe_error(url: str, error: BaseException) -> str:
    """What an error of a store says, in one line, with its cause and what to set."""
    line, text = first_line(error), str(error)
    if _METADATA_SERVER in line:
        profiles = _PROFILES if _scheme(url) == "s3" else ""
        return (
            f"{NO_CREDENTIALS}: set {credential_variables(url)}{profiles}, or run on a machine that the "
            f"cloud gives a role; {line}"
        )
    if advice := _advice(url, line, text):
        return f"{line}: {advice}"
    cause = _CAUSE.search(text)
    return f"{line}: {cause[1]}" if cause and cause[1] not in line else line


def is_misconfigured(error: BaseException) -> bool:
    """Whether an error is none of the network: TLS that is missing, not spoken, or not trusted."""
    text = str(error)
    return _NO_TLS in text or _NOT_TLS in text or _CERTIFICATE.search(text) is not None


def is_unreachable(error: BaseException) -> bool:
    """Whether nobody listens at the address, or it has no host; or there are no credentials to ask with."""
    text = str(error)
    return _REFUSED in text or _UNKNOWN_HOST in text or _METADATA_SERVER in first_line(error)


def credential_variables(url: str) -> str:
    """The environment variables with the credentials of a URL's store."""
    return VARIABLES.get(_scheme(url), "the credentials of this store")


def _advice(url: str, line: str, text: str) -> str:
    """The cause of a connection that was never made, and what to set; empty: there was one."""
    scheme = _scheme(url)
    variable = _ENDPOINTS.get(scheme, "the URL")
    found = _ADDRESS.search(line.partition("Error performing")[2])
    endpoint = found[0] if found else "the endpoint"
    if _NO_TLS in text:
        allow = _ALLOW_HTTP.get(scheme)
        remedy = (
            f"set {allow} to allow that, or an https:// address in {variable}" if allow else "use https://"
        )
        return f"{endpoint} has no TLS; {remedy}"
    if certificate := _CERTIFICATE.search(text):
        return (
            f"the certificate of {endpoint} is refused ({certificate[1]}); name the file of its authority's "
            f"certificate in SSL_CERT_FILE, or correct {variable}"
        )
    if _NOT_TLS in text:
        allow = f" and {_ALLOW_HTTP[scheme]}" if scheme in _ALLOW_HTTP else ""
        return f"{endpoint} does not speak TLS; set an http:// address in {variable}{allow}"
    if _REFUSED in text:
        return f"connection refused, no server listens at {endpoint}; start it, or correct {variable}"
    if _UNKNOWN_HOST in text:
        return f"{endpoint} is no known host; correct {variable}, or the name server of this machine"
    return ""


def _scheme(url: str) -> str:
    return url.partition("://")[0]
