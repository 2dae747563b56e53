"""Keys and region of a profile in the files of the AWS command line, for S3.

https://docs.aws.amazon.com/cli/latest/userguide/cli-configure-files.html: `~/.aws/credentials` has a section
for each profile, `~/.aws/config` sections `[default]` and `[profile NAME]`. Only what is written there is
read: a profile that single sign-on, a role or a program gives its keys is exported by that command line.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from configparser import (
    DuplicateOptionError,
    DuplicateSectionError,
    Error,
    MissingSectionHeaderError,
    ParsingError,
    RawConfigParser,
)
from pathlib import Path

from data.errors import InputError
from data.storage.store_settings import check_endpoint, check_value

_DEFAULT = "default"
_KEYS = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")
_REQUIRED = _KEYS[:2]
_OTHER_SOURCES = ("sso_session", "sso_start_url", "role_arn", "credential_process", "login_session")
# Any of these says where keys come from: then none are taken from files.
_CREDENTIAL_VARIABLES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_TOKEN",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_SKIP_SIGNATURE",
)
_REGION_VARIABLES = ("AWS_REGION", "AWS_DEFAULT_REGION")
_ENDPOINT_VARIABLES = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT")
_IGNORE_ENDPOINTS = "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS"

Sections = Mapping[str, Mapping[str, str]]
"""Settings by name of the profile."""


def profile_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """Settings of the profile that `AWS_PROFILE` names, else of `default`, that no variable gives.

    Args:
        environment: Of the process; its variables win. `AWS_SHARED_CREDENTIALS_FILE` and `AWS_CONFIG_FILE`
            name other files than those in `~/.aws`.

    Returns:
        `aws_access_key_id`, `aws_secret_access_key`, `aws_session_token`, `region` and `endpoint_url`, as far
        as they are there and needed; the names are obstore's too. The endpoint comes with keys alone: it says
        whose keys they are.

    Raises:
        InputError: A file cannot be read, the profile that was named, or its keys, do not exist, or a value
            cannot be used. Its text shows no key.
    """
    needs_keys = not any(environment.get(name) for name in _CREDENTIAL_VARIABLES)
    needs_region = not any(environment.get(name) for name in _REGION_VARIABLES)
    if not needs_keys and not needs_region:
        return {}
    named = environment.get("AWS_PROFILE") or environment.get("AWS_DEFAULT_PROFILE")
    name = named or _DEFAULT
    credentials = _path(environment.get("AWS_SHARED_CREDENTIALS_FILE") or "~/.aws/credentials")
    config = _path(environment.get("AWS_CONFIG_FILE") or "~/.aws/config")
    of_credentials, of_config = _read(credentials), _of_config(_read(config))
    first, second = of_credentials.get(name, {}), of_config.get(name, {})
    where = f"AWS_PROFILE={name}" if named else f"profile {name}"
    if named and needs_keys and name not in {**of_credentials, **of_config}:
        known = ", ".join(sorted({**of_credentials, **of_config})) or "none"
        raise InputError(
            f"{where}: neither {credentials} nor {config} has this profile (they have: {known}); correct it, "
            "or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    region = first.get("region") or second.get("region")
    settings = {"region": region} if needs_region and region else {}
    if needs_keys:  # all of one file: a session token belongs to its keys
        values = first if any(first.get(key) for key in _KEYS) else second
        settings |= _keys(values, where, f"--profile {shlex.quote(name)} ", is_named=named is not None)
        if _KEYS[0] in settings:
            settings |= _endpoint(second, environment, where)
    for key, value in settings.items():
        check_value(f"{where}: {key}", value)
    return settings


def _endpoint(values: Mapping[str, str], environment: Mapping[str, str], where: str) -> dict[str, str]:
    """The server that the profile's keys belong to, unless a variable names one."""
    address = values.get("endpoint_url")
    ignored = environment.get(_IGNORE_ENDPOINTS, "").lower() == "true"
    if not address or ignored or any(environment.get(name) for name in _ENDPOINT_VARIABLES):
        return {}
    check_endpoint(f"{where}: endpoint_url", address)
    return {"endpoint_url": address}


def _keys(values: Mapping[str, str], where: str, option: str, is_named: bool) -> dict[str, str]:
    """The keys of a profile; none where it has none and nobody named it: the machine may have a role."""
    keys = {name: values[name] for name in _KEYS if values.get(name)}
    if missing := [name for name in _REQUIRED if name not in keys]:
        if not keys and not is_named:
            return {}
        other = next((f", but {name}" for name in _OTHER_SOURCES if name in values), "")
        raise InputError(
            f"{where}: has no {' and no '.join(missing)}{other}; write keys into ~/.aws/credentials, or "
            f'eval "$(aws configure export-credentials {option}--format env)", which sets the variables'
        )
    return keys


def _of_config(sections: Sections) -> Sections:
    """Profiles of `~/.aws/config`, whose sections are `[default]` and `[profile NAME]`."""
    profiles: dict[str, Mapping[str, str]] = {}
    for section, values in sections.items():
        try:
            words = shlex.split(section)
        except ValueError:  # a quote that is not closed: no profile
            continue
        if words == [_DEFAULT] or (len(words) == 2 and words[0] == "profile"):
            profiles[words[-1]] = values
    return profiles


def _read(path: Path) -> Sections:
    """The sections of a file; none where it does not exist."""
    parser = RawConfigParser(default_section="")  # none: `[DEFAULT]` has no meaning there
    try:
        parser.read_string(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); make it readable") from error
    except (Error, UnicodeDecodeError) as error:
        # Not its text: that may hold a key. Nor as a cause, which a traceback would show.
        raise InputError(
            f"{path}: {_place(error)} is not as the AWS command line writes it (sections `[profile]` of "
            "lines `name = value`, each once); correct it, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        ) from None
    return {section: dict(parser.items(section)) for section in parser.sections()}


def _path(name: str) -> Path:
    """A path whose `~` stays where the user has no home folder, as in some containers."""
    return Path(os.path.expanduser(name))


def _place(error: Exception) -> str:
    if isinstance(error, MissingSectionHeaderError | DuplicateOptionError | DuplicateSectionError):
        return f"line {error.lineno}"
    if isinstance(error, ParsingError) and error.errors:
        return f"line {error.errors[0][0]}"
    return "its encoding" if isinstance(error, UnicodeDecodeError) else "a line"
