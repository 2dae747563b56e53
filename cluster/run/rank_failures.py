"""Why a group of ranks failed: one error from failure records, logs and Ray's own report."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from cluster.failures import TrainingFailedError, is_out_of_space
from cluster.run.worker_process import FailureRecord, read_failures
from data.errors import InputError
from pretrain.checkpoint.ready import DamagedCheckpointError
from pretrain.faults.exit_codes import PreemptedError
from pretrain.faults.watchdog import cause_of_end
from pretrain.run_layout import RANK_PATTERN, rank_log_name, rank_name

_LOG = logging.getLogger(__name__)
_MAX_NAMES = 3

# Errors of ranks that lost a peer: they follow from the first failure and do not explain it.
_CONSEQUENCES = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "gloo", "NCCL")


def log_sizes(logs: Path) -> dict[str, int]:
    """Bytes in each rank's log, by the name of its process."""
    return {path.stem: path.stat().st_size for path in logs.glob(f"{RANK_PATTERN}.log")}


def exceptions_of_ranks(failures: Mapping[int, BaseException]) -> dict[int, BaseException]:
    """The exceptions that left the training function, by rank.

    Of a process that was killed, or does not answer, Ray reports an exception of its own.

    Args:
        failures: What ended each rank that failed.
    """
    own = {rank: type(error).__module__.partition(".")[0] == "ray" for rank, error in failures.items()}
    return {rank: error for rank, error in sorted(failures.items()) if not own[rank]}


def explain_failure(
    logs: Path,
    ray_report: str,
    ranks: int,
    sizes_before: Mapping[str, int],
    exceptions: Mapping[int, BaseException] | None = None,
) -> InputError | TrainingFailedError:
    """The error that explains why a group of ranks failed.

    Args:
        logs: Folder of the ranks' logs and failure records.
        ray_report: What Ray reports.
        ranks: Number of ranks.
        sizes_before: `log_sizes` before these ranks were started.
        exceptions: `exceptions_of_ranks`: they explain ranks whose record the disk did not take.
    """
    failures = _failures(logs, exceptions or {})
    for failure in failures:
        if failure.user_mistake:
            damaged = failure.kind == DamagedCheckpointError.__name__
            return (DamagedCheckpointError if damaged else InputError)(failure.message)
    for failure in failures:
        if not any(text in failure.message for text in _CONSEQUENCES):
            message = (
                f"{failure.name} failed: {failure.headline}; its traceback is in {logs / failure.name}.log"
            )
            # A disk that is full does not depend on the step: another start may find room.
            kind = None if is_out_of_space(failure.message) else failure.kind
            return TrainingFailedError(message, kind, failure.headline)
    if hang := _explain_hang(logs, ranks, sizes_before, failures):
        return hang
    report = logs / "ray.log"
    try:
        report.write_text(ray_report + "\n", encoding="utf-8")
    except OSError as error:
        _LOG.warning("%s: cannot be written (%s); Ray says: %s", report, error, ray_report)
    return _explain_silent_end(logs, report, ranks, failures)


def _failures(logs: Path, exceptions: Mapping[int, BaseException]) -> list[FailureRecord]:
    """Failures of the ranks, the earliest first; a rank that stopped on request is not a cause."""
    recorded = read_failures(logs, RANK_PATTERN)
    names = {failure.name for failure in recorded}
    others = {rank_name(rank): error for rank, error in exceptions.items()}
    recorded += [FailureRecord.of(name, e, math.inf) for name, e in others.items() if name not in names]
    return [failure for failure in recorded if failure.kind != PreemptedError.__name__]


def _explain_hang(
    logs: Path, ranks: int, sizes_before: Mapping[str, int], failures: Sequence[FailureRecord]
) -> TrainingFailedError | None:
    """The error about ranks that their watchdogs have ended; None: no watchdog has ended a rank."""
    causes: dict[str, str] = {}
    for rank in range(ranks):
        name, log = rank_name(rank), logs / rank_log_name(rank)
        output = log.read_bytes()[sizes_before.get(name, 0) :] if log.exists() else b""
        if cause := cause_of_end(output.decode("utf-8", "replace")):
            causes[name] = cause
    if not causes:
        return None
    cause = next(iter(causes.values()))
    # A rank that lost the connection to one that was ended has said so. All others wait for a rank whose
    # watchdog cannot run either (a stopped process).
    answered = causes.keys() | {failure.name for failure in failures}
    silent = [name for name in map(rank_name, range(ranks)) if name not in answered]
    headline = f"{cause}; {_listed(silent)} did not answer" if silent else cause
    message = f"{headline}; the stacks of all threads are in {logs}/{RANK_PATTERN}.log"
    return TrainingFailedError(message, "Hang", headline)


def _explain_silent_end(
    logs: Path, report: Path, ranks: int, failures: Sequence[FailureRecord]
) -> TrainingFailedError:
    """The error about ranks that ended without a failure record."""
    recorded = {failure.name for failure in failures}
    silent = [name for name in map(rank_name, range(ranks)) if name not in recorded]
    if failures and silent:
        return TrainingFailedError(
            f"{_listed(silent)} ended without an error message (killed, or out of memory) and the others "
            f"lost the connection; see {report} and the logs beside it"
        )
    return TrainingFailedError(
        "a training process ended without an error message (killed, or out of memory); "
        f"see {report} and {logs}/{RANK_PATTERN}.log"
    )


def _listed(names: Sequence[str]) -> str:
    remaining = len(names) - _MAX_NAMES
    return ", ".join(names[:_MAX_NAMES]) + (f" and {remaining} more" if remaining > 0 else "")
