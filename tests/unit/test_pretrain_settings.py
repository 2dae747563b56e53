from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import pytest
import torch
import yaml
from omegaconf import OmegaConf

from cluster.cli.commands import COMMANDS
from cluster.cli.config import ConvertExportConfig, DemoConfig
from cluster.cli.help import describe, settings
from cluster.config import PrepareCommandConfig, RootConfig
from cluster.slurm.config import SubmitConfig
from data.errors import InputError
from eval.config import CollectConfig
from pretrain.checks import check_training
from pretrain.config import TrainingConfig, VqConfig
from pretrain.main import TorchrunConfig
from pretrain.model.transformer import Transformer
from pretrain.settings import CONFIG_FOLDER, compose, from_mapping, to_mapping, to_yaml

GIVEN = ["run.name=x", "data.url=d"]
CHOICES = sorted(
    path.relative_to(CONFIG_FOLDER).with_suffix("")
    for path in CONFIG_FOLDER.glob("*/*.yaml")
    if path.parent.name != "recipe"  # files of other settings, not of a group
)


def train(*overrides: str) -> RootConfig:
    return compose("train", RootConfig, "train", [*GIVEN, *overrides])


def test_command_line_overrides_experiment_overrides_groups() -> None:
    config = compose(
        "train", RootConfig, "train", ["experiment=demo", "optim.lr=1e-4", "model=tiny", "data.url=d"]
    )
    assert config.optim.lr == 1e-4
    assert config.optim.warmup_steps == 20, "from optim/scratch, chosen by the experiment"
    assert config.model.vocabulary_size == 16_896
    assert config.parallel.tensor * config.parallel.data == 4
    assert config.optim.betas == (0.9, 0.95)


def test_a_group_on_the_command_line_replaces_the_experiments() -> None:
    config = compose("train", RootConfig, "train", ["experiment=demo", "parallel=single", "data.url=d"])
    assert (config.parallel.tensor, config.parallel.data) == (1, 1)


def test_profile_is_an_abbreviation_of_telemetry_profile() -> None:
    assert train("profile=true").telemetry.profile
    assert not train("profile=false").telemetry.profile
    with pytest.raises(InputError, match=r"telemetry\.profile: "):
        train("profile=perhaps")
    with pytest.raises(InputError, match="unknown setting 'profile'"):
        compose("collect", CollectConfig, None, ["profile=true"])


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_every_file_composes_for_ray_demo_and_torchrun(choice: Path) -> None:
    assert CHOICES
    overrides = [f"{choice.parent}={choice.name}", *GIVEN]
    for schema in (RootConfig, DemoConfig, TorchrunConfig):
        check_training(compose("train", schema, "train", overrides))


