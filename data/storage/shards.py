"""Episodes in and out of shards: ustar archives that stock WebDataset readers understand.

An episode is a run of neighbouring members, so one range request fetches it::

    <key>.codes.<camera>.npy    uint16  [T, R, C]
    <key>.actions.npy           float32 [T, 7]
    <key>.states.npy            float32 [T, 8]
    <key>.json                  suite, task, instruction

With compression `zstd` each `.npy` member is one zstd frame and named `.npy.zst`.

The bytes depend on the episodes alone (no times, no owners), and a shard is named after its content, so
writing a data set again never changes a shard that an older index points to.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import zstandard
from numpy.typing import NDArray

from data.contracts import Episode
from data.errors import InputError
from data.storage.store import Store
from data.storage.ustar import read_members, write_member
from data.tokens.vocabulary import ACTION_DIM, STATE_DIM

_END_OF_ARCHIVE = bytes(1024)
_WORD = "[A-Za-z0-9_+=,-]"
_KEY = re.compile(f"{_WORD}+(/{_WORD}+)*")
_CAMERA = re.compile(r"[a-z0-9_]{1,32}")
_NPY_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '(?P<dtype>[<|a-z0-9]{2,4})', 'fortran_order': False, "
    rb"'shape': \((?P<shape>([0-9]{1,9}, ?){0,4}([0-9]{1,9})?)\), \} *\n",
    re.DOTALL,
)
_LONGEST_KEY = 150  # ustar keeps 155 bytes of folders and 100 of the last part with its suffix
_LONGEST_LAST_PART = 40
_ZSTD_LEVEL = 3
_ZSTD_SUFFIX = ".zst"
COMPRESSIONS = ("none", "zstd")


def check_compression(compression: str) -> None:
    """InputError unless it is one of `COMPRESSIONS`."""
    if compression not in COMPRESSIONS:
        raise InputError(f"compression={compression}: expected one of {', '.join(COMPRESSIONS)}")


@dataclass(frozen=True, slots=True)
class Location:
    """Where the members of one episode lie: bytes [offset, offset + size) of `shard`."""

    shard: str
    offset: int
    size: int
    sha256: str


def check_key(key: str) -> str:
    """Return `key` if it can name members of an archive and objects of a store.

    Raises:
        InputError: Odd characters (dots end a WebDataset key), an absolute or empty part, or too long.
    """
    last = key.rpartition("/")[2]
    if not _KEY.fullmatch(key) or len(key) > _LONGEST_KEY or len(last) > _LONGEST_LAST_PART:
        raise InputError(
            f"episode key {key[:200]!r} cannot name an archive member; expected letters, digits and _+=,- in "
            f"parts divided by /, at most {_LONGEST_KEY} in all and {_LONGEST_LAST_PART} in the last part; "
            "rename the file"
        )
    return key


class ShardWriter:
    """Gathers episodes in memory and writes a shard whenever the next would exceed `limit` bytes."""

    def __init__(
        self, store: Store, limit: int | None, first: int = 0, compression: str = COMPRESSIONS[0]
    ) -> None:
        """Write to `store`; a single episode larger than `limit` gets a shard of its own.

        Without a limit there is one shard; `first` is the number that the first one gets. `compression` is
        one of `COMPRESSIONS`.
        """
        self._store = store
        self._compression = compression
        self._limit = limit
        self._pending: list[bytes] = []
        self._locations: list[Location] = []
        self._shards = first

    def add(self, episode: Episode) -> None:
        """Append an episode to the shard that is being gathered."""
        block = encode_episode(episode, self._compression)
        too_much = self._limit is not None and sum(map(len, self._pending)) + len(block) > self._limit
        if self._pending and too_much:
            self._flush()
        self._pending.append(block)

    def close(self) -> list[Location]:
        """Write what is left and tell where each episode went, in the order of `add`."""
        if self._pending:
            self._flush()
        return self._locations

    def _flush(self) -> None:
        content = b"".join([*self._pending, _END_OF_ARCHIVE])
        shard = f"shard-{self._shards:06d}-{hashlib.sha256(content).hexdigest()[:16]}.tar"
        offset = 0
        for block in self._pending:
            digest = hashlib.sha256(block).hexdigest()
            self._locations.append(Location(shard, offset, len(block), digest))
            offset += len(block)
        self._store.write(shard, content)
        self._shards += 1
        self._pending = []


def encode_episode(episode: Episode, compression: str = COMPRESSIONS[0]) -> bytes:
    """The members of one episode, without the end-of-archive marker; one of `COMPRESSIONS`.

    Raises:
        InputError: The key or a camera's name cannot name a member.
    """
    key = check_key(episode.key)
    parts: list[bytes | memoryview] = []
    arrays: dict[str, NDArray[Any]] = {}
    for camera in sorted(episode.codes):
        if not _CAMERA.fullmatch(camera):
            raise InputError(f"camera name {camera[:80]!r} is not made of lower-case letters, digits and _")
        arrays[f"codes.{camera}"] = episode.codes[camera].astype("<u2")
    arrays["actions"] = episode.actions.astype("<f4")
    arrays["states"] = episode.states.astype("<f4")
    for name, array in arrays.items():
        payload = _npy(array)
        if compression == "zstd":
            frame = zstandard.ZstdCompressor(_ZSTD_LEVEL).compress(payload)
            parts += write_member(f"{key}.{name}.npy{_ZSTD_SUFFIX}", frame)
        else:
            parts += write_member(f"{key}.{name}.npy", payload)
    meta = {"suite": episode.suite, "task": episode.task, "instruction": episode.instruction}
    parts += write_member(f"{key}.json", json.dumps(meta, sort_keys=True).encode())
    return b"".join(parts)


def expand_episode(content: bytes, most: int) -> bytes:
    """The members of one episode as they would be without compression.

    Args:
        content: Members of an episode with compression `zstd`.
        most: Bytes that all members together may have.

    Raises:
        InputError: A member is no zstd frame, or there would be more.
    """
    parts: list[bytes | memoryview] = []
    for name, payload in read_members(content):
        if name.endswith(_ZSTD_SUFFIX):
            name, payload = name.removesuffix(_ZSTD_SUFFIX), _decompress(name, payload, most)
        most -= len(payload)
        parts += write_member(name, payload)
    return b"".join(parts)


def decode_episode(content: bytes) -> Episode:
    """Parse what `encode_episode` made; nothing in it is trusted and nothing is unpickled.

    Raises:
        InputError: Not exactly the members of one episode, or shapes and dtypes that do not fit.
    """
    key: str | None = None
    members: dict[str, memoryview] = {}
    for name, payload in read_members(content):
        found, _, suffix = name.partition(".")
        if key is None:
            key = check_key(found)
        if found != key or suffix in members:
            raise InputError(f"member {name[:200]!r} does not belong to episode {key!r} or comes twice")
        members[suffix] = payload
    missing = {"actions.npy", "states.npy", "json"} - members.keys()
    if key is None or missing:
        raise InputError(f"members {sorted(missing)} of an episode are missing")
    meta = _parse_meta(members.pop("json"))
    actions = _parse_npy(members.pop("actions.npy"), "<f4", (None, ACTION_DIM))
    states = _parse_npy(members.pop("states.npy"), "<f4", (len(actions), STATE_DIM))
    codes: dict[str, NDArray[np.uint16]] = {}
    for suffix, payload in members.items():
        camera = suffix.removeprefix("codes.").removesuffix(".npy")
        if suffix != f"codes.{camera}.npy" or not _CAMERA.fullmatch(camera):
            raise InputError(f"member {suffix[:200]!r} is no part of an episode")
        codes[camera] = _parse_npy(payload, "<u2", (len(actions), None, None))
    return Episode(
        key=key, **{name: meta[name] for name in _META}, codes=codes, actions=actions, states=states
    )


_META = ("suite", "task", "instruction")


def _decompress(name: str, frame: memoryview, most: int) -> bytes:
    """The content of a zstd frame that says how much it is; what it says is checked before it is believed."""
    try:
        size = zstandard.frame_content_size(frame)
        if 0 <= size <= most:
            return zstandard.ZstdDecompressor().decompress(frame, max_output_size=size)
    except zstandard.ZstdError as error:
        raise InputError(f"member {name[:200]!r} is no zstd frame ({error})") from error
    raise InputError(f"member {name[:200]!r} would expand to {size} bytes, expected at most {most}")


def _npy(array: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return file.getvalue()


def _parse_npy(payload: memoryview, dtype: str, shape: tuple[int | None, ...]) -> NDArray[Any]:
    """An array of exactly this dtype and shape (None: any size), if the header is one that `_npy` writes."""
    match = _NPY_HEADER.match(payload)
    if match is None or len(payload) < (start := 10 + int.from_bytes(payload[8:10], "little")):
        raise InputError("array has no npy header of version 1.0 in C order")
    found_dtype = match["dtype"].decode()
    found = tuple(int(side) for side in match["shape"].split(b",") if side.strip())
    fits = len(found) == len(shape) and all(b in (None, a) for a, b in zip(found, shape, strict=True))
    size = np.dtype(dtype).itemsize * math.prod(found)
    if found_dtype != dtype or not fits or size != len(payload) - start:
        raise InputError(
            f"array of {found_dtype} {found} in {len(payload) - start} bytes, expected {dtype} {shape}"
        )
    return np.frombuffer(payload, dtype=dtype, offset=start).reshape(found)


def _parse_meta(payload: memoryview) -> dict[str, str]:
    try:
        value: object = json.loads(bytes(payload))
    except (ValueError, RecursionError) as error:
        raise InputError(f"episode's JSON is broken ({error})") from error
    meta = cast("dict[str, object]", value) if isinstance(value, dict) else {}
    if not all(isinstance(meta.get(name), str) for name in _META):
        raise InputError(f"episode's JSON has {sorted(meta)}, expected texts for {', '.join(_META)}")
    return {name: str(meta[name]) for name in _META}
