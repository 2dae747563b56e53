"""Why a group of ranks failed: one error from failure records, logs and Ray's own report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from cluster.failures import TrainingFailedError
from cluster.run.worker_process import FailureRecord, read_failures
from data.errors import InputError
from pretrain.checkpoint.manifest import DamagedCheckpointError
from pretrain.faults.exit_codes import PreemptedError
from pretrain.faults.watchdog import cause_of_end
from pretrain.run_layout import RANK_PATTERN, rank_log_name, rank_name

_MAX_NAMES = 3

# Errors of ranks that lost a peer: they follow from the first failure and do not explain it.
_CONSEQUENCES = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "gloo", "NCCL")


def log_sizes(logs: Path) -> dict[str, int]:
    """Bytes in each rank's log, by the name of its process."""
    return {path.stem: path.stat().st_size for path in logs.glob(f"{RANK_PATTERN}.log")}


def explain_failure(
    logs: Path,
    ray_report: str,
    ranks: int,
    sizes_before: Mapping[str, int],
    ray_failure: str | None = None,
) -> InputError | TrainingFailedError:
    """The error that explains why a group of ranks failed.

    Args:
        logs: Folder of the ranks' logs and failure records.
        ray_report: What Ray reports.
        ranks: Number of ranks.
        sizes_before: `log_sizes` before these ranks were started.
        ray_failure: Class of Ray's exception where Ray itself has failed, not a rank.
    """
    # A rank that stopped on request is not a cause.
    failures = [each for each in read_failures(logs, RANK_PATTERN) if each.kind != PreemptedError.__name__]
    for failure in failures:
        if failure.user_mistake:
            damaged = failure.kind == DamagedCheckpointError.__name__
            return (DamagedCheckpointError if damaged else InputError)(failure.message)
    for failure in failures:
        if not any(text in failure.message for text in _CONSEQUENCES):
            message = (
                f"{failure.name} failed: {failure.headline}; its traceback is in {logs / failure.name}.log"
            )
            return TrainingFailedError(message, failure.kind, failure.headline)
    if hang := _explain_hang(logs, ranks, sizes_before):
        return hang
    report = logs / "ray.log"
    report.write_text(ray_report + "\n", encoding="utf-8")
    if ray_failure is not None:
        return TrainingFailedError(
            f"Ray's controller of the training ended ({ray_failure}; killed, or out of memory); see {report}"
        )
    return _explain_silent_end(logs, report, ranks, failures)


def _explain_hang(logs: Path, ranks: int, sizes_before: Mapping[str, int]) -> TrainingFailedError | None:
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
    # All others wait for a rank whose watchdog cannot run either (a stopped process).
    silent = [name for name in map(rank_name, range(ranks)) if name not in causes]
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