@pytest.mark.parametrize("model", [path.name for path in CHOICES if path.parent.name == "model"])
def test_every_model_has_its_documented_size_and_can_be_split(model: str) -> None:
    small = {"micro": 4.89, "tiny": 6.68}
    millions = (small | {"300m": 374.7, "1b": 1_230.0, "7b": 7_013.7, "34b": 34_294.3})[model]
    config = train(f"model={model}")
    for size in (1, 2, 4) if model in small else (1, 2, 4, 8):
        layout = replace(config.parallel, tensor=size, data=8, sequence_parallel=size > 1)
        check_training(replace(config, parallel=layout))
    with torch.device("meta"):
        network = Transformer(config.model)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    assert parameters / 1e6 == pytest.approx(millions, rel=1e-3)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lrr=1", "train: unknown setting 'optim.lrr'; did you mean 'optim.lr'?"),
        ("lr=1", "train: unknown setting 'lr'; did you mean 'optim.lr'?"),
        ("modle=tiny", "train: unknown setting 'modle'; did you mean 'model'?"),
        ("model=tinny", "no file configs/model/tinny.yaml; did you mean 'tiny'? (there are: 1b,"),
        ("optim.lr=abc", "train: optim.lr: Value 'abc' of type 'str' could not be converted to Float"),
        ("trainer.steps=1.5", "trainer.steps: Value '1.5'"),
        ("optim.betas=[0.9]", "optim.betas=[0.9] has 1 values, expected 2"),
        ("optim=3", "Config group override must be a string"),
        ("+optim.lrr=1", "settings are changed, not added"),
        ("~optim.lr", "settings are changed, not added"),
        ("trainer.steps", "Error parsing override 'trainer.steps'"),
        ("trainer.steps=1,2", "Ambiguous value"),
        ("optim.lr=${nope}", "Interpolation key 'nope' not found"),
    ],
)
def test_wrong_override_is_explained_in_one_line(override: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        train(override)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.attention=flsh", "model.attention=flsh, expected one of auto, sdpa, flex, flash, flash2"),
        ("model.recompute=some", "model.recompute=some, expected one of none, selective, full"),
        ("model.compile=never", "model.compile=never, expected one of auto, on, off"),
        ("trainer.precision=fp8", "trainer.precision=fp8, expected one of bf16, fp32"),
        ("trainer.precision=16", "trainer.precision=16, expected one of bf16, fp32"),
        ("optim.schedule=linear", "optim.schedule=linear, expected one of constant, cosine, wsd"),
        ("optim.name=1.5", "optim.name=1.5, expected one of adamw, lion; correct the setting"),
        ("optim.name=muon", "optim.name=muon, expected one of adamw, lion: Muon needs whole matrices"),
        ("trainer.precision=fp8", "trainer.precision=fp8, expected one of bf16, fp32: no layout"),
        ("parallel.offload=disk", "parallel.offload=disk, expected one of none, optimizer, all"),
        (
            "parallel.zero_stage=4",
            "parallel.zero_stage=4, expected one of 0, 1, 2, 3, auto; correct the setting",
        ),
        ("parallel.zero_stage=true", "parallel.zero_stage=True, expected one of 0, 1, 2, 3"),
        ("telemetry.wandb=maybe", "telemetry.wandb=maybe, expected one of auto, online, offline, disabled"),
        ("eval.stale=drop", "eval.stale=drop, expected one of queue, cancel"),
        ("optim.schedule=${optim.name}", "optim.schedule=adamw, expected one of constant, cosine, wsd"),
    ],
)
def test_a_value_that_is_no_choice_is_refused_with_the_choices(override: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        train(override)
    assert str(caught.value).startswith(f"train: {message}")
    assert "\n" not in str(caught.value)
    key, _, value = override.partition("=")
    section, name = key.split(".")
    with pytest.raises(InputError, match=re.escape(f"config.yaml: {message}")):
        from_mapping("config.yaml", RootConfig, {section: {name: yaml.safe_load(value)}})


def test_choices_of_other_commands_lists_and_files_are_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"^vq: precision=fp8, expected one of bf16, fp32; correct"):
        compose("vq", VqConfig, None, ["source=x", "out=y", "precision=fp8"])
    with pytest.raises(
        InputError, match=r"^export: dtype=int8, expected one of float32, .*float16, or null;"
    ):
        compose("export", ConvertExportConfig, None, ["checkpoint=x", "out=y", "dtype=int8"])
    with pytest.raises(InputError, match=r"^submit: stages\[1\]=test, expected one of prepare, train, eval;"):
        compose("submit", SubmitConfig, "train", [*GIVEN, "stages=[train,test]"])
    (tmp_path / "experiment").mkdir()
    (tmp_path / "train.yaml").write_text("defaults: [schema, _self_, experiment: null]\n")
    (tmp_path / "experiment" / "bad.yaml").write_text("# @package _global_\noptim: {schedule: linear}\n")
    monkeypatch.setattr("pretrain.settings.CONFIG_FOLDER", tmp_path)
    message = r"^train \(configs/experiment/bad.yaml\): optim.schedule=linear, expected one of constant"
    with pytest.raises(InputError, match=message):
        train("experiment=bad")


