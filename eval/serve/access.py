"""Who may connect: the address that is listened on, and the token."""

from __future__ import annotations

import base64
import errno
import hmac
import ipaddress
import logging
import os
import socket
import stat
from pathlib import Path

from data.errors import InputError
from eval.config import ServeConfig

_LOG = logging.getLogger(__name__)
TOKEN_VARIABLE = "WORLDVLA_SERVE_TOKEN"
_MIN_TOKEN = 16  # characters
_MAKE_ONE = "`openssl rand -hex 16` makes one"


def read_token(config: ServeConfig) -> str | None:
    """The token that clients need; None: they need none.

    Raises:
        InputError: Two tokens, one that is too short or that no header can carry, or an unreadable file.
    """
    token, origin = os.environ.get(TOKEN_VARIABLE), TOKEN_VARIABLE
    if config.token_file is not None:
        if token is not None:
            raise InputError(f"{TOKEN_VARIABLE} and token_file={config.token_file} are both set; keep one")
        origin = f"token_file={config.token_file}"
        try:
            token = Path(config.token_file).read_text(encoding="ascii").strip()
            is_readable_by_all = bool(Path(config.token_file).stat().st_mode & stat.S_IROTH)
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not ASCII text"
            raise InputError(f"{origin}: cannot be read ({reason}); give a file with the token") from error
        if is_readable_by_all:  # no error: secrets that are mounted into a container often are
            _LOG.warning(
                "%s: every user of this machine can read it; run: chmod 600 %s", origin, config.token_file
            )
    if token is None:
        return None
    if len(token) < _MIN_TOKEN or not all("!" <= character <= "~" for character in token):
        raise InputError(
            f"{origin}: a token of {len(token)} characters, expected at least {_MIN_TOKEN}, letters, digits "
            f"and signs of ASCII without spaces; {_MAKE_ONE}"
        )
    return token


def bind(config: ServeConfig, has_token: bool) -> socket.socket:
    """A socket bound to the address; it does not listen yet.

    Raises:
        InputError: The port is taken or not allowed, the host is not this machine's, or others could connect
            without a token.
    """
    if not 0 <= config.port <= 65535:
        raise InputError(f"port={config.port}: expected 0 to 65535; 0 takes a free one")
    try:
        family, _, _, _, address = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise InputError(f"host={config.host}: no address of that name ({error}); correct it") from error
    if not ipaddress.ip_address(str(address[0])).is_loopback and not has_token and not config.unprotected:
        raise InputError(
            f"host={config.host}: whoever reaches this machine could use the policy; set {TOKEN_VARIABLE} or "
            f"token_file= ({_MAKE_ONE}), or give unprotected=true"
        )
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise address_error(config, error) from error
    return bound


def address_error(config: ServeConfig, error: OSError) -> InputError:
    """What to tell the user of an address that cannot be listened on."""
    if error.errno == errno.EADDRNOTAVAIL:
        remedy = "give an address of this machine, or 0.0.0.0 for all of them"
    else:
        remedy = "give another port= (0 takes a free one), or end the process that has it"
    return InputError(
        f"host={config.host} port={config.port}: cannot be listened on ({error.strerror}); {remedy}"
    )


def is_allowed(authorization: str | None, token: str | None) -> bool:
    """Whether a request's `Authorization` header holds the token, compared in constant time.

    openpi-client writes `Api-Key TOKEN`, others `Bearer TOKEN`; of a URL `ws://any:TOKEN@host` clients make
    `Basic`, with the token as password.
    """
    if token is None:
        return True
    scheme, _, given = (authorization or "").partition(" ")
    if scheme.lower() == "basic":
        try:
            _, _, given = base64.b64decode(given, validate=True).decode().partition(":")
        except ValueError:  # no Base64, or no text
            return False
    elif scheme.lower() not in ("api-key", "bearer"):
        return False
    return hmac.compare_digest(given.encode(errors="surrogateescape"), token.encode())
