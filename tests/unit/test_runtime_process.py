"""What is run, with which variables and where, by docker's rules."""

from __future__ import annotations

import json

import pytest

from layerfs.errors import InvalidError, ProcessError
from layerfs.oci.config import ContainerConfig, ImageConfig
from layerfs.runtime.process import DEFAULT_PATH, ProcessSpec, resolve
from layerfs.runtime.settings import RunSettings, Volume


def spec(image: ContainerConfig | None = None, **settings: object) -> ProcessSpec:
    config = image or ContainerConfig(cmd=("image-cmd",))
    return resolve(config, RunSettings(**settings), hostname="0123456789ab")  # type: ignore[arg-type]


BOTH = ContainerConfig(entrypoint=("/entry", "-x"), cmd=("default", "words"))


@pytest.mark.parametrize(
    ("settings", "argv"),
    [
        ({}, ("/entry", "-x", "default", "words")),
        ({"command": ("mine",)}, ("/entry", "-x", "mine")),
        ({"command": ()}, ("/entry", "-x", "default", "words")),
        ({"entrypoint": ("/other",)}, ("/other",)),
        ({"entrypoint": ("/other",), "command": ("a",)}, ("/other", "a")),
        ({"entrypoint": (), "command": ("a",)}, ("a",)),
        ({"entrypoint": ("",), "command": ("a",)}, ("a",)),
    ],
)
def test_entry_point_and_command_combine_as_docker_does(
    settings: dict[str, object], argv: tuple[str, ...]
) -> None:
    assert spec(BOTH, **settings).argv == argv


def test_a_command_alone_needs_no_entry_point() -> None:
    assert spec().argv == ("image-cmd",)


def test_no_command_anywhere_is_an_error_with_dockers_status() -> None:
    with pytest.raises(ProcessError, match="no command") as caught:
        spec(ContainerConfig())
    assert caught.value.status == 125
    with pytest.raises(ProcessError, match="no command"):
        spec(BOTH, entrypoint=("",))


def test_variables_have_defaults_and_the_users_win() -> None:
    image = ContainerConfig(cmd=("x",), env=("A=image", "B=image", "BARE", "=odd", "E=x=y"))
    assert dict(spec(image, env=("A=mine", "C=", "A=last")).env) == {
        "PATH": DEFAULT_PATH, "HOSTNAME": "0123456789ab", "A": "last", "B": "image", "C": "", "E": "x=y",
    }  # fmt: skip
    assert spec(image, tty=True).env["TERM"] == "xterm"
    assert spec(image, tty=True, env=("TERM=vt100",)).env["TERM"] == "vt100"
    assert spec(ContainerConfig(cmd=("x",), env=("PATH=/opt",))).env["PATH"] == "/opt"


def test_a_bare_name_takes_a_variable_away() -> None:
    image = ContainerConfig(cmd=("x",), env=("A=image",))
    assert "A" not in spec(image, env=("A",)).env


def test_the_working_directory_is_cleaned_as_text() -> None:
    assert spec().cwd == "/"
    assert spec(ContainerConfig(cmd=("x",), working_dir="srv/../app/")).cwd == "/app"
    assert spec(working_dir="//a/../../b/.").cwd == "/b"
    with pytest.raises(InvalidError, match="not absolute"):
        spec(working_dir="here")


def test_the_users_user_and_host_name_win_over_the_images() -> None:
    image = ContainerConfig(cmd=("x",), user="app")
    assert spec(image).user == "app"
    assert spec(image, user="").user == ""
    assert spec(image, user="5:6").user == "5:6"
    given = spec(image, hostname="web")
    assert (given.hostname, given.env["HOSTNAME"]) == ("web", "web")


@pytest.mark.parametrize(
    "settings",
    [
        {"command": ("a\0b",)},
        {"env": ("A=\0",)},
        {"user": "a\0"},
        {"working_dir": "/\0"},
        {"hostname": "x" * 65},
    ],
)
def test_what_the_kernel_cannot_hold_is_refused(settings: dict[str, object]) -> None:
    with pytest.raises(InvalidError):
        spec(**settings)


def test_settings_survive_the_database() -> None:
    settings = RunSettings(
        command=("sh", "-c", "\udcff"), entrypoint=(), env=("A=1",), volumes=(Volume("/a", "/b", True),),
        network="host", tty=True, read_only=True, user="0",
    )  # fmt: skip
    assert RunSettings.from_json(settings.to_json()) == settings
    assert RunSettings.from_json(RunSettings().to_json()) == RunSettings()


@pytest.mark.parametrize("text", ["", "[]", "3", '{"nope": 1}', '{"volumes": [3]}', '{"network": "bridge"}'])
def test_settings_of_another_form_are_refused(text: str) -> None:
    with pytest.raises(InvalidError):
        RunSettings.from_json(text)


def test_volumes_are_read_as_docker_writes_them() -> None:
    assert Volume.parse("/a b:/c") == Volume("/a b", "/c", False)
    assert Volume.parse("/a:/c:ro") == Volume("/a", "/c", True)
    assert Volume.parse("/a:/c:rw,z") == Volume("/a", "/c", False)
    assert Volume.parse("./x:/c").source.endswith("/x")


@pytest.mark.parametrize(
    "text",
    ["", "/a", "name:/c", "/a:c", "/a:/c:what", "/a:/c:ro:more", ":/c", "/a:", "/a:/", "/a://", "/a:/b/.."],
)
def test_other_volumes_are_refused(text: str) -> None:
    with pytest.raises(InvalidError):
        Volume.parse(text)


def test_labels_of_an_image_steer_nothing() -> None:
    """Neither labels nor members that are not known here change what is run, or how."""
    members: dict[str, object] = {"Cmd": ["a"], "Env": ["A=b"], "User": "1"}
    labels = dict.fromkeys(("user", "layerfs.user", "io.podman.privileged", "network", "volumes"), "root")
    steering = {
        "Labels": labels,
        "Volumes": {"/etc": {}},
        "HostConfig": {"Privileged": True},
        "OnBuild": ["x"],
    }
    plain, labelled = (
        ImageConfig.parse(
            json.dumps(
                {"os": "linux", "architecture": "amd64", "config": config,
                 "rootfs": {"type": "layers", "diff_ids": []}}
            ).encode()
        )
        for config in (members, members | steering)
    )  # fmt: skip
    given = RunSettings()
    assert resolve(plain.config, given, hostname="x") == resolve(labelled.config, given, hostname="x")
