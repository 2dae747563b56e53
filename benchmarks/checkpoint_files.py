"""How a checkpoint is cut into files: requests to an object store and work of a file system, by layout.

Requests are counted at the S3-compatible server of the tests, made by the project's own code: those of one
file of a layout's size (as many zeros are uploaded), times the files; those of commit, start, retention and
removal with all names of a checkpoint there (their objects are small: a request about an object costs the
same whatever its size). The file system is a local folder: names are created, listed and removed by one
process, nothing flushed; its time on a core is stated.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from unittest.mock import patch

from benchmarks.report import Column, Report, arguments
from data.storage.bulk_store import open_bulk
from pretrain.checkpoint.location import CheckpointLocation
from pretrain.checkpoint.manifest import MASTER, chunk_table_file, state_file
from pretrain.checkpoint.tensor_blocks import BLOCK_BYTES
from pretrain.model.transformer import expected_shapes
from pretrain.run_layout import step_name
from pretrain.settings import named_models
from tests.support.object_server import BUCKET, ObjectServer

_NODE_RANKS = 8
_ATTEMPT = "0123abcd"
_MOMENTS = "exp_avg"
_CHUNK_ROW_BYTES, _RANK_CHUNKS = 24, 510  # of the 7B at 4,096 ranks
_MANIFEST_BYTES = 130  # for each file
_THREADS = 8
_ROUNDS = 3
_COLUMNS = (
    Column("layout", "layout"),
    Column("files", "files"),
    Column("largest", "largest", "MB", digits=1),
    Column("of_file", "requests of a file"),
    Column("save", "a save"),
    Column("commit", "its commit"),
    Column("start", "a start"),
    Column("retention", "retention"),
    Column("removal", "removal"),
    Column("create", "create", "s"),
    Column("list", "list", "ms", digits=0),
    Column("remove", "remove", "s"),
)


@dataclass(frozen=True, slots=True)
class Files:
    """A layout of files.

    Attributes:
        name: Of the layout.
        names: Of the tensors' files.
        sizes: Bytes of each kind of file that a writer has.
    """

    name: str
    names: Sequence[str]
    sizes: Sequence[int]


def layouts(ranks: int, weights: int) -> list[Files]:
    """The layouts, for so many ranks and bytes of fp32 weights; two moments take twice as much."""
    nodes = max(1, ranks // _NODE_RANKS)

    def pairs(writers: int) -> list[str]:
        return [state_file(w, state, _ATTEMPT) for w in range(writers) for state in (MASTER, _MOMENTS)]

    single = [state_file(writer, MASTER, _ATTEMPT) for writer in range(ranks)]
    folders = [f"node_{number // 2 // _NODE_RANKS:04d}/{name}" for number, name in enumerate(pairs(ranks))]
    return [
        Files("a pair a rank (ours)", pairs(ranks), (weights // ranks, 2 * weights // ranks)),
        Files("a pair a rank, a folder a node", folders, (weights // ranks, 2 * weights // ranks)),
        Files("a file a rank", single, (3 * weights // ranks,)),
        Files("a pair a node", pairs(nodes), (weights // nodes, 2 * weights // nodes)),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Count, time and report."""
    options = _options(argv)
    shapes = expected_shapes(named_models()[options.model])
    weights = 4 * sum(map(prod, shapes.values()))
    title = f"Files of a checkpoint: {options.model}, {options.ranks:,} ranks, {_NODE_RANKS} a node"
    report = Report("checkpoint_files", title, _COLUMNS, "cpu")
    with _server() as server:
        for number, files in enumerate(layouts(options.ranks, weights)):
            requests = _Requests(server, f"s3://{BUCKET}/run_{number}", files, options.ranks)
            report.add(
                layout=files.name,
                files=len(files.names) + 3,
                largest=max(files.sizes) / 1e6,
                **requests.counted(),
                **_of_a_folder(files.names),
            )
    ours = report.rows[0]
    least = min(row["save"] + row["removal"] for row in report.rows)
    share = (ours["save"] + ours["removal"]) / least
    report.target("requests to save and remove, of the fewest of all layouts: at most 2", share <= 2, share)
    report.note(
        "requests: of all ranks together, at an S3-compatible server; create, list, remove: a local folder"
    )
    report.note(f"load of {os.getloadavg()[0]:.1f} at the end; times are of one process, on a core")
    report.finish(options.out)
    return 0


