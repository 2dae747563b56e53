"""Keys and region from the files of the AWS command line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

import pytest

from data.errors import InputError
from data.storage.aws_profile import profile_settings
from data.storage.bulk_store import open_bulk
from data.storage.object_store import connect
from data.storage.store import open_store
from tests.support.object_server import BUCKET, object_server

CREDENTIALS = """\
# comment
[default]
aws_access_key_id = AKIADEFAULT
aws_secret_access_key = of/default+%(x)s=

[lab]
aws_access_key_id=AKIALAB
aws_secret_access_key=oflab
aws_session_token=token
region=us-west-1
"""
CONFIG = """\
[default]
region = eu-central-1
s3 =
  max_concurrent_requests = 20
[profile "lab"]
region = eu-west-3
aws_session_token = of other keys
[profile only config]
[profile keys]
aws_access_key_id = AKIACONFIG
aws_secret_access_key = ofconfig
[profile sso]
sso_session = work
region = eu-north-1
"""
DEFAULT = {"aws_access_key_id": "AKIADEFAULT", "aws_secret_access_key": "of/default+%(x)s="}
LAB = {"aws_access_key_id": "AKIALAB", "aws_secret_access_key": "oflab", "aws_session_token": "token"}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder with both files, and no variables."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws/credentials").write_text(CREDENTIALS, "utf-8")
    (tmp_path / ".aws/config").write_text(CONFIG, "utf-8")
    return tmp_path


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, {**DEFAULT, "region": "eu-central-1"}),
        ({"AWS_PROFILE": "lab"}, {**LAB, "region": "us-west-1"}),
        ({"AWS_PROFILE": "", "AWS_DEFAULT_PROFILE": "lab"}, {**LAB, "region": "us-west-1"}),
        ({"AWS_REGION": "here"}, DEFAULT),
        ({"AWS_DEFAULT_REGION": "here"}, DEFAULT),
        ({"AWS_ACCESS_KEY_ID": "mine"}, {"region": "eu-central-1"}),
        ({"AWS_SESSION_TOKEN": "mine", "AWS_PROFILE": "gone"}, {}),
        ({"AWS_WEB_IDENTITY_TOKEN_FILE": "/token", "AWS_REGION": "here"}, {}),
        (
            {"AWS_PROFILE": "keys"},
            {"aws_access_key_id": "AKIACONFIG", "aws_secret_access_key": "ofconfig"},
        ),
        ({"AWS_SHARED_CREDENTIALS_FILE": "/nowhere"}, {"region": "eu-central-1"}),
        ({"AWS_CONFIG_FILE": "/nowhere"}, DEFAULT),
    ],
)
def test_variables_win_over_the_profile_that_is_named(
    environment: dict[str, str], expected: dict[str, str]
) -> None:
    assert profile_settings(environment) == expected


def test_the_endpoint_of_a_profile_comes_with_its_keys(home: Path) -> None:
    with (home / ".aws/config").open("a") as file:
        file.write("[profile minio]\nendpoint_url = http://minio.lab:9000\n")
        file.write("aws_access_key_id = AKIA\naws_secret_access_key = of minio\n")
    minio = {"AWS_PROFILE": "minio"}
    assert profile_settings(minio)["endpoint_url"] == "http://minio.lab:9000"
    for name, value in (
        ("AWS_ENDPOINT_URL", "http://other"),
        ("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "true"),
        ("AWS_ACCESS_KEY_ID", "of another server"),
    ):
        assert "endpoint_url" not in profile_settings({**minio, name: value})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "endpoint_url = minio.lab:9000",
            r"^AWS_PROFILE=lab: endpoint_url is 'minio\.lab:9000', expected http",
        ),
        ("region = a\0b", "^AWS_PROFILE=lab: region: its value has a line break or another control"),
    ],
)
def test_a_value_that_no_request_can_carry_is_named(home: Path, line: str, message: str) -> None:
    (home / ".aws/credentials").write_text(CREDENTIALS.replace("region=us-west-1\n", ""))
    (home / ".aws/config").write_text(f"[profile lab]\n{line}\n")
    with pytest.raises(InputError, match=message):
        profile_settings({"AWS_PROFILE": "lab"})


def test_without_files_nothing_is_given(home: Path) -> None:
    for name in ("credentials", "config"):
        (home / ".aws" / name).unlink()
    assert profile_settings({}) == {}


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize(
    ("profile", "message"),
    [
        (
            "gone",
            r"^AWS_PROFILE=gone: neither .*credentials nor .*config has .*: default, keys, lab, sso\); c",
        ),
        ("only config", "^AWS_PROFILE=only config: neither"),
        (
            "sso",
            "^AWS_PROFILE=sso: has no aws_access_key_id and no aws_secret_access_key, but sso_session; .*"
            r'"\$\(aws configure export-credentials --profile sso --format env\)"',
        ),
    ],
)
def test_a_profile_without_keys_is_refused_where_it_was_named(profile: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        profile_settings({"AWS_PROFILE": profile})
    assert "\n" not in str(caught.value)


def test_a_role_of_the_machine_is_used_where_the_default_profile_has_no_keys(home: Path) -> None:
    (home / ".aws/credentials").write_text("[default]\n")
    assert profile_settings({"AWS_REGION": "here"}) == {}
    (home / ".aws/credentials").write_text("[default]\naws_access_key_id = AKIA\n")
    with pytest.raises(InputError, match=r"^profile default: has no aws_secret_access_key; write keys"):
        profile_settings({})


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (b"[default]\naws_secret_access_key TOPSECRET\n", "line 2"),
        (b"aws_secret_access_key = TOPSECRET\n", "line 1"),
        (b"[default]\nx = TOPSECRET\nx = TOPSECRET\n", "line 3"),
        (b"[default]\n[default]\n", "line 2"),
        (b"\xff\xfe[\x00", "its encoding"),
    ],
)
def test_a_malformed_file_is_one_line_that_shows_no_key(home: Path, content: bytes, place: str) -> None:
    path = home / ".aws/credentials"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"^{path}: {place} is not as the AWS command line") as caught:
        open_store("s3://bucket/x")
    error = caught.value
    assert "\n" not in str(error)
    assert "TOPSECRET" not in str(error)
    assert error.__cause__ is None
    assert error.__suppress_context__, "a traceback does not show it either"


def test_a_file_that_cannot_be_read_is_named(home: Path) -> None:
    path = home / ".aws/config"
    path.unlink()
    path.mkdir()
    with pytest.raises(InputError, match=rf"^{path}: cannot be read \(Is a directory\)"):
        open_store("s3://bucket/x")
    assert open_store("gs://bucket/x").url == "gs://bucket/x", "other clouds have no profiles"


def test_the_endpoint_of_a_profile_is_asked(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with object_server(monkeypatch):
        address = os.environ["AWS_ENDPOINT_URL"]
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):
            monkeypatch.delenv(name)
        (home / ".aws/config").write_text(f"[default]\nendpoint_url = {address}\n")
        store = open_store(f"s3://{BUCKET}/mine")
        store.write("a", b"1")
        assert store.read("a") == b"1"


def test_objects_are_written_and_read_with_the_keys_of_a_profile(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with object_server(monkeypatch):
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_PROFILE", "lab")
        found: Any = cast("Any", connect(f"s3://{BUCKET}/run")).config
        assert (found["access_key_id"], found["region"]) == ("AKIALAB", "us-west-1")
        store = open_store(f"s3://{BUCKET}/run")
        store.write("folder/name", b"content")
        assert store.read("folder/name") == b"content"
        assert open_bulk(f"s3://{BUCKET}/run").names("folder") == ["name"]
