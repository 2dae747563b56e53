"""Weights & Biases: one W&B run for each run folder; its failures never stop the training."""

from __future__ import annotations

import logging
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

_LOG = logging.getLogger(__name__)

INIT_SECONDS = 30.0  # limit for reaching the server at the start; then the run is written offline
FINISH_SECONDS = 120.0  # limit for the rest of the upload at the end; the rest stays in the run folder
_MEASURED_EVENTS = ("validation",)


class WandbSink:
    """One W&B run per run folder: a restart continues it.

    The first failure of W&B is logged; afterwards W&B is left out, and its files stay.
    """

    def __init__(self, folder: Path, name: str, settings: TelemetryConfig, config: Mapping[str, Any]) -> None:
        """Open the run; offline if the server does not answer.

        Args:
            folder: Run folder; files go to its `wandb/`, the run's id to `wandb/run_id`.
            name: Display name.
            settings: Mode and project.
            config: Settings of the run, shown by W&B.
        """
        os.environ.setdefault("WANDB_SILENT", "true")
        if "wandb" not in sys.modules:  # the service of another process, which may have ended
            os.environ.pop("WANDB_SERVICE", None)
        self._failed = False
        self._run: Any = None
        mode = wandb_mode(settings.wandb)

        def open_run(mode: str) -> None:
            self._run = _open(folder, name, settings.project, config, mode)

        consequence = "goes on offline" if mode == "online" else "is left out"
        self._failed = not self._attempt(lambda: open_run(mode), consequence)
        if self._failed and mode == "online":
            # W&B's service process still holds the run; without it the id is free again.
            self._failed = not self._attempt(lambda: _library().teardown()) or not self._attempt(
                lambda: open_run("offline")
            )

    @property
    def failed(self) -> bool:
        """Whether W&B has failed and is left out."""
        return self._failed

    def write(self, record: Record) -> None:
        """Log a step's numbers as `train/*`, a validation's under their own names, other events as marks."""
        event = record.get("event")
        if event is None:
            self._log(record["step"], lambda: {f"train/{name}": value for name, value in _numbers(record)})
        elif event in _MEASURED_EVENTS:
            self._log(
                record["step"], lambda: {name: value for name, value in _numbers(record) if "/" in name}
            )
        else:
            self._log(record.get("step", 0), lambda: {f"events/{event}": 1})

    def log(self, step: int, values: Mapping[str, float | Path]) -> None:
        """Log numbers and files under their own names at a step: `.mp4` and `.gif` as video, else picture."""
        self._log(step, lambda: {name: _media(value) for name, value in values.items()})

    def close(self) -> None:
        """Finish the run; its files are complete afterwards."""
        if self._run is not None and not self._failed:
            self._failed = not self._attempt(self._run.finish)
        if self._failed:  # logged already; W&B would try again at exit and print a traceback
            with suppress(OSError), suppress(*_errors()):  # the first for the import of W&B itself
                _library().teardown()

    def _log(self, step: int, make_values: Callable[[], Mapping[str, Any]]) -> None:
        """Log values, which are made within the attempt: W&B reads, and copies, the files among them."""
        if self._run is not None and not self._failed:
            self._failed = not self._attempt(lambda: self._run.log({"step": step, **make_values()}))

    def _attempt(self, call: Callable[[], Any], consequence: str = "is left out from here on") -> bool:
        """Call W&B; return whether it succeeded. A failure is logged with its consequence."""
        try:
            call()
            return True
        except OSError as raised:  # also of the import, which makes a temporary folder
            error: Exception = raised
        except _errors() as raised:
            error = raised
        _LOG.warning("W&B failed (%s): it %s; training goes on", _cause(error), consequence)
        return False


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
    """Exceptions that W&B raises when its service, its server, its files or variables WANDB_* fail."""
    from wandb.sdk.lib.service.service_token import WandbServiceConnectionError
    from wandb.sdk.mailbox import HandleAbandonedError, MailboxClosedError
    from wandb.sdk.mailbox.mailbox_handle import ServerResponseError

    service = (WandbServiceConnectionError, HandleAbandonedError, MailboxClosedError, ServerResponseError)
    return (_library().Error, OSError, ValueError, *service)  # ValueError: pydantic's, of its settings


def _cause(error: Exception) -> str:
    """One line about a failure; for a setting that W&B refuses with its variable."""
    lines = str(error).splitlines() or [type(error).__name__]
    if len(lines) > 2 and "validation error" in lines[0]:
        return f"{' '.join(lines[2].split())}; correct or unset WANDB_{lines[1].strip().upper()}"
    return lines[0] or type(error).__name__


def _library() -> Any:
    import wandb  # seconds of import: only where it is used

    return wandb


def _numbers(record: Record) -> list[tuple[str, float]]:
    """The values that W&B can plot: neither text nor null."""
    return [
        (name, value) for name, value in record.items() if name != "step" and isinstance(value, int | float)
    ]


def _await_new_second(folder: Path, identity: str) -> None:
    """Wait, a second at most, until the name of W&B's next folder is free.

    W&B names it by run and second: a restart within the same second would overwrite the earlier folder.
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
