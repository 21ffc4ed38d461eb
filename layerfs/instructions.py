"""Dockerfile instructions that change an image's config: those of `commit --change` and `import --change`.

The config is that of image-spec config.md with the members that docker adds; values are those that docker
gives for the same instruction.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from typing import Any, Final

from layerfs.errors import InvalidError

Config = dict[str, Any]


def apply_instructions(config: Config, instructions: Sequence[str]) -> Config:
    """Give a config with the instructions done in order.

    Raises:
        InvalidError: an instruction is not one of these, or its arguments cannot be read.
    """
    changed = dict(config)
    for instruction in instructions:
        word, _, rest = instruction.strip().partition(" ")
        action = _ACTIONS.get(word.upper())
        if action is None or not rest.strip():
            raise InvalidError(
                f"{instruction!r} cannot be done to an image's config",
                hint=f"known are {', '.join(_ACTIONS)}, each with a value",
            )
        action(changed, rest.strip())
    return changed


def _cmd(config: Config, text: str) -> None:
    config["Cmd"] = _command(text, config)


def _entrypoint(config: Config, text: str) -> None:
    config["Entrypoint"] = _command(text, config)
    # A new entry point makes the old arguments meaningless (Dockerfile reference, "CMD and ENTRYPOINT").
    config.pop("Cmd", None)


def _env(config: Config, text: str) -> None:
    env = [str(one) for one in config.get("Env") or []]
    for name, value in _pairs(text):
        env = [one for one in env if one.partition("=")[0] != name]
        env.append(f"{name}={value}")
    config["Env"] = env


def _label(config: Config, text: str) -> None:
    config["Labels"] = {**(config.get("Labels") or {}), **dict(_pairs(text))}


def _expose(config: Config, text: str) -> None:
    ports: Config = {port if "/" in port else f"{port}/tcp": {} for port in text.split()}
    config["ExposedPorts"] = {**(config.get("ExposedPorts") or {}), **ports}


def _volume(config: Config, text: str) -> None:
    names = _exec_form(text) or text.split()
    config["Volumes"] = {**(config.get("Volumes") or {}), **{name: {} for name in names}}


def _workdir(config: Config, text: str) -> None:
    if not text.startswith("/"):
        text = (config.get("WorkingDir") or "/").rstrip("/") + "/" + text
    config["WorkingDir"] = text


def _onbuild(config: Config, text: str) -> None:
    config["OnBuild"] = [*(config.get("OnBuild") or []), text]


def _user(config: Config, text: str) -> None:
    config["User"] = text


def _stop_signal(config: Config, text: str) -> None:
    config["StopSignal"] = text


_ACTIONS: Final[dict[str, Callable[[Config, str], None]]] = {
    "CMD": _cmd,
    "ENTRYPOINT": _entrypoint,
    "ENV": _env,
    "EXPOSE": _expose,
    "LABEL": _label,
    "ONBUILD": _onbuild,
    "STOPSIGNAL": _stop_signal,
    "USER": _user,
    "VOLUME": _volume,
    "WORKDIR": _workdir,
}


def _command(text: str, config: Config) -> list[str]:
    words = _exec_form(text)
    return [*(config.get("Shell") or ["/bin/sh", "-c"]), text] if words is None else words


def _exec_form(text: str) -> list[str] | None:
    """Read a JSON array of strings; None for anything else, which is the shell form."""
    try:
        found = json.loads(text)
    except ValueError:
        return None
    if isinstance(found, list) and all(isinstance(one, str) for one in found):
        return found
    return None


def _pairs(text: str) -> list[tuple[str, str]]:
    """Read ``NAME=VALUE ...`` with quotes, or the old form ``NAME VALUE``."""
    first = text.split(maxsplit=1)
    if "=" not in first[0]:
        if len(first) != 2:
            raise InvalidError(f"{text!r} gives no value")
        return [(first[0], first[1])]
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise InvalidError(f"{text!r} cannot be read: {error}") from error
    pairs = [
        (name, value) for name, equals, value in (word.partition("=") for word in words) if equals and name
    ]
    if len(pairs) != len(words):
        raise InvalidError(f"{text!r} is not a list of NAME=VALUE")
    return pairs
