"""Evaluate a policy on a suite: episodes from the fixed initial states, results and videos on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from data.errors import InputError
from data.files import writable_folder
from eval.config import EvalCommandConfig, EvaluationSettings
from eval.evaluation.episode_recordings import EpisodeRecordings, check_pixels, recordings_in
from eval.evaluation.episode_videos import key_of, recorded_again, with_videos
from eval.evaluation.folder_lock import only_evaluation
from eval.evaluation.journal import Journal, Key, identity_digest
from eval.evaluation.provenance import Provenance
from eval.evaluation.results import Results, write_results
from eval.evaluation.setting_checks import check_initial_states, check_settings
from eval.policy.source import evaluation_beside_training, named_policy
from eval.pool.messages import EpisodeSpec, OpenSuite, PolicySource, TimeLimits
from eval.pool.pool import Pool
from eval.rollout.episode import EpisodeResult, check_chunk
from eval.simulator.interface import Suite
from eval.simulator.provenance import version_notes
from eval.simulator.registry import open_suite as open_registered
from eval.simulator.registry import select_tasks

_PIXELS = 256  # of recorded frames, for a policy that sees none


@dataclass(frozen=True, slots=True)
class EvaluationProgress:
    """Progress of an evaluation.

    Attributes:
        done: Number of episodes with a result.
        total: Number of all episodes.
        successes: Number of solved episodes.
        errors: Number of episodes that ended in a simulator error.
        repeated: Number of finished episodes that are still to be run again for their video or recording.
    """

    done: int
    total: int
    successes: int
    errors: int
    repeated: int = 0
    to_record: str = "videos"

    def __str__(self) -> str:
        counted = self.done - self.errors
        text = f"success {self.successes}/{counted}"
        text += f" ({self.successes / counted:.0%})" if counted else ""
        text += f", {self.errors} errors" if self.errors else ""
        return f"{text}, {self.to_record} to record: {self.repeated}" if self.repeated else text


Progress = Callable[[EvaluationProgress], None]


def evaluate_command(
    config: EvalCommandConfig, progress: Progress | None = None, open_suite: OpenSuite = open_registered
) -> Results:
    """`worldvla eval`: run the named policy, write `results.json`, videos and recordings; see `evaluate`.

    Raises:
        InputError: Bad settings, missing simulator parts, unusable checkpoint.
    """
    policy, step, out = named_policy(config)
    return evaluate(
        policy,
        config,
        out,
        step=step,
        resume=config.resume,
        earlier=evaluation_beside_training(policy),
        open_suite=open_suite,
        progress=progress,
        record=None if config.record is None else Path(config.record),
        record_pixels=config.record_pixels,
    )


def evaluate(
    policy: PolicySource,
    settings: EvaluationSettings,
    out: Path,
    *,
    step: int | None = None,
    resume: bool = True,
    earlier: Path | None = None,
    open_suite: OpenSuite = open_registered,
    progress: Progress | None = None,
    record: Path | None = None,
    record_pixels: int | None = None,
) -> Results:
    """Run a policy on a suite and write `results.json` and the videos into `out`.

    Episodes that `out` already holds of the same policy, suite, horizon and versions are not run again,
    except those that ended in an error. Where fewer episodes of a task have a video than `settings.videos`,
    finished ones are run again for it, failures first; their outcome stays.

    Args:
        policy: The policy.
        settings: Suite, episodes and processes.
        out: Folder for results and videos.
        step: Optimiser step of the checkpoint, for the results.
        resume: Continue with the finished episodes in `out`; else run all anew.
        earlier: Folder of an earlier evaluation, whose episodes of the same identity are taken over.
        open_suite: Opens the suite, here and in the workers.
        progress: Called at the start and after every episode.
        record: Folder for a LeRobot data set of the episodes; None: they are not recorded.
        record_pixels: Side of its frames; None: that of the policy's, 256 where it sees none.

    Raises:
        InputError: Bad settings, missing simulator parts, unusable checkpoint, another evaluation in `out`,
            or a full disk; something else in `record`, or recordings that could not be written.
        PolicyFailedError: The policy raised an exception.
    """
    suite = open_suite(settings.suite)
    tasks = select_tasks(suite, settings.tasks)
    check_settings(settings)
    check_initial_states(suite, tasks, settings)
    described = policy.record()
    provenance = Provenance(
        suite.renderer(),
        settings.reset or suite.default_reset,
        settings.observations,
        suite.versions(),
        described.settings,
        described.precision,
        described.decoder,
        described.weights,
    )
    specs = _episode_specs(suite, tasks, settings)
    if described.settings is not None and "chunk" in described.settings:
        check_chunk(int(described.settings["chunk"]), min(spec.horizon for spec in specs))
    identity = _identity(policy, suite, settings.horizon, provenance)
    description = f"{policy.name}, {settings.suite}"
    recording = _recordings(record, out, record_pixels, identity, description, described.settings)
    with recording as recordings, only_evaluation(writable_folder(out)):
        journal = Journal(out, identity, resume, earlier)
        completed = journal.completed()
        results = {key: completed[key] for spec in specs if (key := key_of(spec)) in completed}
        to_run = with_videos(specs, results, settings.videos, out, recordings)
        again = {key_of(spec): spec for spec in to_run if key_of(spec) in results}
        what = "videos" if recordings is None else "episodes"
        _report(progress, results, len(specs), len(again), what)
        for result in _run(policy, to_run, settings, open_suite):
            key = result.task, result.initial_state
            if recordings is not None:
                recordings.remember_unwritten(result)
            if (spec := again.pop(key, None)) is not None:
                result = recorded_again(results[key], result, out, spec.videos is not None)
            journal.append(result)
            results[key] = result
            _report(progress, results, len(specs), len(again), what)
        outcome = Results(
            suite=settings.suite,
            step=step,
            policy=policy.name,
            tasks=tuple(suite.tasks[number] for number in tasks),
            episodes=tuple(results[key] for key in sorted(results)),
            versions=provenance.versions,
            standin_assets=suite.standin_assets,
            horizon=settings.horizon,
            provenance=provenance,
            notes=(*described.notes, *suite.notes, *version_notes(provenance.versions)),
            suite_tasks=len(suite.tasks),
        )
        write_results(outcome, out)
        if recordings is not None and (notes := recordings.write_data_set(outcome.episodes)):
            outcome = replace(outcome, notes=(*outcome.notes, *notes))
            write_results(outcome, out)
    return outcome


def _recordings(
    record: Path | None,
    out: Path,
    pixels: int | None,
    identity: Mapping[str, object],
    description: str,
    policy_settings: Mapping[str, Any] | None,
) -> AbstractContextManager[EpisodeRecordings | None]:
    """The folder of recorded episodes as a context manager; of None where there is none."""
    if record is None:
        if pixels is not None:
            raise InputError(f"record_pixels={pixels}: nothing is recorded; add record=FOLDER")
        return nullcontext()
    if pixels is None:
        pixels = _PIXELS if policy_settings is None else int(policy_settings["pixels"])
    check_pixels(pixels)
    if record.resolve() == out.resolve():
        raise InputError(f"record={record}: is the results' folder too; give one of its own, {out}/episodes")
    return recordings_in(record, pixels, identity_digest(identity), description)


def _episode_specs(suite: Suite, tasks: list[int], settings: EvaluationSettings) -> list[EpisodeSpec]:
    return [
        EpisodeSpec(
            suite=settings.suite,
            task=task,
            initial_state=settings.seed + number,
            horizon=settings.horizon or suite.tasks[task].horizon,
            observations=settings.observations,
            reset=settings.reset,
        )
        for task in tasks
        for number in range(settings.episodes)
    ]


def _run(
    policy: PolicySource, specs: list[EpisodeSpec], settings: EvaluationSettings, open_suite: OpenSuite
) -> Iterator[EpisodeResult]:
    if not specs:
        return
    with Pool(
        policy,
        settings.workers,
        settings.policy_servers,
        settings.batch,
        settings.retries,
        TimeLimits(settings.step_seconds, settings.start_seconds, settings.answer_seconds),
        open_suite,
    ) as pool:
        yield from pool.run(specs)


def _identity(
    policy: PolicySource, suite: Suite, horizon: int | None, provenance: Provenance
) -> dict[str, object]:
    """Everything that the outcome of an episode depends on.

    fp32, the discrete decoder and trained weights are left out: versions that did not record them had no
    other, and their episodes are found. Which decoders the policy has besides the one in use changes no
    outcome.
    """
    depends_on = asdict(provenance)
    if provenance.precision in (None, "fp32"):
        del depends_on["precision"]
    if provenance.decoder in (None, "discrete"):
        del depends_on["decoder"]
    if provenance.weights in (None, "trained"):
        del depends_on["weights"]
    if provenance.policy_settings is not None:
        settings = provenance.policy_settings.items()
        depends_on["policy_settings"] = {name: value for name, value in settings if name != "decoders"}
    return {
        "policy": policy.identity(),
        "suite": suite.name,
        "horizon": horizon,
        "provenance": depends_on,
        "standin_assets": suite.standin_assets,
    }


def _report(
    progress: Progress | None,
    results: Mapping[Key, EpisodeResult],
    total: int,
    repeated: int,
    to_record: str,
) -> None:
    if progress is not None:
        successes = sum(result.success for result in results.values())
        errors = sum(result.error is not None for result in results.values())
        progress(EvaluationProgress(len(results), total, successes, errors, repeated, to_record))
