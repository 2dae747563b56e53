"""The token stream: windows per CPU second, compared with webdataset over the same windows.

    stream, first epoch    batches of packed sequences, every episode read from local shards, its checksum
                           verified, tokenised and cached
    stream, later epochs   the same when all episodes are in memory
    little memory, ...     memory for one episode in ten, a data set and a step of one rank
                           (`benchmarks.stream_little`)
    webdataset, episodes   the same shards, windows cut from each episode, packed, the same five arrays
    webdataset, tokens     the same, but padded batches of tokens only, without the other four
    webdataset, samples    one pickled record a window, as the published data are, padded batches of tokens

All run in this process and in the same run. CPU seconds are those of all its threads. The stream shuffles
all windows of the data set, verifies checksums and also returns the actions of action samples as numbers;
webdataset draws from the last 1,000 and does neither.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
import tracemalloc
from argparse import Namespace
from collections.abc import Callable, Iterable, Sequence
from operator import truediv
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks import stream_little, stream_scale
from benchmarks.report import Column, Report, arguments
from benchmarks.stream_data import CHUNK, HISTORY, window_count, write_episodes, write_samples
from benchmarks.stream_peers import episode_batches, sample_batches, token_batches
from data.config import DataConfig
from data.contracts import PackedBatch
from data.storage.index import DatasetIndex
from data.stream.loader import TokenStream
from data.stream.packing_advice import packing_advice
from pretrain.config import TrainerConfig

FIRST, LATER = "stream, first epoch", "stream, later epochs"
EPISODES, TOKENS, SAMPLES = "webdataset, episodes", "webdataset, tokens", "webdataset, samples"
_RATE, _OVER_EPISODES, _OVER_SAMPLES, _FIRST_BATCH = 30_000, 2, 10, 1.0
_PADDING, _WINDOWS = 0.03, 10**9
_COLUMNS = (
    Column("way", "way"),
    Column("windows", "windows"),
    Column("cpu_seconds", "CPU time", "s"),
    Column("seconds", "wall time", "s"),
    Column("rate", "windows", "1/CPU s", digits=0),
    Column("times", "stream's first epoch is faster", "x", digits=1),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and report; returns the exit status."""
    options = parse(argv)
    report = Report("stream", "Token stream, 256 codes a frame", _COLUMNS, "cpu")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        url = write_episodes(folder / "shards", options.episodes)
        samples = write_samples(folder / "samples", options.episodes)
        windows = window_count(DatasetIndex.load(url).episodes.lengths.tolist())
        if samples != windows:
            raise RuntimeError(f"{samples} pickled samples of {windows} windows: not the same work")
        little = write_episodes(folder / "little", options.little_episodes)
        measure_rates(report, options, url, folder / "samples", windows, little)
        measure_first_batch(report, options, url)
        measure_padding(report, options, url)
        measure_memory(report, options, folder)
        measure_scale(report, options, folder)
    report.note(f"load of the machine at the end: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    report.finish(options.out)
    return 0


def parse(argv: Sequence[str] | None) -> Namespace:
    """Options, with sizes for the machine."""
    parser = arguments("stream", __doc__)
    parser.add_argument("--episodes", type=int, help="default: 200, about 75,000 windows")
    parser.add_argument("--sequences", type=int, help="of a step; default: 64")
    parser.add_argument("--little-episodes", type=int, help="with memory for a tenth; default: 2000")
    parser.add_argument("--little-sequences", type=int, help="of their steps; default: 8")
    parser.add_argument("--sequence-length", type=int, default=8192, help="default: %(default)s")
    parser.add_argument("--repeats", type=int, help="rounds, of which the median counts; default: 5")
    options = parser.parse_args(argv)
    sizes = (
        ("episodes", 200, 8),
        ("sequences", 64, 8),
        ("little_episodes", 2000, 16),
        ("little_sequences", 8, 2),
        ("repeats", 5, 1),
    )
    for key, usual, smallest in sizes:
        if getattr(options, key) is None:
            setattr(options, key, smallest if options.smoke else usual)
    return options


def open_stream(options: Namespace, url: str, memory_megabytes: int = 512) -> TokenStream:
    """The stream of a simulated data set."""
    config = DataConfig(url, history=HISTORY, chunk=CHUNK, memory_megabytes=memory_megabytes)
    trainer = TrainerConfig(global_batch=options.sequences, sequence_length=options.sequence_length)
    return TokenStream(config, trainer, seed=0)


def measure_rates(
    report: Report, options: Namespace, url: str, samples: Path, windows: int, little: str
) -> None:
    """One row a way: an epoch of all windows, `options.repeats` rounds of all ways in turn."""

    def read(stream: TokenStream, first: int) -> int:
        steps = range(first, first + _steps_of_an_epoch(stream, windows))
        return sum(_windows(batch) for step in steps for batch in stream.micro_batches(step, 0, 1))

    measured: dict[str, list[tuple[int, float, float]]] = {}

    def measure(way: str, run: Callable[[], int]) -> None:
        start, cpu_start = time.perf_counter(), time.process_time()
        count = run()
        seconds = time.perf_counter() - start
        measured.setdefault(way, []).append((count, time.process_time() - cpu_start, seconds))

    for _ in range(options.repeats):
        with open_stream(options, url) as stream:
            measure(FIRST, lambda stream=stream: read(stream, 0))
            measure(LATER, lambda stream=stream: read(stream, _steps_of_an_epoch(stream, windows)))
        stream_little.measure(options, little, samples.parent / "cache", measure)
        packed = episode_batches(Path(url), options.sequences, options.sequence_length)
        measure(EPISODES, lambda packed=packed: sum(map(_windows, packed)))
        measure(TOKENS, lambda: _count(token_batches(Path(url))))
        measure(SAMPLES, lambda: _count(sample_batches(samples)))
    rates = {way: [count / cpu for count, cpu, _ in rounds] for way, rounds in measured.items()}
    times = {way: statistics.median(map(truediv, rates[FIRST], values)) for way, values in rates.items()}
    for way, rounds in measured.items():
        if way in (EPISODES, TOKENS, SAMPLES) and rounds[0][0] != windows:
            raise RuntimeError(f"{way}: {rounds[0][0]} of {windows} windows")
        report.add(
            way=way,
            windows=rounds[0][0],
            cpu_seconds=statistics.median(cpu for _, cpu, _ in rounds),
            seconds=statistics.median(wall for _, _, wall in rounds),
            rate=statistics.median(rates[way]),
            times=times[way],
        )
    rate = statistics.median(rates[FIRST])
    report.target(f"at least {_RATE:,} windows per CPU second, reading included", rate >= _RATE, rate)
    for way, least in (
        (stream_little.CACHED, _RATE),
        (stream_little.LOCAL, stream_little.LEAST),
        (stream_little.LATER, stream_little.LEAST),
    ):
        rate = statistics.median(rates[way])
        report.target(f"at least {least:,} windows per CPU second, {way}", rate >= least, rate)
    for way, least in ((EPISODES, _OVER_EPISODES), (SAMPLES, _OVER_SAMPLES)):
        report.target(f"at least {least} x {way}", times[way] >= least, times[way])


def measure_first_batch(report: Report, options: Namespace, url: str) -> None:
    """Seconds from opening the data set to its first batch."""
    times: list[float] = []
    for _ in range(options.repeats):
        start = time.perf_counter()
        with open_stream(options, url) as stream:
            stream.micro_batches(0, 0, 1)
            times.append(time.perf_counter() - start)
    seconds = statistics.median(times)
    text = f"first batch of {options.sequences} sequences in less than {_FIRST_BATCH:g} s from local disk"
    report.target(text, seconds < _FIRST_BATCH, seconds)


def measure_padding(report: Report, options: Namespace, url: str) -> None:
    """Share of padding in the batches of an epoch, and the advice on the sequence length."""
    with open_stream(options, url) as stream:
        steps = _steps_of_an_epoch(stream, window_count(DatasetIndex.load(url).episodes.lengths.tolist()))
        empty = [float((stream.micro_batches(step, 0, 1)[0].segments == 0).mean()) for step in range(steps)]
        report.note(f"at most {max(empty):.2%} of a step is padding; the plan: {packing_advice(stream.plan)}")
    padding = statistics.fmean(empty)
    text = f"at most {_PADDING:.0%} padding at {options.sequence_length:,} tokens"
    report.target(text, None if options.smoke else padding <= _PADDING, 100 * padding)


def measure_scale(report: Report, options: Namespace, folder: Path) -> None:
    """Time and memory of planning 10^9 windows."""
    whole = not options.smoke
    scale = stream_scale.measure(folder / "scale", stream_scale.EPISODES if whole else 5000)
    windows, seconds, peak = scale["windows"], scale["cpu_seconds"], scale["peak_bytes"] / 1e6
    report.note(f"planned {windows:,} windows in {seconds:.2f} CPU s and {peak:.1f} MB, index included")
    text = f"{_WINDOWS:,} windows are planned in less than"
    enough = windows >= _WINDOWS
    report.target(f"{text} 1 CPU s", seconds < 1 if enough else None, seconds)
    report.target(f"{text} 100 MB a rank", peak < 100 if enough else None, peak)


def measure_memory(report: Report, options: Namespace, folder: Path) -> None:
    """Peak memory of a few steps, of a data set and of one four times as large: the highest of all rounds.

    What is on its way when a step is taken differs from round to round, by as much as what is kept.
    """
    peaks: list[int] = []
    for episodes in (options.episodes // 4, options.episodes):
        url = write_episodes(folder / f"memory_{episodes}", episodes)
        peaks.append(max(_peak(options, url) for _ in range(options.repeats)))
    growth = peaks[1] / peaks[0] - 1
    text = "memory grows by less than 10 % when the data set is four times as large"
    report.target(text, None if options.smoke else growth < 0.1, f"{growth:+.1%}, {peaks[1] / 1e6:.0f} MB")


def _peak(options: Namespace, url: str) -> int:
    tracemalloc.start()
    with open_stream(options, url, memory_megabytes=1) as stream:
        for step in range(2):
            stream.micro_batches(step, 0, 1)
        peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def _steps_of_an_epoch(stream: TokenStream, windows: int) -> int:
    return -(-windows // len(stream.plan.step(0)))


def _windows(batch: PackedBatch) -> int:
    return int(batch.segments[:, ::64].max(axis=1).sum())  # no sample is shorter than 64 tokens


def _count(batches: Iterable[NDArray[np.int32]]) -> int:
    return sum(len(batch) for batch in batches)


if __name__ == "__main__":
    sys.exit(main())