def _options(argv: Sequence[str] | None) -> Namespace:
    parser = arguments("checkpoint_files", __doc__)
    parser.add_argument("--model", choices=sorted(named_models()), default="7b", help="default: %(default)s")
    parser.add_argument("--ranks", type=int, help="default: 4,096")
    options = parser.parse_args(argv)
    if options.smoke:
        options.model = "tiny"
    options.ranks = options.ranks or (16 if options.smoke else 4096)
    return options


class _Requests:
    """Counts the requests of one layout's checkpoint.

    Args:
        server: That counts.
        url: Of an empty location.
        files: The layout.
        ranks: Of the run.
    """

    def __init__(self, server: ObjectServer, url: str, files: Files, ranks: int) -> None:
        self._server, self._files, self._ranks = server, files, ranks
        self._place = CheckpointLocation(url)
        self._store = open_bulk(url)

    def counted(self) -> dict[str, int]:
        """Requests of each operation on a checkpoint."""
        place, names = self._place, self._files.names
        of_kind = [self._count(lambda size=size: self._write("probe", size)) for size in self._files.sizes]
        place.remove(0)
        writers = len(names) // len(of_kind)
        self._fill()
        commit = self._count(self._commit)
        start = self._count(lambda: (place.remove_incomplete(), place.latest()))
        retention = self._count(lambda: (place.remove_other_attempts(1, _ATTEMPT), place.steps()))
        return {
            "of_file": max(of_kind),
            "save": writers * sum(of_kind),
            "commit": commit,
            "start": start,
            "retention": retention,
            "removal": self._count(lambda: place.remove(1)),
        }

    def _count(self, function: Callable[[], object]) -> int:
        self._server.requests.clear()
        function()
        return len(self._server.requests)

    def _write(self, name: str, size: int, step: int = 0) -> None:
        self._place.write(step, name, _zeros(size), size)

    def _fill(self) -> None:
        """Put an object under every name of the tensors' files."""
        with ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(lambda name: self._store.put(f"{step_name(1)}/{name}", b"x"), self._files.names))

    def _commit(self) -> None:
        self._write(chunk_table_file(_ATTEMPT), _CHUNK_ROW_BYTES * _RANK_CHUNKS * self._ranks, step=1)
        self._place.commit(1, bytes(_MANIFEST_BYTES * len(self._files.names)), _ATTEMPT)


def _zeros(size: int) -> Iterator[bytes]:
    for start in range(0, size, BLOCK_BYTES):
        yield bytes(min(BLOCK_BYTES, size - start))


def _of_a_folder(names: Sequence[str]) -> dict[str, float]:
    """CPU seconds to create and remove the names in a folder, milliseconds to list them: best of three."""
    rounds = [_one_folder(names) for _ in range(_ROUNDS)]
    return {key: min(times[key] for times in rounds) for key in rounds[0]}


def _one_folder(names: Sequence[str]) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        start = time.process_time()
        for parent in sorted({str(Path(name).parent) for name in names}):
            (folder / parent).mkdir(exist_ok=True)
        for name in names:
            with (folder / name).open("wb") as file:
                file.write(b"x")
        created = time.process_time()
        found = [path for path in folder.rglob("*") if path.is_file()]
        listed = time.process_time()
        for path in found:
            path.unlink()
        removed = time.process_time()
    assert len(found) == len(names)
    return {"create": created - start, "list": 1e3 * (listed - created), "remove": removed - listed}


@contextmanager
def _server() -> Iterator[ObjectServer]:
    """The server of the tests with an empty bucket, which the environment points to meanwhile."""
    import boto3

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it logs every request
    server = ObjectServer()
    server.start()
    try:
        with patch.dict(os.environ, server.environment()):
            client = boto3.client("s3", endpoint_url=server.endpoint, region_name="us-east-1")
            client.create_bucket(Bucket=BUCKET)
            yield server
    finally:
        server.stop()


if __name__ == "__main__":
    sys.exit(main())
