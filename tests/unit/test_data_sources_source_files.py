"""Sources in an object store and in the hub's cache: as in a folder, and a spool of bounded size."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from obstore.exceptions import GenericError
from obstore.store import MemoryStore

from data.config import SourceConfig, SpoolConfig
from data.errors import InputError
from data.prepare.parts import plan_parts
from data.sources import registry
from data.sources.files import source_files
from data.sources.files.source_files import LocalFiles, SourceFiles, StoreFiles, StorePath, open_files
from data.sources.files.spool import Spool
from data.sources.interface import DemonstrationSource
from data.sources.registry import open_source
from data.storage import contact, object_store
from data.storage.object_store import ObjectStore
from tests.support.lerobot_layout import recorded, write_lerobot
from tests.support.libero_layout import demonstration, write_file
from tests.support.rlds_layout import write_recorded
from tests.support.webdataset_layout import write_episodes, write_steps

URL = "memory://bucket/demos"


def rlds(folder: Path) -> None:
    write_recorded(folder, [recorded(4, seed) for seed in range(4)])


def lerobot(folder: Path) -> None:
    write_lerobot(folder, "v3.0", [recorded(4, seed) for seed in range(3)])


def older_lerobot(folder: Path) -> None:
    write_lerobot(folder, "v2.1", [recorded(4, seed) for seed in range(2)])


def webdataset(folder: Path) -> None:
    write_steps(folder / "a.tar", [("x", recorded(3, 0)), ("y", recorded(2, 1))])
    write_episodes(folder / "other" / "b.tar", [("z", recorded(3, 2))])


def uploaded(folder: Path) -> MemoryStore:
    store = MemoryStore()
    for path in folder.rglob("*"):
        if path.is_file():
            store.put(path.relative_to(folder).as_posix(), path.read_bytes())
    return store


def spool(folder: Path, size: int = 1 << 30) -> Spool:
    folder.mkdir(exist_ok=True)
    return Spool(folder, size)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., MemoryStore]:
    """Uploads a folder; sources below `URL` are then read from there."""

    def upload(folder: Path, size: int = 1 << 30) -> MemoryStore:
        store = uploaded(folder)

        def opened(config: SourceConfig) -> SourceFiles:
            return StoreFiles(ObjectStore(URL, store), spool(tmp_path / "spool", size))

        monkeypatch.setattr(registry, "open_files", opened)
        return store

    return upload


def assert_same(ours: DemonstrationSource, local: DemonstrationSource) -> None:
    listed, expected = ours.references(), local.references()
    assert [each.path for each in ours.checked(listed)] == [each.path for each in listed]
    assert not any(each.fault for each in ours.checked(listed))
    for one, two in zip(listed, expected, strict=True):
        assert replace(one, path=two.path, videos=two.videos) == two
        assert str(one.path).startswith(f"{URL}/")
        found, wanted = ours.read(one), local.read(two)
        assert np.array_equal(found.actions, wanted.actions)
        assert all(np.array_equal(found.frames[camera], wanted.frames[camera]) for camera in wanted.frames)


@pytest.mark.parametrize("write", [rlds, lerobot, older_lerobot, webdataset])
def test_a_store_gives_what_its_folder_gives(
    write: Callable[[Path], None], tmp_path: Path, place: Callable[..., MemoryStore]
) -> None:
    folder = tmp_path / "demos"
    write(folder)
    local = open_source(SourceConfig(str(folder)))
    place(folder)
    assert_same(open_source(SourceConfig(URL)), local)


def test_files_of_a_store_are_removed_in_time(tmp_path: Path, place: Callable[..., MemoryStore]) -> None:
    older_lerobot(tmp_path / "demos")
    local = open_source(SourceConfig(str(tmp_path / "demos")))
    sizes = sorted(path.stat().st_size for path in (tmp_path / "demos").rglob("*") if path.is_file())
    place(tmp_path / "demos", sizes[-1] + sizes[-2])
    source = open_source(SourceConfig(URL))
    assert_same(source, local)
    left = [path.stat().st_size for path in (tmp_path / "spool").rglob("*") if path.is_file()]
    assert 0 < sum(left) <= sizes[-1] + sizes[-2]
    source.files.close()
    assert not list((tmp_path / "spool").iterdir())
    assert source.read(source.references()[0]).frames, "fetched again"
    place(tmp_path / "demos", sizes[-1] - 1)
    with pytest.raises(InputError, match=r"the spool holds \d+; set spool\.size to more than the source's"):
        list(registry.read_demonstrations(SourceConfig(URL)))


def test_a_file_that_could_not_be_fetched_leaves_nothing(tmp_path: Path) -> None:
    kept = spool(tmp_path / "spool", 10)

    def failing(begin: int, size: int) -> bytes:
        raise InputError("away")

    with pytest.raises(InputError, match="away"):
        kept.place("a/x", 5, failing)
    assert not [path for path in (tmp_path / "spool").rglob("*") if path.is_file()]
    assert kept.place("a/x", 5, lambda begin, size: b"12345").read_bytes() == b"12345"
    assert kept.place("b/x", 5, lambda begin, size: b"67890").read_bytes() == b"67890"
    assert kept.place("a/x", 5, failing).read_bytes() == b"12345", "still there"
    kept.place("c", 5, lambda begin, size: b"abcde")
    with pytest.raises(InputError, match="away"):  # used before a/x, and so removed
        kept.place("b/x", 5, failing)


@pytest.mark.parametrize(
    ("write", "gone", "reason"),
    [
        (rlds, "features.json", r": neither \*\.hdf5 .* nor features\.json"),
        (rlds, "cube_set-train.tfrecord-00001-of-00002", "00001-of-00002: no such file, expected a TFRecord"),
        (
            lerobot,
            "videos/observation.images.image/chunk-000/file-000.mp4",
            "file-000.mp4: no such file, expe",
        ),
        (lerobot, "data/chunk-000/file-000.parquet", "file-000.parquet: no such file, expected a Parquet"),
        (older_lerobot, "meta/episodes.jsonl", r"episodes\.jsonl: cannot be read \(no such object\)"),
    ],
)
def test_what_is_missing_is_named_by_its_address(
    write: Callable[[Path], None],
    gone: str,
    reason: str,
    tmp_path: Path,
    place: Callable[..., MemoryStore],
) -> None:
    write(tmp_path / "demos")
    (tmp_path / "demos" / gone).unlink()
    place(tmp_path / "demos")
    with pytest.raises(InputError, match=rf"memory://bucket/demos.*{reason}") as caught:
        list(registry.read_demonstrations(SourceConfig(URL)))
    assert "spool" not in str(caught.value)


def test_damage_is_named_by_its_address(tmp_path: Path, place: Callable[..., MemoryStore]) -> None:
    rlds(tmp_path / "demos")
    for path in (tmp_path / "demos").glob("*.tfrecord-*"):
        path.write_bytes(path.read_bytes()[:-1])
    place(tmp_path / "demos")
    with pytest.raises(
        InputError, match=r"2: memory://bucket/demos/cube_set.*-00000-of-00002: cut short"
    ) as e:
        list(registry.read_demonstrations(SourceConfig(URL)))
    assert "spool" not in str(e.value)


def test_a_replaced_object_makes_its_part_another_one_and_is_refused_by_a_reader(
    tmp_path: Path, place: Callable[..., MemoryStore]
) -> None:
    older_lerobot(tmp_path / "demos")
    store = place(tmp_path / "demos", size=1 << 20)

    def plans(source: DemonstrationSource) -> list[str]:
        parts = plan_parts(source.references(), 1, 1, "", state=source.files.state)
        return [part.plan for part in parts]

    before = plans(open_source(SourceConfig(URL)))
    assert plans(open_source(SourceConfig(URL))) == before
    name = "videos/chunk-000/observation.images.image/episode_000001.mp4"
    store.put(name, bytes(store.get(name).bytes()))
    after = plans(open_source(SourceConfig(URL)))
    assert [one == two for one, two in zip(before, after, strict=True)] == [True, False]
    objects = ObjectStore(URL, store)
    objects.read_range(name, 0, 10)
    store.put(name, b"another content")
    with pytest.raises(InputError, match="was replaced since this run first read it"):
        objects.read_range(name, 0, 10)


def test_addresses_have_the_arithmetic_of_paths() -> None:
    path = StorePath("s3://bucket/demos") / "meta" / "info.json"
    assert str(path) == "s3://bucket/demos/meta/info.json"
    assert str(path.with_name("x.gz")) == "s3://bucket/demos/meta/x.gz"
    assert path.relative_to(StorePath("s3://bucket/demos")).as_posix() == "meta/info.json"
    assert str(StorePath(path)) == str(path)
    assert str(pickle.loads(pickle.dumps(path))) == str(path), "as it goes to workers"


@pytest.mark.parametrize("scheme", ["s3", "gs", "az"])
def test_anonymous_requests_are_not_signed(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client is asked for it, also where a profile is named that does not exist."""
    monkeypatch.setenv("AWS_PROFILE", "none such")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    made: list[dict[str, Any]] = []
    from_url = object_store.from_url

    def noted(url: str, **options: Any) -> Any:
        made.append(options)
        return from_url(url, **options)

    monkeypatch.setattr(object_store, "from_url", noted)
    files = open_files(SourceConfig(f"{scheme}://bucket/demos", anonymous=True))
    assert str(files.root) == f"{scheme}://bucket/demos"
    assert made[0]["config"]["skip_signature"] is True
    monkeypatch.delenv("AWS_PROFILE")
    open_files(SourceConfig(f"{scheme}://bucket/demos"))
    assert "skip_signature" not in made[1]["config"]


