"""Reads and writes of an object store through obstore, robust against broken connections and servers.

A request with a transient failure (a broken connection, an answer that ends early, 408, 429 or 5xx, a server
that has answered before and is away) is retried for `retry_seconds`. A read continues at the byte that it has
reached; the time starts anew whenever bytes arrive. The first range read of an object stores its ETag and
later ones require it (If-Match): an object that is replaced during a run is refused.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import obstore
from obstore.exceptions import BaseError as ObstoreError
from obstore.exceptions import GenericError, JoinError, PreconditionError
from obstore.store import ObjectStore as Obstore
from obstore.store import from_url

from data.errors import InputError, StorageError, first_line
from data.storage.aws_profile import profile_settings
from data.storage.contact import has_answered, mark_answered
from data.storage.request_checks import check_range, checked_name
from data.storage.retries import RETRY_SECONDS, Result, RetryPolicy
from data.storage.store_errors import describe_error, is_misconfigured, is_unreachable
from data.storage.store_settings import check_store_settings

if TYPE_CHECKING:
    from obstore import GetOptions

_BLOCK = 1 << 18  # bytes: the most that are requested again, though they have arrived, after a failure
_STATUS = re.compile(r"status code: (\d{3})")
_TRANSIENT = {"408", "429"}  # and 5xx
_PERMANENT = {"501", "505"}
_PROBE = "connection"  # name of an object: any answer will do


def open_objects(url: str, retry_seconds: float | None = None, anonymous: bool = False) -> ObjectStore:
    """Open a prefix of an object store, with credentials from the environment, or a profile of AWS.

    With `anonymous` requests are not signed: for what is public.

    Raises:
        InputError: The store's variables, or the files with the profiles of AWS, cannot be used.
        obstore.exceptions.BaseError, ValueError: The scheme is unknown or its settings are missing.
    """
    return ObjectStore(url, connect(url, retries=False, anonymous=anonymous), retry_seconds)


def connect(url: str, retries: bool = True, anonymous: bool = False) -> Obstore:
    """Make obstore's own store of a prefix, which does not ask the server yet.

    Args:
        url: The prefix.
        retries: Whether obstore itself repeats a request that failed.
        anonymous: Whether requests go without credentials, whatever the environment has.

    Raises:
        InputError: The store's variables, or the files with the profiles of AWS, cannot be used.
        obstore.exceptions.BaseError, ValueError: The scheme is unknown or its settings are missing.
    """
    check_store_settings(url, os.environ)
    of_aws = url.startswith(("s3://", "s3a://"))
    environment = {**os.environ, "AWS_SKIP_SIGNATURE": "true"} if anonymous else os.environ
    config: Any = profile_settings(environment) if of_aws else {}
    if anonymous:
        config = {**config, "skip_signature": True}
    return from_url(url, config=config, retry_config=None if retries else {"max_retries": 0})


@dataclass
class _Download:
    """Bytes [begin, end) of an object, as far as they have arrived; `end` None: to the end of the object."""

    name: str
    begin: int = 0
    end: int | None = None
    etag: str | None = None
    length: int | None = None  # of the whole object, once known
    content: bytearray = field(default_factory=bytearray)

    @property
    def position(self) -> int:
        return self.begin + len(self.content)

    def options(self) -> GetOptions:
        options: GetOptions = {}
        if self.etag is not None:
            options["if_match"] = self.etag
        if self.end is not None:
            options["range"] = (self.position, self.end)
        elif self.content:
            options["range"] = {"offset": self.position}
        return options


class ObjectStore:
    """A prefix of an object store. Open it in the process that uses it (no fork after the first call)."""

    def __init__(self, url: str, store: Obstore, retry_seconds: float | None = None) -> None:
        """Wrap an obstore store that does not retry by itself; `url` names it in messages.

        With `retry_seconds` given, a server that has never answered is waited for as well.
        """
        self._url = url.rstrip("/")
        self._store = store
        self._waits_for_first_answer = retry_seconds is not None
        seconds = RETRY_SECONDS if retry_seconds is None else retry_seconds
        self._retries = RetryPolicy(self._url, seconds, self._is_transient)
        self._etags: dict[str, str | None] = {}

    @property
    def url(self) -> str:
        """The prefix."""
        return self._url

    def exists(self, name: str) -> bool:
        """Whether the object is there."""
        return self.size(name) is not None

    def size(self, name: str) -> int | None:
        """Length of the object in bytes; None: there is no such object."""
        found = self.size_and_etag(name)
        return None if found is None else found[0]

    def size_and_etag(self, name: str) -> tuple[int, str | None] | None:
        """Length of the object in bytes and its ETag; None: there is no such object."""
        checked_name(name)
        try:
            meta = self._run(lambda: obstore.head(self._store, name))
        except FileNotFoundError:
            return None
        except (ObstoreError, OSError) as error:
            raise self._failure(name, "looked up", error) from error
        return meta["size"], meta["e_tag"]

    def names(self, folder: str, recursive: bool = False) -> list[str]:
        """Names of the objects in a folder (empty: the prefix itself), with `recursive` also below it."""
        try:
            return sorted(self._run(lambda: _listed(self._store, folder or None, recursive)))
        except (ObstoreError, OSError) as error:
            raise self._failure(folder, "listed", error) from error

    def read(self, name: str) -> bytes:
        """All bytes of an object."""
        while True:
            download = _Download(checked_name(name))
            try:
                self._download(download)
            except PreconditionError:  # replaced between two requests: read the new bytes from the start
                continue
            except (ObstoreError, OSError) as error:
                raise self._failure(name, "read", error) from error
            return bytes(download.content)

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        """Exactly `size` bytes from `offset`; InputError if the object was replaced since the first read."""
        if size == 0:
            return b""
        etag = self._etags.get(checked_name(name))
        download = _Download(name, offset, offset + size, etag)
        check_range(f"{self._url}/{name}", offset + max(size, 0), offset, size)
        try:
            self._download(download)
        except PreconditionError as error:
            raise InputError(
                f"{self._url}/{name}: was replaced since this run first read it (ETag {download.etag}); "
                "start again on one data set, and write another one to another place"
            ) from error
        except (ObstoreError, OSError) as error:
            if _status(error) == "416" and (length := self.size(name)) is not None:  # beyond its end
                check_range(f"{self._url}/{name}", length, offset, size)
            raise self._failure(name, "read", error) from error
        self._etags.setdefault(name, download.etag)
        return bytes(download.content)

    def write(self, name: str, content: bytes) -> None:
        """Put an object; the store makes it visible as a whole."""
        checked_name(name)
        try:
            self._run(lambda: obstore.put(self._store, name, content))
        except (ObstoreError, OSError) as error:
            raise self._failure(name, "written", error) from error
        self._etags.pop(name, None)

    def check_connection(self) -> None:
        """Ask the server once, unless it has answered before.

        Raises:
            InputError: TLS is missing, not spoken or not trusted: what no other request would change.
        """
        if has_answered(self._url):
            return
        try:
            obstore.head(self._store, _PROBE)
        except (ObstoreError, OSError) as error:
            if is_misconfigured(error):
                raise InputError(f"{self._url}: {describe_error(self._url, error)}") from error
            self._note_answer(error)
        else:
            mark_answered(self._url)

    def cancel_retries(self) -> None:
        """Retry no request from now on."""
        self._retries.cancel()

    def _run(self, request: Callable[[], Result]) -> Result:
        """Run a request with retries, and note that the server has answered."""

        def noted() -> Result:
            try:
                result = request()
            except (ObstoreError, OSError) as error:
                self._note_answer(error)
                raise
            mark_answered(self._url)
            return result

        return self._retries.run(noted)

    def _note_answer(self, error: Exception) -> None:
        """Note that the server has answered, where an error is its answer."""
        if not is_unreachable(error) and (not isinstance(error, GenericError) or _status(error)):
            mark_answered(self._url)

    def _is_transient(self, error: BaseException) -> bool:
        """Whether the same request may succeed later."""
        if is_misconfigured(error):
            return False
        if is_unreachable(error) and not (self._waits_for_first_answer or has_answered(self._url)):
            return False
        return _is_transient(error)

    def _download(self, download: _Download) -> None:
        done = False
        while not done:
            done = self._run(lambda: self._continue(download))

    def _continue(self, download: _Download) -> bool:
        """Fetch the missing bytes; False: the answer ended early."""
        before = download.position
        try:
            answer = obstore.get(self._store, download.name, options=download.options())
            meta = answer.meta
            download.etag, length = download.etag or meta["e_tag"], meta["size"]
            end = length if download.end is None else download.end
            where = f"{self._url}/{download.name}"
            check_range(where, length, download.begin, end - download.begin)
            for block in answer.stream(min_chunk_size=_BLOCK):
                download.content += block
        except ObstoreError as error:
            if download.position > before and self._is_transient(error):
                return False
            raise
        # The length that an answer announces is no proof of the bytes that arrived.
        check_range(where, download.position, download.begin, end - download.begin)
        return True

    def _failure(self, name: str, what: str, error: Exception) -> InputError:
        reasons = [describe_error(self._url, error), *getattr(error, "__notes__", [])]
        kind = InputError if isinstance(error, FileNotFoundError) else StorageError
        return kind(f"{self._url}/{name}: cannot be {what} ({'; '.join(reasons)})")


def _listed(store: Obstore, folder: str | None, recursive: bool) -> list[str]:
    """Names of objects below a folder of a store."""
    if recursive:
        parts = list(obstore.list(store, prefix=folder))  # pyright: ignore[reportUnknownMemberType] - Arrow
        return [meta["path"] for part in parts for meta in part]
    listed = obstore.list_with_delimiter(store, folder)  # pyright: ignore[reportUnknownMemberType] - Arrow
    return [meta["path"] for meta in listed["objects"]]


def _is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed later: broken connections, 408, 429 and 5xx."""
    if not isinstance(error, GenericError | JoinError):
        return False
    status = _status(error)
    if status is None or status in _TRANSIENT:
        return True
    return status.startswith("5") and status not in _PERMANENT


def _status(error: BaseException) -> str | None:
    """The HTTP status in an error of obstore; None: there was no answer."""
    match = _STATUS.search(first_line(error))
    return match[1] if match else None
