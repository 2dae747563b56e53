"""`worldvla report`: one self-contained page about a run, from its folder alone.

The page carries its pictures and videos inside, loads nothing, runs no script, and treats every text of
the run folder (names, configuration, instructions) as hostile: the template escapes all of it.
"""

from __future__ import annotations

from pathlib import Path

import jinja2

from data.errors import InputError
from data.files import write_text_whole
from eval.report import media, training, view
from eval.report.run_contents import RunFolder, mapping, read_run
from pretrain.run_layout import STEP_PATTERN, RunLayout


def write_report(run_dir: str | Path) -> Path:
    """Write `report.html` into the run folder and return its path.

    Raises:
        InputError: The folder is no run folder, a file in it is damaged, or it cannot be written.
    """
    run = read_run(Path(run_dir))
    return write_page(RunLayout(run.path).report, render(run))


def write_page(page: Path, text: str) -> Path:
    """Write a page, whole or not at all, and return its path.

    Raises:
        InputError: It cannot be written.
    """
    try:
        write_text_whole(page, text)
    except OSError as error:
        raise InputError(f"{page}: cannot write the report ({error.strerror}); free the folder") from error
    return page


def template(name: str) -> jinja2.Template:
    """A template of this package; it escapes whatever is put into it."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("eval.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def render(run: RunFolder) -> str:
    """The page as text."""
    videos, left_out = media.videos(run)
    return template("report.html.j2").render(
        run={"name": run.name, "lead": view.lead(run)},
        figures=view.figures(run),
        charts=training.learning_charts(run),
        history=training.history(run),
        speed=training.speed_charts(run),
        stragglers=training.straggler_rows(run),
        success=view.success_chart(run),
        evaluations=[view.evaluation_row(evaluation) for evaluation in run.evaluations],
        evaluation_notes=view.evaluation_notes(run),
        tasks=view.task_rows(run),
        failures=view.failure_rows(run),
        videos=videos,
        videos_left_out=left_out,
        imagined=media.imagined(run),
        checkpoints=sorted(path.name for path in RunLayout(run.path).checkpoints.glob(STEP_PATTERN)),
        versions=sorted((str(k), str(v)) for k, v in mapping(run.summary, "versions").items()),
        configuration=run.configuration,
    )