def test_without_credentials_anonymous_requests_are_proposed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*ignored: Any) -> Any:
        raise GenericError("Error performing PUT http://169.254.169.254/latest/api/token")

    monkeypatch.setattr(contact, "_answered", set[str]())  # a store that has answered is waited for
    monkeypatch.setattr(object_store.obstore, "head", refused)
    with pytest.raises(InputError, match=r"no credentials: set AWS_.*; or set anonymous=true, if the data"):
        open_source(SourceConfig("s3://bucket/demos"))


def test_names_that_stores_disagree_on_are_refused(place: Callable[..., MemoryStore], tmp_path: Path) -> None:
    (tmp_path / "demos").mkdir()
    place(tmp_path / "demos")
    files = source_files.StoreFiles(ObjectStore(URL, MemoryStore()), Spool(None, 1))
    with pytest.raises(InputError, match="demos/a b: a name with other characters than letters"):
        files.is_file(files.root / "a b")


def cached(folder: Path, main: str | None, *revisions: str) -> Path:
    """A data set in the hub's cache: snapshots of links into `blobs`."""
    lerobot(folder / "written")
    cache = folder / "hub" / "datasets--lerobot--cubes"
    (cache / "blobs").mkdir(parents=True)
    for number, path in enumerate(p for p in (folder / "written").rglob("*") if p.is_file()):
        (cache / "blobs" / f"{number:064x}").write_bytes(path.read_bytes())
        for revision in revisions:
            link = cache / "snapshots" / revision / path.relative_to(folder / "written")
            link.parent.mkdir(parents=True, exist_ok=True)
            depth = len(link.relative_to(cache).parts) - 1
            link.symlink_to(Path(*[".."] * depth, "blobs", f"{number:064x}"))
    if main is not None:
        (cache / "refs").mkdir()
        (cache / "refs" / "main").write_text(main)
    return cache


