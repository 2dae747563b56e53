"""Weights & Biases: one W&B run for a run folder, and no failure of it that stops the training."""

from __future__ import annotations

import netrc
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pretrain.config import TelemetryConfig, WandbMode
from pretrain.run_folder import RunFolder
from pretrain.run_layout import RunLayout
from pretrain.telemetry.sinks import Record

INIT_SECONDS = 30.0  # to reach the server at the start; then the run is written offline
FINISH_SECONDS = 120.0  # for the rest of the upload at the end; what is left stays in the run folder
_MEASURED_EVENTS = ("validation",)


class WandbSink:
    """One W&B run per run folder: after a restart the same run goes on.

    What W&B cannot do is told once on standard error; then it is left out, and its files stay.
    """

    def __init__(self, folder: Path, name: str, settings: TelemetryConfig, config: Mapping[str, Any]) -> None:
        """Open the run; offline where the server does not answer.

        Args:
            folder: Run folder; files go to its `wandb/`, the run's id to `wandb/run_id`.
            name: Name shown.
            settings: Mode and project.
            config: The run's settings, for W&B's table.

        Raises:
            InputError: Unknown mode.
        """
        os.environ.setdefault("WANDB_SILENT", "true")
        self._failed = False
        self._run: Any = None
        mode = wandb_mode(settings.wandb)

        def begin(mode: str) -> None:
            self._run = _open(folder, name, settings.project, config, mode)

        if not self._attempt(lambda: begin(mode), "goes on offline" if mode == "online" else "is left out"):
            if mode != "online":
                return
            # A service of W&B's own still holds the run; without it the id is free again.
            self._failed = not self._attempt(_library().teardown) or not self._attempt(
                lambda: begin("offline")
            )

    @property
    def failed(self) -> bool:
        """Whether W&B is left out from here on."""
        return self._failed

    def write(self, record: Record) -> None:
        """Log a step's numbers as `train/*`, a validation's under their own names, other events as marks."""
        event = record.get("event")
        if event is None:
            self._log(record["step"], {f"train/{name}": value for name, value in _numbers(record)})
        elif event in _MEASURED_EVENTS:
            self._log(record["step"], {name: value for name, value in _numbers(record) if "/" in name})
        else:
            self._log(record.get("step", 0), {f"events/{event}": 1})

    def log(self, step: int, values: Mapping[str, float | Path]) -> None:
        """Log numbers and files under their own names at a step: `.mp4` and `.gif` as video, else picture."""
        self._log(step, {name: _media(value) for name, value in values.items()})

    def close(self) -> None:
        """Finish the run; its files are complete afterwards."""
        if self._run is not None and not self._failed:
            self._failed = not self._attempt(self._run.finish)
        if self._failed:  # told already; W&B itself would try once more at the exit, and print a traceback
            with suppress(*_errors()):
                _library().teardown()

    def _log(self, step: int, values: Mapping[str, Any]) -> None:
        if self._run is not None and not self._failed:
            self._failed = not self._attempt(lambda: self._run.log({"step": step, **values}))

    def _attempt(self, work: Callable[[], Any], otherwise: str = "is left out from here on") -> bool:
        """Do something with W&B; whether it worked. A failure is told."""
        try:
            work()
        except _errors() as error:
            cause = next(iter(str(error).splitlines()), "") or type(error).__name__
            print(f"W&B failed ({cause}): it {otherwise}; training goes on", file=sys.stderr, flush=True)
            return False
        return True


def _open(folder: Path, name: str, project: str, config: Mapping[str, Any], mode: str) -> Any:
    wandb = _library()
    identity = RunFolder(folder).wandb_run()
    _await_new_second(RunLayout(folder).wandb, identity)
    run = wandb.init(
        dir=str(folder),
        project=project,
        name=name,
        id=identity,
        resume="allow",
        mode=mode,
        config=dict(config),
        settings=wandb.Settings(
            console="off", x_disable_stats=True, init_timeout=INIT_SECONDS, finish_timeout=FINISH_SECONDS
        ),
    )
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    return run


def _errors() -> tuple[type[Exception], ...]:
    """What W&B raises where its service, its server or its files fail."""
    from wandb.sdk.mailbox import HandleAbandonedError, MailboxClosedError
    from wandb.sdk.mailbox.mailbox_handle import ServerResponseError

    return (_library().Error, OSError, HandleAbandonedError, MailboxClosedError, ServerResponseError)


def _library() -> Any:
    import wandb  # seconds of import: only where it is used

    return wandb


def _numbers(record: Record) -> list[tuple[str, float]]:
    """What W&B can draw: no text, nothing that was not measured."""
    return [
        (name, value) for name, value in record.items() if name != "step" and isinstance(value, int | float)
    ]


def _await_new_second(folder: Path, identity: str) -> None:
    """Wait, a second at most, until W&B's folder gets a name of its own.

    W&B names it by run and second: a run that went on within the second would write over what it has.
    """
    while any(folder.glob(f"*run-{time.strftime('%Y%m%d_%H%M%S')}-{identity}")):
        time.sleep(0.02)


def _media(value: float | Path) -> Any:
    if not isinstance(value, Path):
        return value
    if value.suffix in (".mp4", ".gif"):
        return _library().Video(str(value))
    return _library().Image(str(value))


def wandb_mode(mode: WandbMode) -> Any:
    """W&B's own mode: `auto` follows WANDB_MODE, else is online when a key is found."""
    if mode != "auto":
        return mode
    return os.environ.get("WANDB_MODE") or ("online" if _has_wandb_key() else "offline")


def _has_wandb_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False
