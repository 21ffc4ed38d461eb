"""Which commands there are, which module holds each, and one line about each."""

from __future__ import annotations

import importlib
from collections.abc import Callable

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from layerfs.cli.context import Context
    from layerfs.cli.parser import CommandParser

# Groups in the order of the help text; within a group, in the order of use.
GROUPS: dict[str, dict[str, tuple[str, str]]] = {
    "Images": {
        "pull": ("transfer", "Copy an image into the store"),
        "push": ("transfer", "Copy an image out of the store"),
        "copy": ("copy", "Copy an image between two places, without a store"),
        "login": ("login", "Sign in to a registry"),
        "logout": ("login", "Sign out of a registry"),
        "tags": ("registry", "List the tags of a repository in a registry"),
        "delete": ("registry", "Delete an image from a registry"),
        "attach": ("registry", "Attach files to an image in a registry"),
        "referrers": ("registry", "List what is attached to an image in a registry"),
        "load": ("archive", "Load images from an archive"),
        "save": ("archive", "Save images to an archive"),
        "import": ("rootfs", "Make an image of one layer from a tar file or a directory"),
        "images": ("image", "List images"),
        "tag": ("image", "Give an image another name"),
        "rmi": ("image", "Remove images or their names"),
        "inspect": ("image", "Show everything about images or containers as JSON"),
        "history": ("image", "Show how an image was made"),
        "cat": ("reading", "Print files of an image"),
        "ls": ("reading", "List files of an image"),
        "find": ("reading", "Search the files of an image"),
    },
    "File systems": {
        "mount": ("mounting", "Mount an image with a fresh writable layer, or a container"),
        "umount": ("mounting", "Take a mount away; the changes stay in its container"),
        "diff": ("container", "List what a container changed"),
        "commit": ("container", "Make an image of what a container changed"),
        "cp": ("container", "Copy files into or out of a container"),
        "export": ("rootfs", "Write a container's whole tree as a tar file"),
    },
    "Containers": {
        "run": ("run", "Run a command on an image"),
        "create": ("run", "Make a container without starting it"),
        "start": ("run", "Start a container again"),
        "exec": ("running", "Run one more command in a running container"),
        "logs": ("logs", "Show what a container in the background has written"),
        "wait": ("logs", "Wait for containers to end, and print their exit statuses"),
        "stop": ("running", "End a container's process, and kill it if it stays"),
        "kill": ("running", "Send a container's process a signal"),
        "ps": ("container", "List containers"),
        "rm": ("container", "Remove containers and what they changed"),
    },
    "Housekeeping": {
        "gc": ("housekeeping", "Remove what nothing needs any more"),
        "check": ("housekeeping", "Verify the store, and repair it"),
        "du": ("usage", "Show what the store occupies"),
        "info": ("usage", "Describe the store and this host"),
        "drivers": ("housekeeping", "Explain which drivers work here"),
        "convert": ("converting", "Move containers and images to another driver"),
        "unshare": ("unshare", "Run a command in the user namespace of an ordinary user's store"),
        "completion": ("completion", "Print a completion script for a shell"),
    },
}
COMMANDS = {name: place for group in GROUPS.values() for name, place in group.items()}


class Command:
    """One command: what its help says, what it takes, and what it does.

    `examples` are whole command lines. `configure` adds the arguments to the parser; `run` does the
    work and returns the exit status. With `passthrough` everything after the first positional
    argument belongs to the container's process, whatever it looks like. `failure` and `usage` are the
    exit statuses of a failure and of a wrong command line.
    """

    __slots__ = ("configure", "description", "examples", "failure", "passthrough", "run", "usage")

    def __init__(
        self,
        *,
        description: str,
        examples: list[str],
        configure: Callable[[CommandParser], None],
        run: Callable[[Context, argparse.Namespace], int],
        passthrough: bool = False,
        failure: int = 1,
        usage: int = 2,
    ) -> None:
        self.description = description
        self.examples = examples
        self.configure = configure
        self.run = run
        self.passthrough = passthrough
        self.failure = failure
        self.usage = usage


def load(name: str) -> Command:
    """Import the one module that holds the command `name` (KeyError when there is none)."""
    module = importlib.import_module(f"layerfs.cli.{COMMANDS[name][0]}")
    command = module.COMMANDS[name]
    assert isinstance(command, Command)
    return command
