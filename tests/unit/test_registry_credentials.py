"""Tests of the places of credentials: containers-auth.json(5), docker's config.json, helpers."""

from __future__ import annotations

import base64
import json
import multiprocessing
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from layerfs.errors import InvalidError, NotFoundError, TransportError
from layerfs.registry import credential_files
from layerfs.registry.credentials import Credentials
from layerfs.registry.settings import Options

HOST = "registry.example.com:5000"


def auth(username: str, password: str = "secret") -> dict[str, str]:
    return {"auth": base64.b64encode(f"{username}:{password}".encode()).decode()}


@pytest.fixture
def home(tmp_path: Path) -> Options:
    environment = {"HOME": str(tmp_path / "home"), "XDG_RUNTIME_DIR": str(tmp_path / "run")}
    return Options(environment=environment)


def write(path: Path, **config: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(config))
    return path


def user(options: Options, repository: str = "team/app", host: str = HOST) -> str | None:
    found = credential_files.find(host, repository, options)
    return None if found is None else found.username


def test_the_files_come_in_the_order_of_podman(home: Options, tmp_path: Path) -> None:
    places = [
        tmp_path / "home/.docker/config.json",
        tmp_path / "home/.config/containers/auth.json",
        tmp_path / "run/containers/auth.json",
    ]
    assert user(home) is None
    for place in places:
        write(place, auths={HOST: auth(place.parent.name)})
        assert user(home) == place.parent.name
    write(tmp_path / "named.json", auths={HOST: auth("named")})
    named = {**home.environment, "REGISTRY_AUTH_FILE": str(tmp_path / "named.json")}
    assert user(Options(environment=named)) == "named"
    write(tmp_path / "asked.json", auths={HOST: auth("asked")})
    assert user(Options(environment=named, authfile=tmp_path / "asked.json")) == "asked"
    given = Credentials("given", "secret")
    assert user(Options(environment=named, creds=given)) == "given"
    assert user(Options(environment=named, anonymous=True)) is None


def test_a_file_that_was_named_is_the_only_one(home: Options, tmp_path: Path) -> None:
    write(tmp_path / "home/.docker/config.json", auths={HOST: auth("docker")})
    write(tmp_path / "empty.json")
    assert user(Options(environment=home.environment, authfile=tmp_path / "empty.json")) is None
    with pytest.raises(NotFoundError, match=r"missing\.json"):
        user(Options(environment=home.environment, authfile=tmp_path / "missing.json"))


def test_the_longest_key_wins(home: Options, tmp_path: Path) -> None:
    keys = {HOST: auth("all"), f"{HOST}/team": auth("team"), f"{HOST}/team/app": auth("app")}
    write(tmp_path / "run/containers/auth.json", auths=keys)
    assert user(home, "team/app") == "app"
    assert user(home, "team/other") == "team"
    assert user(home, "teams/app") == "all"
    assert user(home, "") == "all"


@pytest.mark.parametrize("key", ["https://index.docker.io/v1/", "docker.io", "index.docker.io"])
def test_docker_hub_has_several_names(key: str, home: Options, tmp_path: Path) -> None:
    write(tmp_path / "home/.docker/config.json", auths={key: auth("hub")})
    assert user(home, "library/debian", "docker.io") == "hub"
    assert user(home, "library/debian", "quay.io") is None


@pytest.mark.parametrize("key", [f"https://{HOST}/v1/", f"http://{HOST}", f"https://{HOST}/v2/"])
def test_keys_of_docker_may_be_urls(key: str, home: Options, tmp_path: Path) -> None:
    write(tmp_path / "home/.docker/config.json", auths={key: auth("url")})
    assert user(home) == "url"


def test_the_oldest_file_of_docker_is_read(home: Options, tmp_path: Path) -> None:
    write(tmp_path / "home/.dockercfg", **{HOST: auth("old")})
    assert user(home) == "old"


def test_tokens_are_read_too(home: Options, tmp_path: Path) -> None:
    write(tmp_path / "home/.docker/config.json", auths={HOST: {"identitytoken": "abc"}})
    assert credential_files.find(HOST, "", home) == Credentials(identity_token="abc")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"auths": {"%s": {"auth": "c2VjcmV0"}}}', "is not USER:PASSWORD"),
        ('{"auths": {"%s": {"auth": "secret-secret!"}}}', "is not base64"),
        ('{"auths": {"%s": []}}', "is no object"),
        ('{"auths": ["%s"]}', "auths is no object"),
        ('["%s"]', "is not a JSON object"),
        ("{secret %s", "is not valid JSON"),
    ],
)
def test_a_broken_file_is_named_and_not_quoted(
    text: str, problem: str, home: Options, tmp_path: Path
) -> None:
    path = write(tmp_path / "run/containers/auth.json")
    path.write_text(text % HOST)
    with pytest.raises(InvalidError, match=problem) as refused:
        user(home)
    assert str(path) in str(refused.value)
    assert "secret" not in str(refused.value)
    assert "c2VjcmV0" not in str(refused.value)


