"""Encoding and decoding of shards: ustar archives that stock WebDataset readers understand.

The members of an episode are adjacent, so one range request fetches it::

    <key>.codes.<camera>.npy    uint16  [T, R, C]
    <key>.codes.<camera>.variant<N>.npy    the same under drawn changes of the camera, N from 1
    <key>.actions.npy           float64 [T, D] (float32 in shards of earlier versions)
    <key>.states.npy            float32 [T, S]
    <key>.json                  suite, task, instruction

With compression `zstd` each `.npy` member is one zstd frame and named `.npy.zst`.

The bytes depend on the episodes alone (no times, no owners), and the name of a shard depends on its content,
so writing a data set again never changes a shard that an older index refers to.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
from dataclasses import dataclass
from typing import Any, cast, get_args

import numpy as np
import zstandard
from numpy.typing import NDArray

from data.contracts import MAX_ACTION_DIM, MAX_STATE_DIM, Compression, Episode
from data.errors import InputError, check_choice
from data.storage.store import Store
from data.storage.ustar import read_members, write_member

_END_OF_ARCHIVE = bytes(1024)
_WORD = "[A-Za-z0-9_+=,-]"
_KEY = re.compile(f"{_WORD}+(/{_WORD}+)*")
_CAMERA = re.compile(r"[a-z0-9_]{1,32}")
_CODES = re.compile(rf"codes\.(?P<camera>{_CAMERA.pattern})(\.variant(?P<variant>[1-9][0-9]?))?\.npy")
_NPY_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '(?P<dtype>[<|a-z0-9]{2,4})', 'fortran_order': False, "
    rb"'shape': \((?P<shape>([0-9]{1,9}, ?){0,4}([0-9]{1,9})?)\), \} *\n",
    re.DOTALL,
)
_MAX_KEY = 150  # ustar holds 155 bytes of folders and 100 of the last part with its suffix
_MAX_LAST_PART = 40
_ZSTD_LEVEL = 3
_ZSTD_SUFFIX = ".zst"
COMPRESSIONS: tuple[Compression, ...] = get_args(Compression)


@dataclass(frozen=True, slots=True)
class Location:
    """Where the members of one episode are stored: bytes [offset, offset + size) of `shard`."""

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
    if not _KEY.fullmatch(key) or len(key) > _MAX_KEY or len(last) > _MAX_LAST_PART:
        raise InputError(
            f"episode key {key[:200]!r} cannot name an archive member; expected letters, digits and _+=,- in "
            f"parts divided by /, at most {_MAX_KEY} in all and {_MAX_LAST_PART} in the last part; "
            "rename the file"
        )
    return key


class ShardWriter:
    """Collects episodes in memory and writes a shard whenever the next one would exceed `limit` bytes."""

    def __init__(
        self, store: Store, limit: int | None, first: int = 0, compression: Compression = "none"
    ) -> None:
        """Write to `store`; a single episode larger than `limit` becomes a shard of its own.

        Without a limit there is one shard; `first` is the number of the first one.

        Raises:
            InputError: `compression` is none of `COMPRESSIONS`.
        """
        check_choice("compression", compression, COMPRESSIONS)
        self._store = store
        self._compression: Compression = compression
        self._limit = limit
        self._pending: list[bytes] = []
        self._locations: list[Location] = []
        self._shards = first

    def add(self, episode: Episode) -> None:
        """Append an episode to the current shard."""
        block = encode_episode(episode, self._compression)
        exceeds_limit = self._limit is not None and sum(map(len, self._pending)) + len(block) > self._limit
        if self._pending and exceeds_limit:
            self._flush()
        self._pending.append(block)

    def close(self) -> list[Location]:
        """Write the last shard and return the location of each episode, in the order of `add`."""
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


def codes_member(camera: str, variant: int = 0) -> str:
    """Name of the member with the codes of a camera, without the key before it and the suffix after it."""
    return f"codes.{camera}.variant{variant}" if variant else f"codes.{camera}"


def encode_episode(episode: Episode, compression: Compression = "none") -> bytes:
    """Encode the members of one episode, without the end-of-archive marker.

    Args:
        episode: The episode.
        compression: One of `COMPRESSIONS`.

    Raises:
        InputError: The key or a camera's name cannot name a member.
    """
    key = check_key(episode.key)
    parts: list[bytes | memoryview] = []
    arrays: dict[str, NDArray[Any]] = {}
    for variant, views in enumerate((episode.codes, *episode.variants)):
        for camera in sorted(views):
            if not _CAMERA.fullmatch(camera):
                raise InputError(
                    f"camera name {camera[:80]!r} is not made of lower-case letters, digits and _"
                )
            arrays[codes_member(camera, variant)] = views[camera].astype("<u2")
    arrays["actions"] = episode.actions.astype("<f8")
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


def expand_episode(content: bytes | memoryview, max_bytes: int) -> bytes:
    """Decompress the members of one episode.

    Args:
        content: Members of an episode with compression `zstd`.
        max_bytes: Largest total size of the members.

    Raises:
        InputError: A member is no zstd frame, or the members exceed `max_bytes`.
    """
    parts: list[bytes | memoryview] = []
    for name, payload in read_members(content):
        if name.endswith(_ZSTD_SUFFIX):
            name, payload = name.removesuffix(_ZSTD_SUFFIX), _decompress(name, payload, max_bytes)
        max_bytes -= len(payload)
        parts += write_member(name, payload)
    return b"".join(parts)


def decode_episode(content: bytes | memoryview) -> Episode:
    """Parse the output of `encode_episode`; nothing in it is trusted and nothing is unpickled.

    Raises:
        InputError: Not exactly the members of one episode, or unexpected shapes or dtypes.
    """
    key: str | None = None
    members: dict[str, memoryview] = {}
    for name, payload in read_members(content):
        member_key, _, suffix = name.partition(".")
        if key is None:
            key = check_key(member_key)
        if member_key != key or suffix in members:
            raise InputError(f"member {name[:200]!r} does not belong to episode {key!r} or occurs twice")
        members[suffix] = payload
    missing = {"actions.npy", "states.npy", "json"} - members.keys()
    if key is None or missing:
        raise InputError(f"members {sorted(missing)} of an episode are missing")
    meta = _parse_meta(members.pop("json"))
    actions = _parse_actions(members.pop("actions.npy"))
    states = _parse_npy(members.pop("states.npy"), "<f4", (len(actions), None))
    _check_width("states", states, 0, MAX_STATE_DIM)
    views: dict[int, dict[str, NDArray[np.uint16]]] = {0: {}}
    for suffix, payload in members.items():
        match = _CODES.fullmatch(suffix)
        if match is None:
            raise InputError(f"member {suffix[:200]!r} is no part of an episode")
        codes = _parse_npy(payload, "<u2", (len(actions), None, None))
        views.setdefault(int(match["variant"] or 0), {})[match["camera"]] = codes
    if sorted(views) != list(range(len(views))):
        raise InputError(f"variants {sorted(views)[1:][:20]} of the frames, expected all from 1 on")
    return Episode(
        key=key,
        **{name: meta[name] for name in _META},
        codes=views[0],
        actions=actions,
        states=states,
        variants=tuple(views[number] for number in range(1, len(views))),
    )


_META = ("suite", "task", "instruction")


def _decompress(name: str, frame: memoryview, max_bytes: int) -> bytes:
    """Decompress a zstd frame that holds its size; the size is checked before any memory is allocated."""
    try:
        size = zstandard.frame_content_size(frame)
        if 0 <= size <= max_bytes:
            return zstandard.ZstdDecompressor().decompress(frame, max_output_size=size)
    except zstandard.ZstdError as error:
        raise InputError(f"member {name[:200]!r} is no zstd frame ({error})") from error
    raise InputError(f"member {name[:200]!r} would expand to {size} bytes, expected at most {max_bytes}")


def _npy(array: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return file.getvalue()


def _parse_actions(payload: memoryview) -> NDArray[np.float64]:
    """Actions [T, D]; those of earlier versions, rounded to float32, give the bins that they always gave."""
    match = _NPY_HEADER.match(payload)
    rounded = match is not None and match["dtype"] == b"<f4"
    table = _parse_npy(payload, "<f4" if rounded else "<f8", (None, None)).astype(np.float64, copy=False)
    _check_width("actions", table, 1, MAX_ACTION_DIM)
    return table


def _check_width(name: str, table: NDArray[Any], least: int, most: int) -> None:
    if not least <= table.shape[1] <= most:
        raise InputError(f"{name} of {table.shape[1]} numbers a step, expected {least} to {most}")


def _parse_npy(payload: memoryview, dtype: str, shape: tuple[int | None, ...]) -> NDArray[Any]:
    """Parse an array of this dtype and shape (None: any size) with a header as `_npy` writes it."""
    match = _NPY_HEADER.match(payload)
    if match is None or len(payload) < (start := 10 + int.from_bytes(payload[8:10], "little")):
        raise InputError("array has no npy header of version 1.0 in C order")
    actual_dtype = match["dtype"].decode()
    actual = tuple(int(side) for side in match["shape"].split(b",") if side.strip())
    fits = len(actual) == len(shape) and all(b in (None, a) for a, b in zip(actual, shape, strict=True))
    size = np.dtype(dtype).itemsize * math.prod(actual)
    if actual_dtype != dtype or not fits or size != len(payload) - start:
        raise InputError(
            f"array of {actual_dtype} {actual} in {len(payload) - start} bytes, expected {dtype} {shape}"
        )
    if not math.prod(actual):  # which `frombuffer` refuses
        return np.zeros(actual, dtype)
    return np.frombuffer(payload, dtype=dtype, offset=start).reshape(actual)


def _parse_meta(payload: memoryview) -> dict[str, str]:
    try:
        value: object = json.loads(bytes(payload))
    except (ValueError, RecursionError) as error:
        raise InputError(f"episode's JSON is broken ({error})") from error
    meta = cast("dict[str, object]", value) if isinstance(value, dict) else {}
    if not all(isinstance(meta.get(name), str) for name in _META):
        raise InputError(f"episode's JSON has {sorted(meta)}, expected texts for {', '.join(_META)}")
    return {name: str(meta[name]) for name in _META}
