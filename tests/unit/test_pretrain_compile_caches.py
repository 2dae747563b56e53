"""Compiled kernels are kept in one folder a user and node, which nobody else can write to."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from data.errors import InputError
from pretrain import compile_caches as module
from pretrain.compile_caches import FOLDERS, compile_caches, own_folder, use_compile_caches

VARIABLES = {*FOLDERS, "FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED"}


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary folder of the test's own, and none of the variables."""
    for name in (*VARIABLES, "TORCHDYNAMO_DISABLE", "TORCH_NCCL_ENABLE_TIMING"):
        monkeypatch.setenv(name, "")  # restored afterwards, whatever the test sets
        monkeypatch.delenv(name)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_all_processes_of_a_user_get_the_same_private_folder(temporary: Path) -> None:
    first, again = compile_caches(), compile_caches({"PATH": "/bin"})
    assert first == again
    assert first.keys() == VARIABLES
    assert first["FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED"] == "1"
    (root,) = temporary.iterdir()
    assert root.name == f"worldvla-compiled-{os.getuid()}"
    assert stat.S_IMODE(root.stat().st_mode) == 0o700
    assert {Path(first[name]) for name in FOLDERS} == {root / folder for folder in FOLDERS.values()}


def test_processes_that_start_together_agree(temporary: Path) -> None:
    program = "from pretrain.compile_caches import compile_caches; print(sorted(compile_caches().items()))"
    environment = {**os.environ, "TMPDIR": str(temporary)}
    words = [sys.executable, "-c", program]
    started = [subprocess.Popen(words, env=environment, stdout=subprocess.PIPE) for _ in range(4)]
    said = {process.communicate()[0] for process in started}
    assert [process.returncode for process in started] == [0] * 4
    assert len(said) == 1


def test_what_the_user_has_set_stays(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = {name: "mine" for name in VARIABLES}
    assert compile_caches(own) == {}
    assert list(temporary.iterdir()) == [], "nothing is made for nothing"
    monkeypatch.setenv("TRITON_CACHE_DIR", "/mine")
    use_compile_caches()
    assert os.environ["TRITON_CACHE_DIR"] == "/mine"
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"].endswith("/inductor")


def test_nothing_is_kept_where_nothing_is_compiled(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    use_compile_caches()
    assert not VARIABLES & os.environ.keys()
    assert list(temporary.iterdir()) == []


def test_a_folder_that_others_can_write_to_is_refused(temporary: Path) -> None:
    folder = temporary / "theirs"
    folder.mkdir()
    folder.chmod(0o770)
    with pytest.raises(
        InputError, match=r"open to other users \(mode 770\), expected 700; remove it, or set TORCH"
    ):
        own_folder(folder)
    folder.chmod(0o700)
    assert own_folder(folder) == folder


def test_a_folder_of_another_user_is_refused(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = own_folder(temporary / "theirs")
    monkeypatch.setattr(module.os, "getuid", lambda: folder.stat().st_uid + 1)
    with pytest.raises(InputError, match=f"belongs to user {folder.stat().st_uid}, expected"):
        own_folder(folder)


@pytest.mark.parametrize("kind", ["link", "file"])
def test_a_link_and_a_file_are_refused(kind: str, temporary: Path) -> None:
    path = temporary / "there"
    path.symlink_to(own_folder(temporary / "mine")) if kind == "link" else path.touch()
    with pytest.raises(InputError, match="found a link or a file, expected a folder"):
        own_folder(path)


def test_a_folder_that_cannot_be_made_is_told(temporary: Path) -> None:
    with pytest.raises(InputError, match=r"cannot be made for compiled kernels \(No such file"):
        own_folder(temporary / "missing" / "folder")


def test_torch_looks_there() -> None:
    """A canary: both compilers read the variables when they first compile."""
    from torch._inductor.runtime import cache_dir_utils

    use_compile_caches()
    assert cache_dir_utils.cache_dir() == os.environ["TORCHINDUCTOR_CACHE_DIR"]
    assert {cache_dir_utils.triton_cache_dir(device) for device in range(8)} == {
        os.environ["TRITON_CACHE_DIR"]
    }


def test_ranks_of_ray_and_of_torchrun_use_them(monkeypatch: pytest.MonkeyPatch) -> None:
    from cluster.run import worker_entry_points
    from pretrain import main, trainer
    from pretrain.config import TrainingConfig

    used: list[str] = []
    monkeypatch.setattr(module, "use_compile_caches", lambda: used.append("ray"))
    monkeypatch.setattr(main, "use_compile_caches", lambda: used.append("torchrun"))
    monkeypatch.setattr(trainer, "train", lambda *args, **options: used.append("train"))
    monkeypatch.setattr("torch.distributed.destroy_process_group", lambda: None)
    worker_entry_points.train_rank(TrainingConfig(), None)  # type: ignore[arg-type]
    main._run(TrainingConfig(), rank=1)
    assert used == ["ray", "train", "torchrun", "train"]


@pytest.mark.parametrize(
    "module_of_rank", ["pretrain.main", "cluster.run.train_group, cluster.run.worker_entry_points"]
)
def test_ranks_set_them_before_torchs_compiler_sets_its_own(module_of_rank: str, temporary: Path) -> None:
    program = (
        f"import os, {module_of_rank}; from pretrain.compile_caches import use_compile_caches;"
        "use_compile_caches(); import pretrain.trainer, torch._inductor.codecache;"
        "print(os.environ['TORCHINDUCTOR_CACHE_DIR'])"
    )
    environment = {**os.environ, "TMPDIR": str(temporary)}
    words = [sys.executable, "-c", program]
    ended = subprocess.run(words, env=environment, capture_output=True, encoding="utf-8", check=True)
    assert ended.stdout.splitlines()[-1] == f"{temporary}/worldvla-compiled-{os.getuid()}/inductor"
