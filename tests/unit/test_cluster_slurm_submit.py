"""`worldvla submit`: the batch script, the chosen layout, invalid settings."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
from pathlib import Path

import pytest

from cluster.cli.main import main
from cluster.slurm.config import SubmitConfig
from pretrain.installation import checkout
from pretrain.settings import compose

PROFILES = ["a100_40gb", "a100_80gb", "h100", "h200", "aws_p4d", "aws_p5", "aws_p5en"]
GOAL = "experiment=worldvla_libero_goal_256"


def script(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["submit", *words, "--dry-run"]) == 0
    return capsys.readouterr().out


def test_the_script_of_an_experiment_needs_only_the_number_of_nodes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = script(capsys, GOAL, "nodes=8")
    assert text.startswith("#!/bin/bash\n#SBATCH --job-name=worldvla_libero_goal_256\n#SBATCH --nodes=8\n")
    for option in ("gpus-per-node=8", "exclusive", "signal=B:USR1@300", "requeue", "open-mode=append"):
        assert f"#SBATCH --{option}\n" in text
    words = dict(
        line.strip().split("=", 1) for line in text.splitlines() if line.startswith("  ") and "=" in line
    )
    assert int(words["parallel.tensor"]) * int(words["parallel.data"]) == 64
    assert "nodes=8" not in text.split("arguments=(")[1].split(")")[0], "not a setting of the training"


def test_bash_parses_every_script(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for words in (
        [GOAL, "nodes=8"],
        [GOAL, "nodes=2", "cluster=a100_80gb", "slurm.container=/images/w.sqsh", "slurm.mounts=['/a:/b c']"],
        [GOAL, "sweep='optim.lr=1e-5,5e-6'", "after=17", "slurm.modules=[cuda/12.4]"],
        ["experiment=demo", "data.url=s", "cluster.gpus_per_rank=0", "nodes=2", "slurm.requeue=false"],
        [GOAL, "slurm.environment=[\"ODD=a 'b' $(c) `d`\"]", "slurm.network=efa"],
    ):
        path = tmp_path / "job.sbatch"
        path.write_text(script(capsys, *words))
        subprocess.run(["bash", "-n", str(path)], check=True)


def test_values_reach_bash_unchanged(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    value = "a 'b' $(touch x) `touch y`"
    text = script(capsys, GOAL, f'slurm.environment=["ODD={value}"]', "optim.lr=1e-5")
    lines = [line for line in text.splitlines() if line.startswith("export ODD=")]
    shown = subprocess.run(
        ["bash", "-c", f'{lines[0]}\nprintf %s "$ODD"'],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert shown.stdout == value
    assert list(tmp_path.iterdir()) == []


def test_relative_paths_are_relative_to_where_the_job_was_submitted(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = script(capsys, GOAL, "run.dir=mine", "data.url=shards")
    assert f"#SBATCH --output={tmp_path}/mine/worldvla_libero_goal_256/slurm/job-%j.log\n" in text
    setup = text[text.index("cd ") : text.index("\n\n", text.index("cd "))].replace("source ", ": ")
    shown = subprocess.run(
        ["bash", "-euc", f'{setup}\nprintf "%s|%s" "$PWD" "$PYTHONPATH"'],
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
        env={"PYTHONPATH": "before"},
    )
    assert shown.stdout == f"{tmp_path}|{checkout()}:before", "the project is importable from there"


def test_every_step_runs_in_the_container(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = script(capsys, GOAL, "slurm.container=/images/worldvla.sqsh", "slurm.mounts=['/data:/data']")
    mounts = f"{checkout()}:{checkout()},{tmp_path}:{tmp_path},/data:/data"
    options = f"image=/images/worldvla.sqsh --container-mounts={mounts} --container-workdir={tmp_path} "
    assert f" --container-{options}" in text
    assert "bin/activate" not in text


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_sets_the_variables_of_its_network(
    profile: str, capsys: pytest.CaptureFixture[str]
) -> None:
    efa = profile.startswith("aws_")
    text = script(capsys, GOAL, f"cluster={profile}")
    assert ("export FI_PROVIDER=efa\n" in text) == efa
    assert ("export NCCL_IB_TIMEOUT=22\n" in text) == (not efa)
    for line in text.splitlines():
        if line.startswith("export NCCL") or line.startswith("export FI_"):
            name, _, value = line.removeprefix("export ").partition("=")
            assert re.search(f"^# {name} +{value} +[a-z0-9]", text, re.MULTILINE), (
                "every variable is in the table"
            )
    assert "export NCCL_IB_DISABLE=1\n" in script(capsys, GOAL, f"cluster={profile}", "slurm.network=tcp")


def test_steps_leave_the_ranks_all_cpus_and_gpus_to_bind_to(capsys: pytest.CaptureFixture[str]) -> None:
    stages = ["stages=[prepare,train,eval]", "prepare.source=d"]
    lines = script(capsys, GOAL, *stages).splitlines()
    steps = [line for line in lines if line.lstrip().startswith(("srun ", "exec srun "))]
    assert len(steps) == 3
    assert all(" --cpu-bind=none --gpu-bind=none " in line for line in steps)
    on_cpus = script(capsys, "experiment=demo", "data.url=s", "cluster.gpus_per_rank=0", "nodes=2")
    assert "--cpu-bind=none" in on_cpus
    assert "--gpu-bind" not in on_cpus


def test_a_sweep_is_a_job_array(capsys: pytest.CaptureFixture[str]) -> None:
    text = script(capsys, GOAL, "sweep='optim.lr=1e-5,5e-6'")
    assert "#SBATCH --array=0-1\n" in text
    assert "1) arguments+=(optim.lr=5e-6 run.name=worldvla_libero_goal_256-1) ;;" in text
    for wrong in ("optim.lr", "optim.lr=1", "=1,2", "optim.lr=1,"):
        assert main(["submit", GOAL, f"sweep='{wrong}'", "--dry-run"]) == 2
        assert "expected a setting with two values or more" in capsys.readouterr().err


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("suite", ["spatial", "object", "goal", "10"])
@pytest.mark.parametrize("pixels", [256, 512])
def test_every_experiment_fits_one_node_of_every_profile(profile: str, suite: str, pixels: int) -> None:
    from cluster.slurm.layout_choice import choose_layout

    words = [f"experiment=worldvla_libero_{suite}_{pixels}", f"cluster={profile}"]
    config = compose("worldvla submit", SubmitConfig, "train", words)
    chosen = dict(word.split("=") for word in choose_layout(config, words))
    assert int(chosen["parallel.tensor"]) * int(chosen["parallel.data"]) == 8
    accepted = compose(
        "worldvla submit", SubmitConfig, "train", [*words, *(f"{k}={v}" for k, v in chosen.items())]
    )
    assert choose_layout(accepted, [*words, *(f"{k}={v}" for k, v in chosen.items())]) == []


def chosen_layout(*words: str) -> dict[str, str]:
    from cluster.slurm.layout_choice import choose_layout

    config = compose("worldvla submit", SubmitConfig, "train", [GOAL, *words])
    return dict(word.split("=") for word in choose_layout(config, [GOAL, *words]))


def test_the_layout_has_stage_and_second_copy() -> None:
    words = ["nodes=8", "trainer.global_batch=512"]
    chosen = chosen_layout(*words)
    assert (chosen["parallel.zero_stage"], chosen["parallel.hpz_partition_size"]) == ("3", "8")
    assert chosen["model.recompute"] == "none"
    given = chosen_layout(*words, "parallel.zero_stage=2", "model.recompute=full", "trainer.micro_batch=4")
    assert not {"parallel.zero_stage", "model.recompute", "trainer.micro_batch"} & set(given)
    assert given["parallel.hpz_partition_size"] == "1", "of stage 3 alone"
    assert chosen_layout(*words, "parallel.offload=all")["parallel.zero_stage"] == "3"
    assert "parallel.hpz_partition_size" not in chosen_layout(*words, "parallel.hpz_partition_size=1")


def test_evaluations_have_a_node_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert chosen_layout("nodes=2", "eval.every=5000")["parallel.tensor"] == "1"
    assert chosen_layout("nodes=2", "eval.every=5000", "parallel.data=8") == {}
    assert chosen_layout("nodes=2")["parallel.tensor"] == "2", "all 16 share out 8 sequences"
    for words, message in (
        (["nodes=1", "eval.every=5000"], "out over gpus=7 .*; evaluations have GPUs of their own"),
        (["nodes=1", "eval.every=5000", "parallel.data=8"], "nodes=1 have 8 GPUs, 1 of them for evaluations"),
        (
            ["nodes=3", "eval.every=5000", "parallel.data=8"],
            "nodes=3 have 24 GPUs, 1 of them for evaluations",
        ),
        (["nodes=1", "eval.every=5000", "eval.gpus=8"], "eval.gpus=8 leaves no GPU of nodes=1"),
    ):
        assert main(["submit", GOAL, *words, "--dry-run"]) == 2
        assert re.search(message, capsys.readouterr().err), message


def test_the_papers_hyper_parameters() -> None:
    config = compose("t", SubmitConfig, "train", ["experiment=worldvla_libero_10_512"])
    assert (config.data.history, config.data.chunk) == (2, 10)
    assert (config.optim.lr, config.optim.schedule, config.optim.weight_decay) == (5e-6, "constant", 0.1)
    assert (config.optim.betas, config.optim.gradient_clipping) == ((0.9, 0.95), 4.0)
    assert (config.loss.image_weight, config.loss.z_loss, config.model.dropout) == (0.04, 1e-5, 0.05)
    assert config.eval.suite == "libero_10"
    assert config.eval.episodes == 50


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nodes=0"], "nodes=0, expected 1 or more"),
        (["slurm.network=wifi"], "worldvla submit: slurm.network=wifi, expected one of infiniband, efa, tcp"),
        (["cluster.network=wifi"], "worldvla submit: cluster.network=wifi, expected one of infiniband"),
        (["slurm.time=soon"], "slurm.time=soon, expected D-HH:MM:SS"),
        (["slurm.partition='a b'"], "slurm: 'partition=a b' is no option of sbatch"),
        (["slurm.sbatch=['--mem=0']"], "slurm: '--mem=0' is no option of sbatch"),
        (["slurm.environment=['WANDB_API_KEY=abc']"], "slurm.environment: WANDB_API_KEY looks like a secret"),
        (["slurm.environment=['A B=c']"], "slurm.environment: 'A B' is no name"),
        (["slurm.signal_seconds=0"], "slurm.signal_seconds=0, expected 1 or more"),
        (["parallel.tensor=2", "parallel.data=2"], "parallel.tensor x parallel.data = 4 ranks, but nodes=1"),
        (["cluster.gpu=null"], "cluster.gpu and cluster.gpu_memory are not set"),
        (["nodes=1", "cluster.gpu_memory=16GB"], "nothing fits gpus=8 of 16 GB"),
        (["run.name='a b'"], "'job-name=a b' cannot stand in a batch script"),
        (["slurm.tim=1"], "worldvla submit: unknown setting 'slurm.tim'; did you mean 'slurm.time'?"),
    ],
)
def test_invalid_settings_are_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", GOAL, *words, "--dry-run"]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith(f"error: {message}")
    assert shown.err.count("\n") == 1
    assert not shown.out


@pytest.fixture
def sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fake sbatch that stores the script and prints a job id."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "sbatch"
    program.write_text(
        f'#!/bin/sh\ncp "$2" {tmp_path}/given\n'
        f'[ ! -e {tmp_path}/refuse ] || {{ echo no >&2; exit 1; }}\necho "42;c"\n'
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def test_submission_prints_the_job_and_its_files(sbatch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [GOAL, f"run.dir={sbatch}/runs", "run.name=mine"]
    assert main(["submit", *words, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["job"] == 42
    assert printed["log"] == f"{sbatch}/runs/mine/slurm/job-42.log"
    assert (sbatch / "given").read_text() == Path(printed["script"]).read_text()
    (sbatch / "refuse").touch()
    assert main(["submit", *words]) == 2
    assert capsys.readouterr().err.startswith("error: sbatch refuses the job: no; the script is ")


@pytest.mark.parametrize(
    ("answer", "code", "shown"),
    [
        ("Welcome; jobs are charged\\n42", 0, "42"),
        ("your job is queued", 2, "error: sbatch answers 'your job is queued', expected the id of the job"),
        ("", 2, "error: sbatch answers '', expected the id of the job"),
    ],
)
def test_what_else_sbatch_prints_is_no_job(
    answer: str, code: int, shown: str, sbatch: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (sbatch / "bin" / "sbatch").write_text(f'#!/bin/sh\nprintf "{answer}\n"\n')
    assert main(["submit", GOAL, f"run.dir={sbatch}/runs", "run.name=mine"]) == code
    captured = capsys.readouterr()
    assert shown in (captured.err if code else captured.out)


def test_without_a_slurm_client_submission_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["submit", GOAL, f"run.dir={tmp_path}"]) == 2
    assert "sbatch not found" in capsys.readouterr().err


def test_the_script_is_in_utf_8_and_what_sbatch_prints_in_any_encoding(
    sbatch: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (sbatch / "bin/sbatch").write_text(
        f'#!/bin/sh\ncp "$2" {sbatch}/given\nprintf "données \\377\\n42\\n"\n', "utf-8"
    )
    assert main(["submit", GOAL, f"run.dir={sbatch}/runs", "run.name=mine", "data.url=données"]) == 0
    assert "données" in (sbatch / "given").read_text("utf-8")
    assert "42" in capsys.readouterr().out