def helper(directory: Path, monkeypatch: pytest.MonkeyPatch, name: str = "tests") -> Path:
    """Install a credential helper that keeps what it is told in a file, and notes how it was called."""
    directory.mkdir(exist_ok=True)
    program = directory / f"docker-credential-{name}"
    program.write_text(
        f"""#!/bin/sh
cd {directory}
echo "$1" >> calls
case $1 in
store) cat > kept ;;
get) cat > asked; cat kept 2> /dev/null || {{ echo "credentials not found in native keychain"; exit 1; }} ;;
erase) cat > erased; rm -f kept ;;
esac
"""
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
    return directory


@pytest.mark.parametrize("config", [{"credsStore": "tests"}, {"credHelpers": {HOST: "tests"}}])
def test_a_helper_is_asked(
    config: dict[str, Any], home: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = helper(tmp_path / "helper", monkeypatch)
    write(tmp_path / "home/.docker/config.json", **config)
    assert user(home) is None
    (place / "kept").write_text('{"ServerURL": "", "Username": "kept", "Secret": "s"}')
    assert user(home) == "kept"
    assert (place / "asked").read_text() == HOST
    (place / "kept").write_text('{"ServerURL": "", "Username": "<token>", "Secret": "s"}')
    assert credential_files.find(HOST, "", home) == Credentials(identity_token="s")


def test_a_helper_knows_docker_hub_by_dockers_name(
    home: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = helper(tmp_path / "helper", monkeypatch)
    write(tmp_path / "home/.docker/config.json", credsStore="tests")
    user(home, "library/debian", "docker.io")
    assert (place / "asked").read_text() == "https://index.docker.io/v1/"


def test_a_helper_that_is_missing_is_told_and_passed_over(home: Options, tmp_path: Path) -> None:
    write(tmp_path / "home/.config/containers/auth.json", credsStore="nowhere")
    write(tmp_path / "home/.docker/config.json", auths={HOST: auth("docker")})
    told: list[str] = []
    found = credential_files.find(HOST, "", home, warn=told.append)
    assert found is not None
    assert found.username == "docker"
    assert "docker-credential-nowhere is not installed" in told[0]


def test_what_is_kept_is_found_and_only_ours_to_read(home: Options, tmp_path: Path) -> None:
    path = credential_files.store(HOST, Credentials("alice", "secret"), home)
    assert path == tmp_path / "run/containers/auth.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert credential_files.find(HOST, "any", home) == Credentials("alice", "secret")


def test_the_rest_of_a_file_is_kept(home: Options, tmp_path: Path) -> None:
    path = write(
        tmp_path / "home/.docker/config.json",
        HttpHeaders={"X": "y"}, auths={"other": auth("other"), f"https://{HOST}/v1/": auth("before")},
    )  # fmt: skip
    docker = Options(environment=home.environment, authfile=path)
    credential_files.store(HOST, Credentials("alice", "secret"), docker)
    credential_files.store("docker.io", Credentials("hub", "secret"), docker)
    config = json.loads(path.read_text())
    assert config["HttpHeaders"] == {"X": "y"}
    assert set(config["auths"]) == {"other", HOST, "https://index.docker.io/v1/"}
    credential_files.remove(HOST, docker)
    credential_files.remove("docker.io", docker)
    assert set(json.loads(path.read_text())["auths"]) == {"other"}
    with pytest.raises(NotFoundError):
        credential_files.remove(HOST, docker)


def test_a_link_to_a_file_stays_one(home: Options, tmp_path: Path) -> None:
    real = write(tmp_path / "real.json", auths={})
    link = tmp_path / "link.json"
    link.symlink_to(real)
    credential_files.store(HOST, Credentials("alice", "secret"), Options(authfile=link))
    assert link.is_symlink()
    assert HOST in real.read_text()


def test_a_helper_keeps_the_secret_out_of_the_file(
    home: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = helper(tmp_path / "helper", monkeypatch)
    path = write(tmp_path / "run/containers/auth.json", credHelpers={HOST: "tests"})
    credential_files.store(HOST, Credentials("alice", "secret"), home)
    assert json.loads(path.read_text())["auths"] == {HOST: {}}
    assert json.loads((place / "kept").read_text()) == {
        "ServerURL": HOST, "Username": "alice", "Secret": "secret"
    }  # fmt: skip
    assert credential_files.find(HOST, "", home) == Credentials("alice", "secret")
    credential_files.remove(HOST, home)
    assert (place / "erased").read_text() == HOST
    assert credential_files.find(HOST, "", home) is None


def test_a_helper_that_fails_shows_no_secret(
    home: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = helper(tmp_path / "helper", monkeypatch)
    (place / "docker-credential-tests").write_text("#!/bin/sh\ncat\nexit 1\n")
    write(tmp_path / "run/containers/auth.json", credsStore="tests")
    with pytest.raises(TransportError, match="failed with status 1") as failed:
        credential_files.store(HOST, Credentials("alice", "secret"), home)
    assert "secret" not in f"{failed.value} {failed.value.hint}"


def test_no_secret_is_shown_by_values() -> None:
    shown = repr(Options(creds=Credentials("alice", "secret", "identity", "registry")))
    assert not [word for word in ("secret", "identity", "registry") if f"'{word}'" in shown]


def test_logins_at_the_same_time_are_all_kept(home: Options) -> None:
    context = multiprocessing.get_context("fork")
    logins = [
        context.Process(
            target=credential_files.store,
            args=(f"registry{number}.example.com", Credentials("alice", "secret"), home),
        )
        for number in range(16)
    ]
    for each in logins:
        each.start()
    for each in logins:
        each.join()
        assert each.exitcode == 0
    assert all(user(home, host=f"registry{number}.example.com") == "alice" for number in range(16))
    assert [path.name for path in credential_files.target(home).parent.iterdir()] == ["auth.json"]


def test_a_helper_that_cannot_be_run_is_told(
    home: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = helper(tmp_path / "helper", monkeypatch)
    (place / "docker-credential-tests").write_text("no program\n")
    write(tmp_path / "run/containers/auth.json", credsStore="tests")
    told: list[str] = []
    assert credential_files.find(HOST, "", home, warn=told.append) is None
    assert "cannot be run" in told[0]


def test_a_password_need_not_be_utf_8(home: Options) -> None:
    given = Credentials("alice", os.fsdecode(b"\xff\xfe"))
    credential_files.store(HOST, given, home)
    assert credential_files.find(HOST, "", home) == given