def test_choices_become_plain_values() -> None:
    config = train("parallel.zero_stage=2", "trainer.precision=fp32")
    assert (config.parallel.zero_stage, config.trainer.precision) == (2, "fp32")
    assert type(config.parallel.zero_stage) is int
    assert type(config.trainer.precision) is str
    assert "zero_stage: 2\n" in to_yaml(config)
    assert train("run.name=${optim.name}-${parallel.zero_stage}").run.name == "adamw-3"
    copied = train("run.name=${optim.name}", "data.url=${trainer.precision}")
    assert (copied.run.name, type(copied.run.name), copied.data.url) == ("adamw", str, "bf16")
    assert compose("submit", SubmitConfig, "train", [*GIVEN, "stages=[train,eval]"]).stages == [
        "train",
        "eval",
    ]


def test_help_lists_the_choices() -> None:
    listed = {setting.key: setting.choices for setting in settings(RootConfig)}
    assert listed["optim.name"] == ("adamw", "lion")
    assert listed["parallel.zero_stage"] == ("0", "1", "2", "3", "auto")
    assert listed["optim.lr"] == ()
    assert {each.key: each.choices for each in settings(SubmitConfig)}["slurm.network"][-1] == "null"
    text = describe(next(command for command in COMMANDS if command.name == "train"))
    assert "  optim.name=adamw  (adamw | lion)\n" in text


def test_missing_required_values_are_named() -> None:
    with pytest.raises(InputError, match=r"no value for data.url, run.name; add data.url=... run.name=..."):
        compose("train", RootConfig, "train", [])


def test_unknown_key_in_a_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "train.yaml").write_text("defaults: [schema, _self_, experiment: null]\n")
    (tmp_path / "experiment" / "bad.yaml").write_text("# @package _global_\ntrainer: {step: 3}\n")
    monkeypatch.setattr("pretrain.settings.CONFIG_FOLDER", tmp_path)
    with pytest.raises(InputError, match=r"configs/experiment/bad.yaml.*'trainer.step'.*'trainer.steps'"):
        train("experiment=bad")


def test_commands_without_a_file_take_overrides_too() -> None:
    config = compose("collect", CollectConfig, None, ["out=/tmp/x", "tasks=[0,1]"])
    assert (config.out, config.tasks, config.episodes) == ("/tmp/x", [0, 1], 12)
    with pytest.raises(InputError, match="collect: unknown setting 'episods'; did you mean 'episodes'"):
        compose("collect", CollectConfig, None, ["episods=2"])


