"""Image configs: reading, chain ids, and one layer more."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from layerfs.digest import Digest
from layerfs.errors import DocumentError
from layerfs.oci.config import History, ImageConfig, chain_ids
from layerfs.oci.platform import Platform

A, B, C = (Digest.of(text) for text in (b"a", b"b", b"c"))


def document(**changes: Any) -> bytes:
    members = {
        "architecture": "amd64",
        "os": "linux",
        "x-unknown": {"kept": [1, 2.5, None]},
        "config": {"Env": ["A=1"], "Cmd": ["sh"], "Healthcheck": {"Test": ["NONE"]}, "ArgsEscaped": True},
        "rootfs": {"type": "layers", "diff_ids": [str(A), str(B)], "x": 1},
        "history": [{"created_by": "one"}, {"created_by": "two", "empty_layer": True}, {"x": 1}],
        **changes,
    }
    return json.dumps(members, indent=1).encode()


def test_a_config_is_read_into_values() -> None:
    config = ImageConfig.parse(
        document(
            variant="v3",
            created="2026-01-02T03:04:05.000000006Z",
            author="me",
            config={
                "User": "1:2", "Env": ["A=1", "B"], "Entrypoint": ["/init"], "Cmd": ["a", "b"],
                "WorkingDir": "/srv", "Labels": {"k": "v"}, "ExposedPorts": {"80/tcp": {}},
                "Volumes": {"/v": {}}, "StopSignal": "SIGINT", "Shell": ["sh", "-c"],
            },
        )
    )  # fmt: skip
    assert config.platform == Platform("linux", "amd64", "v3")
    assert (config.created, config.author) == ("2026-01-02T03:04:05.000000006Z", "me")
    inner = config.config
    assert (inner.user, inner.env, inner.working_dir) == ("1:2", ("A=1", "B"), "/srv")
    assert (inner.entrypoint, inner.cmd, inner.shell) == (("/init",), ("a", "b"), ("sh", "-c"))
    assert (inner.labels, inner.exposed_ports, inner.volumes) == ({"k": "v"}, ("80/tcp",), ("/v",))
    assert inner.stop_signal == "SIGINT"
    assert [step.empty_layer for step in config.history] == [False, True, False]


def test_what_go_writes_as_null_is_empty() -> None:
    config = ImageConfig.parse(document(config={"Env": None, "Cmd": None, "Volumes": None, "Labels": None}))
    assert (config.config.env, config.config.cmd, config.config.labels) == ((), (), {})
    assert ImageConfig.parse(document(config=None, history=None)).history == ()


def test_a_command_that_is_one_text_is_one_argument() -> None:
    assert ImageConfig.parse(document(config={"Cmd": "a b"})).config.cmd == ("a b",)


def test_chain_ids_follow_the_specification() -> None:
    second = hashlib.sha256(f"{A} {B}".encode()).hexdigest()
    third = hashlib.sha256(f"sha256:{second} {C}".encode()).hexdigest()
    assert [str(chain) for chain in chain_ids([A, B, C])] == [str(A), f"sha256:{second}", f"sha256:{third}"]
    assert chain_ids([]) == ()


def test_a_layer_more_keeps_everything_that_is_not_known_here() -> None:
    config = ImageConfig.parse(document())
    step = History("2026-01-01T00:00:00Z", "me", "layerfs commit", "why")
    changed = config.with_layer(C, step, config={"Cmd": None, "User": "u"})
    assert changed.diff_ids == (A, B, C)
    assert changed.history == (*config.history, step)
    assert (changed.created, changed.author) == ("2026-01-01T00:00:00Z", "me")
    before, after = json.loads(config.raw), json.loads(changed.raw)
    assert after["x-unknown"] == before["x-unknown"]
    assert after["rootfs"]["x"] == 1
    assert after["history"][2] == {"x": 1}
    assert after["config"] == {
        "Env": ["A=1"],
        "Healthcheck": {"Test": ["NONE"]},
        "ArgsEscaped": True,
        "User": "u",
    }
    assert config.raw == document()


def test_a_step_without_a_layer_is_an_empty_one() -> None:
    changed = ImageConfig.parse(document()).with_layer(None, History(created_by="CMD"))
    assert changed.diff_ids == (A, B)
    assert changed.history[-1] == History(created_by="CMD", empty_layer=True)


def test_a_built_config_is_for_this_machine_and_deterministic() -> None:
    config = ImageConfig.build(diff_ids=[A], history=[History(comment="import")], config={"Cmd": ["sh"]})
    assert config == ImageConfig.build(
        diff_ids=[A], history=[History(comment="import")], config={"Cmd": ["sh"]}
    )
    assert config.platform == Platform.host()
    assert (config.diff_ids, config.config.cmd) == ((A,), ("sh",))


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"rootfs": None}, "rootfs"),
        ({"rootfs": {"type": "layers+base", "diff_ids": []}}, "rootfs.type"),
        ({"rootfs": {"type": "layers", "diff_ids": [str(A), "x"]}}, "rootfs.diff_ids[1]"),
        ({"rootfs": {"type": "layers", "diff_ids": [1]}}, "rootfs.diff_ids[0]"),
        ({"history": [{"empty_layer": 1}]}, "history[0].empty_layer"),
        ({"config": {"Env": {"A": "1"}}}, "config.Env"),
        ({"config": {"Cmd": 1}}, "config.Cmd"),
        ({"config": {"Volumes": ["/v"]}}, "config.Volumes"),
        ({"config": []}, "config"),
        ({"os": 1}, "os"),
        ({"os.features": "x"}, '"os.features"'),
    ],
)
def test_a_wrong_member_is_named_by_its_path(changes: dict[str, Any], path: str) -> None:
    with pytest.raises(DocumentError) as caught:
        ImageConfig.parse(document(**changes))
    assert caught.value.path == path
