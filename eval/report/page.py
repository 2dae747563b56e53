"""`worldvla report`: one self-contained page about a run, from its folder alone.

Pictures and videos are embedded; the page loads nothing and runs no script. Every text of the run folder
(names, configuration, instructions) is treated as hostile: the template escapes all of it.
"""

from __future__ import annotations

from pathlib import Path

import jinja2

from data.errors import InputError
from data.files import output_file, write_text_whole
from eval.report import (
    evaluation_panels,
    evaluation_tables,
    headline,
    rollout_media,
    training_charts,
    world_model_rollouts,
)
from eval.report.json_values import mapping
from eval.report.reproduction_table import reproduction_rows
from eval.report.run_contents import RunContents, read_run
from pretrain.run_layout import STEP_PATTERN, RunLayout


def write_report(run_dir: str | Path, out: str | Path | None = None) -> Path:
    """Write the page of a run, or of one evaluation, and return its path.

    Args:
        run_dir: Folder of the run, or of the evaluation.
        out: The page, a name that ends in `.html`; None: `report.html` in that folder.

    Raises:
        InputError: The folder is neither, a file in it is damaged, `out` has another ending, or the page
            cannot be written.
    """
    page = output_file(out, ".html") if out else RunLayout(Path(run_dir)).report
    return write_page(page, render(read_run(Path(run_dir))))


def write_page(page: Path, text: str) -> Path:
    """Write a page, whole or not at all, and return its path.

    Raises:
        InputError: It cannot be written.
    """
    try:
        write_text_whole(page, text)
    except OSError as error:
        raise InputError(
            f"{page}: cannot write the report ({error.strerror}); choose a writable place with free space"
        ) from error
    return page


def template(name: str) -> jinja2.Template:
    """A template of this package; it escapes every value, and draws charts by the filter `svg`."""
    from eval.report.drawing import to_svg  # imports matplotlib

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("eval.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["svg"] = to_svg
    return environment.get_template(name)


def render(run: RunContents) -> str:
    """The page as text."""
    videos, _ = rollout_media.videos(run)
    panels = evaluation_panels.panels(run, videos)
    failures, num_failures_omitted = evaluation_tables.failure_rows(
        run, {video.file: video.anchor for video in videos}
    )
    return template("report.html.j2").render(
        run={
            "name": run.name,
            "lead": headline.summary_sentence(run),
            "kind": "WorldVLA run" if run.is_run else "WorldVLA evaluation",
            "is_run": run.is_run,
        },
        figures=headline.figures(run),
        charts=training_charts.learning_charts(run),
        history=training_charts.history(run),
        speed=training_charts.speed_charts(run),
        stragglers=training_charts.straggler_rows(run),
        success=evaluation_tables.success_chart(run),
        evaluations=[evaluation_tables.evaluation_row(evaluation) for evaluation in run.evaluations],
        protocols=evaluation_tables.protocol_rows(run),
        evaluation_notes=evaluation_tables.evaluation_notes(run),
        reproduction=reproduction_rows(run),
        tasks=evaluation_tables.task_rows(run),
        failures=failures,
        num_failures_omitted=num_failures_omitted,
        newest=[panel for panel in panels if panel.is_newest],
        earlier=[panel for panel in panels if not panel.is_newest],
        world_model=world_model_rollouts.world_model_rollouts(run),
        checkpoints=sorted(path.name for path in RunLayout(run.path).checkpoints.glob(STEP_PATTERN)),
        versions=sorted((str(k), str(v)) for k, v in mapping(run.summary, "versions").items()),
        configuration=run.configuration,
    )