@pytest.mark.parametrize(("main", "revisions"), [("b" * 40, ["a" * 40, "b" * 40]), (None, ["c" * 40])])
def test_a_data_set_in_the_hubs_cache_is_read(tmp_path: Path, main: str | None, revisions: list[str]) -> None:
    cache = cached(tmp_path, main, *revisions)
    source, written = (
        open_source(SourceConfig(str(cache))),
        open_source(SourceConfig(str(tmp_path / "written"))),
    )
    for one, two in zip(source.references(), written.references(), strict=True):
        assert (one.suite, two.suite) == ("cubes", "written")
        assert np.array_equal(source.read(one).frames["agent"], written.read(two).frames["agent"])
        assert str(one.path).startswith(str(cache / "snapshots" / revisions[-1]))
    named = open_source(SourceConfig(str(cache / "snapshots" / revisions[-1])))
    assert {each.suite for each in named.references()} == {"cubes"}


def test_a_cache_that_does_not_say_which_snapshot_is_refused(tmp_path: Path) -> None:
    cache = cached(tmp_path, None, "a" * 40, "b" * 40)
    with pytest.raises(InputError, match=f"its snapshots are {'a' * 40}, {'b' * 40}, and no refs/main says"):
        open_source(SourceConfig(str(cache)))
    (cache / "refs").mkdir()
    for name in ("c" * 40, "../blobs", ".."):
        (cache / "refs" / "main").write_text(name)
        with pytest.raises(InputError, match=r"refs/main: names the revision .*, which is not in"):
            open_source(SourceConfig(str(cache)))
    shutil.rmtree(cache / "snapshots" / ("a" * 40))
    (cache / "refs" / "main").unlink()
    assert open_source(SourceConfig(str(cache))).references()


def test_a_folder_of_any_name_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a{1..2}", "b.tar"):
        write_file(tmp_path / name / "lift_demo.hdf5", [demonstration()])
        assert open_source(SourceConfig(str(tmp_path / name))).references()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_source(SourceConfig("~/b.tar")).references()
    assert isinstance(open_files(SourceConfig((tmp_path / "b.tar").as_uri())), LocalFiles)


def test_wrong_settings_of_the_spool_are_explained(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"spool\.size=much: expected a size"):
        open_files(SourceConfig("memory://x", spool=SpoolConfig(size="much")))
    (tmp_path / "file").touch()
    lost = Spool(tmp_path / "file", 10)
    with pytest.raises(InputError, match=r"file: no folder can be made there .*; set spool\.dir to another"):
        lost.place("x", 1, lambda begin, size: b"x")


def test_the_record_of_a_prepared_set_in_a_store_is_recognised(
    tmp_path: Path, place: Callable[..., MemoryStore]
) -> None:
    webdataset(tmp_path / "demos")
    (tmp_path / "demos" / "index.json").write_text(json.dumps({"schema": 4, "fingerprint": "a"}))
    place(tmp_path / "demos")
    with pytest.raises(InputError, match=r"memory://bucket/demos/index\.json: this is a prepared data set"):
        open_source(SourceConfig(URL))


def test_a_spool_that_cannot_be_made_is_no_fault_of_the_demonstrations(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    config = SourceConfig("s3://bucket/demos", spool=SpoolConfig(dir=str(tmp_path / "file" / "spool")))
    with pytest.raises(InputError, match=r"file/spool: no folder can be made there .*; set spool\.dir to"):
        open_files(config)
