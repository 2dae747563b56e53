"""The training loop, the same under Ray and under torchrun."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any

from data.contracts import PackedBatch
from data.stream.loader import TokenStream
from pretrain.auto_settings import resolve_on_ranks
from pretrain.batch_feed import BatchFeed
from pretrain.checkpoint.location import checkpoint_location
from pretrain.checkpoint.origin import HISTORY
from pretrain.checkpoint.save import CheckpointWriter
from pretrain.checks import check_hardware
from pretrain.config import TrainingConfig, trained_decoders
from pretrain.determinism import make_deterministic
from pretrain.faults.exit_codes import PreemptedError
from pretrain.faults.guard import GuardState, StepGuard, StepVerdict
from pretrain.faults.out_of_memory import explained_out_of_memory
from pretrain.faults.preemption import Preemption
from pretrain.faults.rollback import exceeds_limit, report_skipped_steps, roll_back
from pretrain.faults.watchdog import Watchdog
from pretrain.hooks import StepHook
from pretrain.model.attention.first_call import explained_backward
from pretrain.optim import learning_rate
from pretrain.parallel.affinity import bind_to_gpu_cpus
from pretrain.parallel.engine import Engine
from pretrain.parallel.groups import ProcessGroups
from pretrain.parallel.mesh import Mesh
from pretrain.phases import phase
from pretrain.policy_settings import POLICY_METADATA, PolicySettings
from pretrain.rank_zero import run_on_rank_zero
from pretrain.run_folder import RunFolder
from pretrain.run_start import ORDER, RunStart
from pretrain.settings import to_mapping
from pretrain.sources import told_apart
from pretrain.start import check_model_fits, load_start, opened_run, prepare_folder, report_start
from pretrain.telemetry.profiling import StepProfiler
from pretrain.telemetry.recorder import Recorder
from pretrain.validation import Validation

_LOG = logging.getLogger(__name__)


def train(config: TrainingConfig, start: RunStart | None = None, hooks: Sequence[StepHook] = ()) -> None:
    """Train from the run's newest checkpoint (or its beginning) to the last step; every rank calls this.

    The ranks are those of the existing process group, or of the environment that torchrun sets.

    Args:
        config: Settings that `pretrain.checks.check_training` has accepted.
        start: Where to start, as chosen by the command that started the ranks; None: rank 0 chooses.
        hooks: Called around each step, in this order.

    Raises:
        InputError: Data, run folder, checkpoint or hardware that this run cannot use.
        CheckpointError: A checkpoint could not be written.
        DivergedError: Too many bad steps, and rolling back did not help.
        PreemptedError: The training was asked to end, and its checkpoint is written.
    """
    if config.trainer.deterministic:
        make_deterministic()
    groups = ProcessGroups.create(Mesh(config.parallel.tensor, config.parallel.data))
    check_hardware(config, groups.device)
    requested = config
    config, choice = resolve_on_ranks(requested, groups)
    if config.parallel.bind_cpus and (binding := bind_to_gpu_cpus(groups.device)):
        _LOG.info(binding)
    folder = RunFolder.of(config.run)
    with (
        explained_out_of_memory(config, groups.device),
        explained_backward(),
        TokenStream(config.data, config.trainer, config.trainer.seed) as stream,
        Validation(config, groups) as validation,
        Preemption(folder.stop_request, polls=groups.rank == 0) as preemption,
    ):
        check_model_fits(config, stream)
        with opened_run(requested, folder, groups.rank, start) as opened:
            run_on_rank_zero(lambda: prepare_folder(config, folder, stream))
            engine = Engine.build(config, groups, initialise=opened.origin is None)
            loaded, metadata = load_start(requested, folder, opened, start is None, engine, stream)
            names = [source.name for source in stream.sources] if told_apart(config.data) else []
            with (
                closing(Recorder(config, folder, engine, metadata["tokens"], names)) as recorder,
                closing(StepProfiler.of(config.telemetry, groups.rank, folder, recorder.event)) as profiler,
            ):
                report_start(recorder, loaded, metadata, config, engine.step_count)
                if choice is not None:
                    recorder.event("auto_settings", step=engine.step_count, **choice.as_event())
                loop = _Loop(
                    config, folder, loaded, engine, stream, validation, preemption, recorder, metadata
                )
                with Watchdog(config.guard.step_timeout, groups.rank) as watchdog:
                    loop.run((profiler, recorder, watchdog, *hooks))
                loop.finish()
    if loop.is_preempted:
        raise PreemptedError(f"stopped on request, {loop.progress}")


class _Loop:
    """The steps of a training, each with its guard, telemetry, validation and checkpoint."""

    def __init__(
        self,
        config: TrainingConfig,
        folder: RunFolder,
        start: RunStart,
        engine: Engine,
        stream: TokenStream,
        validation: Validation,
        preemption: Preemption,
        recorder: Recorder,
        metadata: Mapping[str, Any],
    ) -> None:
        self._config, self._folder, self._start = config, folder, start
        self._engine, self._stream, self._recorder = engine, stream, recorder
        self._validation, self._preemption = validation, preemption
        self._guard = StepGuard(config.guard, engine.groups.device, GuardState.from_metadata(metadata))
        self._feed = BatchFeed(stream, engine.groups, self._guard, preemption)
        self._policy = PolicySettings.of(
            config.data,
            stream.image.pixels,
            stream.sources,
            stream.image.tokenizer_sha256,
            stream.text_tokenizer_sha256,
            trained_decoders(config),
        )
        settings = config.checkpointing
        self._writer = CheckpointWriter(
            checkpoint_location(settings, folder), engine, settings, folder.evaluations, recorder.event
        )
        self._last_step = min(config.trainer.steps, config.trainer.stop_after or config.trainer.steps)
        self._saved_step = engine.step_count  # of the newest checkpoint; 0: there is none
        self._stop = False

    @property
    def is_preempted(self) -> bool:
        """Whether the training was asked to end before the last step."""
        return self._stop and self._engine.step_count < self._last_step

    @property
    def progress(self) -> str:
        """How far a preempted training has come, in words."""
        step = self._engine.step_count
        return f"with a checkpoint of step {step}" if step else "before the first step"

    def run(self, hooks: Sequence[StepHook]) -> None:
        """Train until the last step or a stop request."""
        while self._engine.step_count < self._last_step and not self._stop:
            step = self._engine.step_count + 1
            for hook in hooks:
                hook.before_step(step)
            self._step()
            for hook in hooks:
                hook.after_step(step)

    def finish(self) -> None:
        """Wait for the last checkpoint and write the summary."""
        self._writer.wait()
        if self.is_preempted:
            self._recorder.event("preempted", step=self._engine.step_count)
        self._summarise()

    def _step(self) -> None:
        self._train_step()
        step = self._engine.step_count
        save_due = step % self._config.checkpointing.every == 0 or step == self._last_step
        validation_due = self._validation.is_due(step)
        verdicts = self._verdicts(newest=save_due or validation_due)
        if discarded := [verdict.step for verdict in verdicts if verdict.discarded]:
            self._end_before(discarded[0])
            return
        if exceeds_limit(verdicts, self._config.guard):
            roll_back(self._config, self._folder, self._engine, self._guard, self._writer, self._recorder)
            self._saved_step = self._engine.step_count
        elif validation_due:
            self._validation.run(step, self._engine, self._recorder)
        self._stop = any(verdict.stop for verdict in verdicts)
        at_end = self._stop or self._engine.step_count == self._last_step
        if at_end or (save_due and not verdicts[-1].skipped):
            self._save()

    def _train_step(self) -> None:
        """One optimiser step, judged and recorded."""
        engine, guard, trainer = self._engine, self._guard, self._config.trainer
        batches = self._next_batches()
        rate = learning_rate(self._config.optim, engine.step_count, trainer.steps)
        result = engine.step(batches, rate, guard.judge)
        self._recorder.add_checkpoint_stall(self._writer.take_wait())
        step = engine.step_count
        guard.record(step, result, self._preemption.requested())
        epochs = self._stream.epochs(step + guard.offset)
        self._recorder.record_step(step, result, rate, epochs, discarded=guard.discarding)

    def _next_batches(self) -> list[PackedBatch]:
        start = time.perf_counter()
        with phase("data"):
            batches = self._feed.next_batches(self._engine.step_count + self._guard.offset)
        self._recorder.add_batches(batches, wait_seconds=time.perf_counter() - start)
        return batches

    def _verdicts(self, newest: bool) -> list[StepVerdict]:
        """New verdicts; with the newest step's where it is needed or where the run ends."""
        verdicts = self._guard.verdicts(newest)
        if any(verdict.stop for verdict in verdicts):
            verdicts += self._guard.verdicts(newest=True)
        report_skipped_steps(verdicts, self._recorder)
        return verdicts

    def _end_before(self, step: int) -> None:
        """End the run with the step before `step`, for which some rank has no batch."""
        last = step - 1
        steps, self._stop = self._engine.step_count - last, True
        self._engine.rewind_step_count(last)
        self._recorder.discard_steps(steps)
        if last != self._saved_step:
            self._save()

    def _save(self) -> None:
        start = time.perf_counter()
        self._saved_step = self._engine.step_count
        with phase("checkpoint"):
            self._writer.save(self._engine.step_count, self._metadata())
        self._summarise()
        self._recorder.add_checkpoint_stall(time.perf_counter() - start)

    def _metadata(self) -> dict[str, Any]:
        """Content of a checkpoint besides weights and moments; the order of the data needs no more."""
        return {
            "config": to_mapping(self._config),
            "dataset": self._stream.fingerprint,
            ORDER: self._stream.plan.order,
            POLICY_METADATA: self._policy.to_json(),
            "tokens": self._recorder.total_tokens(),
            "guard": self._guard.state().to_json(),
            "wandb_run": self._start.wandb_run,
            HISTORY: list(self._start.resume_history),
        }

    def _summarise(self) -> None:
        self._recorder.summarise(self._engine.step_count, self._start.resumed_from, self._writer.committed)