def test_settings_round_trip_through_a_mapping() -> None:
    config = train("experiment=demo")
    assert from_mapping("config.yaml", RootConfig, to_mapping(config)) == config
    with pytest.raises(InputError, match=r"unknown setting 'trainer.stepz'"):
        from_mapping("config.yaml", TrainingConfig, {"trainer": {"stepz": 1}})


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.steps=0", "trainer.steps=0, expected 1 or more"),
        ("optim.lr=nan", "optim.lr=nan"),
        ("optim.lr=inf", "optim.lr=inf, expected 0 or more, and finite"),
        ("optim.decay_fraction=1.5", "optim.decay_fraction=1.5, expected 0 to 1"),
        ("optim.warmup_fraction=-0.1", "optim.warmup_fraction=-0.1, expected 0 to 1"),
        ("optim.min_lr_ratio=-0.1", "optim.min_lr_ratio=-0.1, expected 0 to 1"),
        ("parallel.hpz_partition_size=0", "parallel.hpz_partition_size=0, expected 1 or more"),
        ("run.name=../x", "expected the name of one folder"),
        ("model.heads=0", "model.heads=0, expected 1 or more"),
        ("model.layers=0", "model.layers=0, expected 1 or more"),
        ("model.dropout=1", r"model.dropout=1.0, expected at least 0 and below 1"),
        ("optim.betas=[0.9,1.0]", r"optim.betas=1.0, expected at least 0 and below 1"),
        *((f"optim.ema={d}", rf"optim.ema={d}, expected a decay above 0 and") for d in ("0.0", "1.0", "nan")),
        ("optim.eps=-1", "optim.eps=-1.0, expected 0 or more"),
        ("optim.weight_decay=-1", "optim.weight_decay=-1.0, expected 0 or more"),
        ("model.norm_eps=nan", "model.norm_eps=nan, expected 0 or more"),
        ("model.rope_theta=0", "model.rope_theta=0.0, expected 1 or more"),
        ("loss.image_weight=nan", "loss.image_weight=nan, expected 0 or more"),
        ("loss.z_loss=-1", "loss.z_loss=-1.0, expected 0 or more"),
    ],
)
def test_invalid_values_are_refused(override: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_training(train(override))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["offload=optimizer", "zero_stage=0"],
            "offload=optimizer, but parallel.zero_stage=0: expected one of 1",
        ),
        (["offload=all", "zero_stage=2"], "offload=all, but parallel.zero_stage=2: expected one of 3"),
        (["hpz_partition_size=2", "tensor=2", "data=2"], "parallel.tensor=2: it needs stage 3 and tensor 1"),
        (["hpz_partition_size=2", "zero_stage=2", "data=2"], "parallel.zero_stage=2 and parallel.tensor=1"),
        (["hpz_partition_size=3", "data=4"], "hpz_partition_size=3 does not divide parallel.data=4"),
    ],
)
def test_zero_settings_that_exclude_each_other_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_training(train(*(f"parallel.{override}" for override in overrides)))


TYPED = [
    "données",
    "数据/демо",
    "it's",
    'a "b" c',
    "a#b",
    "run(1)",
    "date=2025",
    "a,b",
    "a&b;c!d<e>",
    "~other/x",
    "x{1}[2]",
    "2025.10",
    "1e3",
    "007",
    "1_000",
    "true",
    "str(5)",
    "back\\slash",
    "end\\",
    "quote\\'s",
    " spaces ",
    "s3://bucket/ключ=1/x",
    "'",
    "'a' b'c'",
    "😀",
    "two\nlines",
]


@pytest.mark.parametrize("text", TYPED)
def test_a_text_is_taken_as_it_was_typed(text: str) -> None:
    words, named = [f"data.url={text}", f"checkpointing.url={text}", f"run.name={text}"], [f"source={text}"]
    # A comma or a bracket ends an element of a list.
    listed = text.strip().replace(",", "").replace("[2]", "").replace("{1}", "")
    is_element = not listed.startswith(("'", '"'))
    if is_element:
        words += [f"data.cameras=[{listed},b]", f"data.sources=[{{url:{listed},weight:2}}]"]
        named += [f"cameras={{agent:{listed}}}"]
    prepared = compose("prepare", PrepareCommandConfig, None, [*named, "out=x"])
    training = train(*words)
    assert prepared.source == text
    assert (training.data.url, training.checkpointing.url, training.run.name) == (text, text, text)
    if is_element:
        assert training.data.cameras == [listed, "b"]
        assert [(source.url, source.weight) for source in training.data.sources] == [(listed, 2.0)]
        assert prepared.cameras.agent == listed


def test_what_is_structure_quoted_or_null_is_read_by_hydra() -> None:
    assert train("checkpointing.url=null").checkpointing.url is None
    assert train("data.url='a b'").data.url == "a b"
    assert train('data.url="it\'s"').data.url == "it's"
    assert train("data.cameras=['a,b', \"c\"]").data.cameras == ["a,b", "c"]
    assert train("data.cameras=wrist").data.cameras == ["wrist"], "one text is a list of one"
    assert train("data.cameras=[]").data.cameras == []
    url = train("run.name=läufe", "checkpointing.url=s3://é/${run.name}").checkpointing.url
    assert url == "s3://é/läufe"
    words = ["source=s", "out=o", "action=joints"]
    assert compose("prepare", PrepareCommandConfig, None, words).action == ["joints"]
    words = ["source=s", "out=o", "action=[a/b,c]", "state=[]"]
    made = compose("prepare", PrepareCommandConfig, None, words)
    assert (made.action, made.state) == (["a/b", "c"], [])
    sweep = compose("submit", SubmitConfig, "train", [*GIVEN, "sweep=optim.lr=1e-5,5e-6"]).sweep
    assert sweep == "optim.lr=1e-5,5e-6"


