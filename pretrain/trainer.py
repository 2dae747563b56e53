"""The training loop, the same under Ray and under torchrun."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import closing
from typing import Any

from data.contracts import PackedBatch
from data.stream.loader import TokenStream
from pretrain.batch_feed import Feed
from pretrain.checkpoint.location import checkpoint_location
from pretrain.checkpoint.save import CheckpointWriter
from pretrain.checks import check_hardware, check_training
from pretrain.config import TrainingConfig
from pretrain.faults.exit_codes import PreemptedError
from pretrain.faults.guard import GuardState, StepGuard
from pretrain.faults.out_of_memory import explained_out_of_memory
from pretrain.faults.preemption import Preemption
from pretrain.faults.rollback import go_back, tell, too_many
from pretrain.faults.watchdog import Watchdog
from pretrain.optim import learning_rate
from pretrain.parallel.affinity import bind_near_gpu
from pretrain.parallel.engine import Engine
from pretrain.parallel.groups import ProcessGroups
from pretrain.parallel.mesh import Mesh
from pretrain.phases import phase
from pretrain.run_folder import RunFolder, wandb_run_of
from pretrain.settings import to_mapping
from pretrain.start import announce, check_model_fits, on_first_rank, prepare_folder, take_weights
from pretrain.telemetry.recorder import Recorder
from pretrain.validation import Validation


def train(config: TrainingConfig) -> None:
    """Train from the newest checkpoint (or the beginning) to the last step; every rank calls it.

    The ranks are those of the process group that exists, or of the environment that torchrun sets.

    Raises:
        InputError: Settings, data, run folder or checkpoint that this run cannot use.
        CheckpointError: A checkpoint could not be written.
        DivergedError: Too many bad steps, and going back did not help.
        PreemptedError: It was asked to end, and the checkpoint is written.
    """
    check_training(config)
    groups = ProcessGroups.create(Mesh(config.parallel.tensor, config.parallel.data))
    check_hardware(config, groups.device)
    if config.parallel.bind_cpus and (said := bind_near_gpu(groups.device)):
        print(f"rank {groups.rank} {said}", flush=True)
    folder = RunFolder.of(config.run)
    with (
        explained_out_of_memory(config, groups.device),
        TokenStream(config.data, config.trainer, config.trainer.seed) as stream,
        Validation(config, groups) as validation,
        Preemption(folder.stop_request, always=groups.rank == 0) as preemption,
    ):
        check_model_fits(config, stream)
        origin = on_first_rank(lambda: prepare_folder(config, folder, stream))
        engine = Engine.build(config, groups, draw=origin is None)
        before = take_weights(origin, engine, stream)
        with closing(Recorder(config, folder, engine, before["tokens"])) as recorder:
            loop = _Loop(config, folder, engine, stream, recorder, before, preemption)
            loop.resumed_from = announce(recorder, origin, before, config, engine.step_count)
            with Watchdog(config.guard.step_timeout, groups.rank) as watchdog:
                while loop.goes_on:
                    loop.step(validation)
                    watchdog.step_finished()
            loop.finish()
    if loop.preempted:
        done = (
            f"with a checkpoint of step {engine.step_count}" if engine.step_count else "before the first step"
        )
        raise PreemptedError(f"ended as asked, {done}")


class _Loop:
    """The steps of a training that is set up, each with what belongs to it: guard, validation, checkpoint."""

    def __init__(
        self,
        config: TrainingConfig,
        folder: RunFolder,
        engine: Engine,
        stream: TokenStream,
        recorder: Recorder,
        before: Mapping[str, Any],
        preemption: Preemption,
    ) -> None:
        self._config, self._folder, self._engine = config, folder, engine
        self._stream, self._recorder = stream, recorder
        self._guard = StepGuard(config.guard, engine.groups.device, GuardState.of(before))
        self._preemption = preemption
        self._feed = Feed(stream, engine.groups, self._guard, preemption)
        settings = config.checkpointing
        self._writer = CheckpointWriter(
            checkpoint_location(settings, folder), engine, settings, folder.evaluations, recorder.event
        )
        known = wandb_run_of(before, config.run.name)
        self._wandb_run = on_first_rank(lambda: folder.wandb_run(known))
        self._last = min(config.trainer.steps, config.trainer.stop_after or config.trainer.steps)
        self._stop = False
        self._saved = engine.step_count  # of the newest checkpoint; 0: there is none
        self.resumed_from: str | None = None

    @property
    def goes_on(self) -> bool:
        """Whether there is another step to do."""
        return self._engine.step_count < self._last and not self._stop

    @property
    def preempted(self) -> bool:
        """Whether it was asked to end before the last step."""
        return self._stop and self._engine.step_count < self._last

    def step(self, validation: Validation) -> None:
        """One optimiser step."""
        engine, guard, recorder = self._engine, self._guard, self._recorder
        recorder.begin()
        batches = self._next_batches()
        rate = learning_rate(self._config.optim, engine.step_count, self._config.trainer.steps)
        result = engine.step(batches, rate, guard.judge)
        step = engine.step_count
        guard.note(step, result, self._preemption.asked())
        recorder.record(step, result, rate, self._stream.epochs(step + guard.offset), void=guard.missing)
        due = step % self._config.checkpointing.every == 0 or step == self._last
        findings = guard.findings(everything=due or validation.due(step))
        if any(finding.stop for finding in findings):  # the end: whether this step counts has to be known
            findings += guard.findings(everything=True)
        tell(findings, recorder)
        if missing := [finding.step for finding in findings if finding.missing]:
            self._end_with(missing[0] - 1)
            return
        if too_many(findings, self._config):
            go_back(self._config, self._folder, engine, guard, self._writer, recorder)
            self._saved = engine.step_count
        elif validation.due(step):
            recorder.validate(step, validation)
        self._stop = any(finding.stop for finding in findings)
        if self._stop or engine.step_count == self._last or (due and not findings[-1].skipped):
            self._save()
        recorder.end()

    def finish(self) -> None:
        """Wait for the last checkpoint and write the summary."""
        self._writer.wait()
        if self.preempted:
            self._recorder.event("preempted", step=self._engine.step_count)
        self._summarise()

    def _next_batches(self) -> list[PackedBatch]:
        start = time.perf_counter()
        with phase("data"):
            batches = self._feed.next(self._engine.step_count + self._guard.offset)
        self._recorder.fed(batches, seconds=time.perf_counter() - start)
        return batches

    def _end_with(self, step: int) -> None:
        """End with a step that is done already: a batch after it is missing on some rank."""
        steps, self._stop = self._engine.step_count - step, True
        self._engine.count_back(step)
        self._recorder.take_back(steps)
        if step != self._saved:
            self._save()
        self._recorder.end()

    def _save(self) -> None:
        self._saved = self._engine.step_count
        with phase("checkpoint"):
            tokens = self._recorder.total_tokens()
            content = metadata(self._config, self._stream, self._guard.state(), tokens, self._wandb_run)
            self._writer.save(self._engine.step_count, content)
        self._recorder.saved(self._writer.stall)
        self._summarise()

    def _summarise(self) -> None:
        self._recorder.summarise(self._engine.step_count, self.resumed_from, self._writer.committed)


def metadata(
    config: TrainingConfig, stream: TokenStream, guard: GuardState, tokens: int, wandb_run: str
) -> dict[str, Any]:
    """What a checkpoint holds besides weights and moments; the order of the data needs no more."""
    return {
        "config": to_mapping(config),
        "dataset": stream.fingerprint,
        "tokens": tokens,
        "guard": guard.stored(),
        "wandb_run": wandb_run,
    }
