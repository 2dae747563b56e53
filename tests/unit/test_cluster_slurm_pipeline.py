"""`worldvla submit stages=[prepare,train,eval]`: jobs that wait for each other."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from pathlib import Path

import pytest

from cluster.cli.main import main

GOAL = ["experiment=worldvla_libero_goal_256", "nodes=2"]
ALL = ["stages=[prepare,train,eval]", "prepare.source=demos", "prepare.resolution=256"]


def scripts(text: str) -> dict[str, str]:
    """Output of `--dry-run`: how sbatch is called -> script."""
    parts = text.split("# sbatch ")[1:]
    return {part.split("\n", 1)[0]: part.split("\n", 1)[1] for part in parts}


def test_three_jobs_are_shown(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["submit", *GOAL, *ALL, "final_eval.workers=32", "after=7", "--dry-run"]) == 0
    shown = scripts(capsys.readouterr().out)
    waits = "--dependency=afterok:<{}'s job> --kill-on-invalid-dep=yes"
    assert list(shown) == [
        "prepare.sbatch",
        f"{waits.format('prepare')} submit.sbatch",
        f"{waits.format('train')} eval.sbatch",
    ]
    prepare, train, evaluate = shown.values()
    assert "#SBATCH --dependency=afterok:7\n#SBATCH --kill-on-invalid-dep=yes\n" in prepare
    assert "dependency" not in train + evaluate
    assert "arguments=(\n  source=demos\n  resolution=256\n  out=shards/libero_goal_256\n)" in prepare
    assert "prepare." not in train
    assert "final_eval." not in train
    for line in ("suite=libero_goal", "episodes=50", "workers=32"):
        assert f"\n  {line}\n" in evaluate
    assert "  checkpoint=runs/worldvla_libero_goal_256/checkpoints/step_00040000\n" in evaluate
    assert "workers=8" not in evaluate
    assert "#SBATCH --nodes=2\n" in train
    for script in (prepare, evaluate):
        assert "#SBATCH --nodes=1\n" in script
    for script in shown.values():
        path = tmp_path / "job.sbatch"
        path.write_text(script)
        subprocess.run(["bash", "-n", str(path)], check=True)


def test_each_run_of_a_sweep_has_its_own_evaluation(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["stages=[train,eval]", "sweep='optim.lr=1e-5,5e-6'", "trainer.stop_after=10"]
    assert main(["submit", *GOAL, *words, "--dry-run"]) == 0
    shown = scripts(capsys.readouterr().out)
    call, evaluate = list(shown.items())[1]
    assert call.startswith("--dependency=aftercorr:")
    assert "#SBATCH --array=0-1\n" in evaluate
    where = "runs/worldvla_libero_goal_256-1/checkpoints/step_00000010"
    assert f"1) arguments+=(checkpoint={where}) ;;" in evaluate


def test_a_sweep_over_the_steps_evaluates_the_last_checkpoint_of_each_run(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["stages=[train,eval]", "sweep='trainer.steps=100,200'"]
    assert main(["submit", *GOAL, *words, "--dry-run"]) == 0
    evaluate = list(scripts(capsys.readouterr().out).values())[1]
    for number, steps in enumerate((100, 200)):
        assert f"goal_256-{number}/checkpoints/step_{steps:08d}) ;;" in evaluate


def test_the_evaluation_reads_the_checkpoints_where_they_are_written(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for url, where in (("s3://b/c/", "s3://b/c"), ("other/c", f"file://{tmp_path}/other/c")):
        words = ["stages=[train,eval]", f"checkpointing.url={url}"]
        assert main(["submit", *GOAL, *words, "--dry-run"]) == 0
        train, evaluate = scripts(capsys.readouterr().out).values()
        assert f"\n  checkpointing.url={url}\n" in train
        assert f"\n  checkpoint={where}/step_00040000\n" in evaluate


def test_each_run_of_a_sweep_has_its_own_checkpoints(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["stages=[train,eval]", "sweep='optim.lr=1e-5,5e-6'"]
    assert main(["submit", *GOAL, *words, "checkpointing.url=s3://b/${run.name}", "--dry-run"]) == 0
    train, evaluate = scripts(capsys.readouterr().out).values()
    assert "\n  'checkpointing.url=s3://b/${run.name}'\n" in train
    for number in range(2):
        where = f"s3://b/worldvla_libero_goal_256-{number}/step_00040000"
        assert f"{number}) arguments+=(checkpoint={where}) ;;" in evaluate


def test_the_final_evaluation_has_the_protocol_of_those_beside_the_training(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["stages=[train,eval]", "eval.reset=soft", "eval.observations=published", "eval.precision=fp32"]
    words += ["model.action_head.time_horizon=5", "eval.decoder=discrete", "eval.embodiment=goal"]
    words += ["eval.weights=trained"]
    assert main(["submit", *GOAL, *words, "final_eval.precision=bf16", "--dry-run"]) == 0
    evaluate = list(scripts(capsys.readouterr().out).values())[1]
    expected = ("reset=soft", "observations=published", "precision=bf16", "decoder=discrete")
    for word in (*expected, "embodiment=goal", "weights=trained"):
        assert f"\n  {word}\n" in evaluate
    assert "precision=fp32" not in evaluate


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["sweep='optim.lr=1e-5,5e-6'", "checkpointing.url=s3://b/c"],
            "checkpointing.url=s3://b/c is the same for 2 runs of the sweep, expected a location of its own "
            "for each; name it by the run: checkpointing.url='s3://b/c/${run.name}'",
        ),
        (["sweep='optim.lr=1e-5,much'"], "worldvla submit: optim.lr: Value 'much'"),
        (["stages=[train,prepare]"], "stages=[train,prepare], expected some of [prepare,train,eval]"),
        (["stages=[]"], "stages=[], expected some of"),
        (["stages=[train,test]"], "worldvla submit: stages[1]=test, expected one of prepare, train, eval"),
        (["prepare.source=demos"], "prepare.source=demos is given, but stages=[train] has no prepare"),
        (["stages=[prepare,train]"], "stages has prepare, but nothing to prepare; name it: prepare.source="),
        (
            [*ALL, "prepare.out=x"],
            "prepare.out=x: the data is written to where the training reads it, data.url=",
        ),
        ([*ALL, "prepare.resolutio=1"], "worldvla submit: unknown setting 'prepare.resolutio'; did you mean"),
        (
            ["eval.every=1000", "eval.suite=libero_gaol"],
            "eval.suite=libero_gaol: no such suite; did you mean",
        ),
        (["stages=[train,eval]", "eval.suite=libero_plus_light"], "eval.suite=libero_plus_light cannot be"),
        ([*ALL, "final_eval.suite=libero_gaol"], "final_eval.suite=libero_gaol: no such suite; did you mean"),
        (
            ["stages=[train,eval]", "final_eval.decoder=continuous"],
            "final_eval.decoder=continuous: the checkpoints of this training have discrete only; give",
        ),
        (
            ["stages=[train,eval]", "final_eval.weights=averaged"],
            "final_eval.weights=averaged, but optim.ema=null: the checkpoints of this training",
        ),
        ([*ALL, "final_eval.policy=expert"], "final_eval names a checkpoint or a policy, expected neither"),
    ],
)
def test_invalid_settings_are_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", *GOAL, *words, "--dry-run"]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith(f"error: {message}")
    assert shown.err.count("\n") == 1
    assert not shown.out


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Fakes of scancel and of sbatch, which counts jobs from 41; both record how they were called."""
    folder = tmp_path / "bin"
    folder.mkdir()
    calls = tmp_path / "calls"
    programs = {
        "sbatch": f'echo "$@" >> {calls}\ncase "$*" in *impossible*) exit 1;; esac\n'
        f"echo $((40 + $(wc -l < {calls})))",
        "scancel": f'echo "scancel $@" >> {calls}',
    }
    for name, body in programs.items():
        program = folder / name
        program.write_text(f"#!/bin/sh\n{body}\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def test_each_job_waits_for_the_one_before(slurm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", *GOAL, *ALL, f"run.dir={slurm}/runs", "run.name=r", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["stages"] == {"prepare": 41, "train": 42, "eval": 43}
    assert printed["job"] == 42
    assert printed["log"] == f"{slurm}/runs/r/slurm/job-42.log"
    folder = f"{slurm}/runs/r/slurm"
    assert (slurm / "calls").read_text().splitlines() == [
        f"--parsable {folder}/prepare.sbatch",
        f"--parsable --dependency=afterok:41 --kill-on-invalid-dep=yes {folder}/submit.sbatch",
        f"--parsable --dependency=afterok:42 --kill-on-invalid-dep=yes {folder}/eval.sbatch",
    ]
    assert main(["submit", *GOAL, *ALL, f"run.dir={slurm}/runs", "run.name=r"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "scancel 44 45 46 ends them" in shown


def test_a_refused_job_cancels_those_before_it(
    slurm: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("cluster.slurm.pipeline.Job.dependency", lambda *_: "impossible")
    assert main(["submit", *GOAL, *ALL, f"run.dir={slurm}/runs", "run.name=r"]) == 2
    assert capsys.readouterr().err.startswith("error: sbatch refuses the job")
    assert (slurm / "calls").read_text().splitlines()[-1] == "scancel 41"