def test_the_home_folder_is_meant_by_a_tilde(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/zoë")
    words = ["source=~/x y", "out=~"]
    made = compose("prepare", PrepareCommandConfig, None, words)
    assert (made.source, made.out) == ("/home/zoë/x y", "/home/zoë")
    assert train("data.url='~/x'").data.url == "~/x", "quoted: as it is"


def test_values_that_cannot_be_read_are_explained() -> None:
    with pytest.raises(
        InputError, match=r"^train: optim\.lr: Value '1é' of type 'str' could not be converted"
    ):
        train("optim.lr=1é")
    with pytest.raises(InputError, match=r"unknown setting 'sourc'; did you mean 'source'\?"):
        compose("prepare", PrepareCommandConfig, None, ["sourc=données"])
    with pytest.raises(InputError, match=r"no UTF-8 text \(a name in another encoding\); rename"):
        train("data.url=caf\udce9")
    with pytest.raises(InputError, match=r"agént:x}' cannot be read; write text in quotes") as caught:
        compose("prepare", PrepareCommandConfig, None, ["cameras={agént:x}"])
    assert "\n" not in str(caught.value)


def test_validation_of_episodes_that_are_trained_on_is_refused() -> None:
    check_training(train("data.split=all"))
    check_training(train("validation.every=5"))
    with pytest.raises(
        InputError, match=r"validation.every=5 would measure episodes that data.split=all trains"
    ):
        check_training(train("data.split=all", "validation.every=5"))
    with pytest.raises(InputError, match=r"data.split=val_ind, expected one of train, all"):
        train("data.split=val_ind")


@pytest.mark.parametrize(
    "choice",
    [p for p in CHOICES if str(p).startswith(("experiment/worldvla_", "experiment/rynnvla_libero_"))],
    ids=str,
)
def test_shipped_policies_train_on_all_demonstrations(choice: Path) -> None:
    """As the published ones do; so nothing is left to validate on, or to score a world model with."""
    config = compose("train", RootConfig, "train", [f"experiment={choice.name}"])
    check_training(config)
    assert config.data.split == "all"
    assert (config.validation.every, config.eval.imagine_frames) == (0, 0)


def test_only_files_of_the_settings_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not those of Hydra's own groups, for logging, help and launchers."""
    read: list[Path] = []
    load = OmegaConf.load

    def recorded(file: IO[str]) -> Any:
        read.append(Path(file.name))
        return load(file)

    monkeypatch.setattr(OmegaConf, "load", recorded)
    train("experiment=demo")
    names = {str(path.relative_to(CONFIG_FOLDER)) for path in read}
    assert {"train.yaml", "experiment/demo.yaml", "optim/scratch.yaml"} <= names


def test_settings_composed_before_do_not_change_the_defaults() -> None:
    given = {"run": {"name": "x"}, "data": {"url": "d"}}
    before, mapped_before = train(), from_mapping("config.yaml", RootConfig, given)
    train("data.cameras=[a,b]", "optim.lr=0.5", "run.name=other").data.cameras.append("c")
    changed = {"run": {"name": "y"}, "data": {"url": "e", "cameras": ["d"]}, "optim": {"lr": 0.25}}
    from_mapping("config.yaml", RootConfig, changed).telemetry.profile_steps.append(9)
    assert train() == before
    assert from_mapping("config.yaml", RootConfig, given) == mapped_before
