"""`login` and `logout`: credentials for registries, kept where podman and skopeo find them too."""

from __future__ import annotations

import argparse
import sys

from layerfs.cli import output, registry_options, secrets
from layerfs.cli.commands import Command
from layerfs.cli.context import Context, note, warn
from layerfs.cli.parser import CommandParser, UsageError
from layerfs.errors import NotFoundError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from layerfs.registry.settings import Options

_REGISTRY_HELP = "HOST[:PORT], with /NAMESPACE for a part of it; docker.io when left out"


def _configure_login(parser: CommandParser) -> None:
    parser.add_argument("registry", metavar="REGISTRY", nargs="?", default="", help=_REGISTRY_HELP)
    parser.add_argument("-u", "--username", metavar="USER", help="who to sign in as; asked for when left out")
    parser.add_argument(
        "-p", "--password", metavar="PASSWORD", help="the password; whoever is quick can see it in ps"
    )
    parser.flag("--password-stdin", help="read the password, or a token, from standard input")
    parser.flag("--get-login", help="only print who is signed in")
    registry_options.add(parser, creds=False)


def _login(context: Context, arguments: argparse.Namespace) -> int:
    from layerfs.registry import credential_files, login
    from layerfs.registry.credentials import Credentials
    from layerfs.registry.session import Session

    options = registry_options.read(arguments)
    name = login.registry_of(arguments.registry)
    if arguments.get_login:
        return _tell_login(context, name, options)
    username, password = _ask(arguments, name)
    credentials = Credentials(username, password)
    with Session(options, warn=warn) as session:
        if not login.check(session, name, credentials):
            warn(f"{name} lets everybody in: whether the password is right is not known")
    path = credential_files.store(name, credentials, options)
    if context.json:
        output.document({"registry": name, "username": username, "file": str(path)})
    else:
        note(f"signed in to {name} as {username}; {path} knows of it")
    return 0


def _tell_login(context: Context, name: str, options: Options) -> int:
    from layerfs.registry import credential_files

    host, _, namespace = name.partition("/")
    try:
        found = credential_files.find(host, namespace, options, warn=warn)
    except NotFoundError:
        found = None
    if found is None:
        raise NotFoundError(f"nobody is signed in to {name}", hint=f"`layerfs login {name}` does it")
    user = found.username or "<token>"
    if context.json:
        output.document({"registry": name, "username": user})
    else:
        output.line(user)
    return 0


def _ask(arguments: argparse.Namespace, name: str) -> tuple[str, str]:
    """Get name and password: from the command line, standard input, or the terminal."""
    username, password = arguments.username, arguments.password
    if password is not None:
        secrets.cover(password)
    if arguments.password_stdin:
        if password is not None:
            raise UsageError("--password and --password-stdin exclude each other", hint="leave one out")
        if not username:
            raise UsageError("--password-stdin needs a user name", hint="say it with --username")
        # One end of line is the file's, not the password's.
        password = sys.stdin.read().removesuffix("\n").removesuffix("\r")
    elif username is None or password is None:
        if not sys.stdin.isatty():
            raise UsageError(
                "there is no terminal to ask for the password on",
                hint="layerfs login --username USER --password-stdin < FILE",
            )
        import getpass

        note(f"signing in to {name}")
        username = username or input("user name: ").strip()
        password = password or getpass.getpass("password: ")
    if not username or not password:
        raise UsageError(
            "a user name and a password are needed", hint=f"`layerfs login {name}` asks for them"
        )
    if ":" in username:
        raise UsageError(
            "a user name holds no colon", hint="the password is another option, --password-stdin"
        )
    return username, password


def _configure_logout(parser: CommandParser) -> None:
    parser.add_argument("registry", metavar="REGISTRY", nargs="?", default="", help=_REGISTRY_HELP)
    parser.flag("-a", "--all", help="forget all credentials of the file")
    parser.add_argument(
        "--authfile", metavar="FILE", help="where they are kept (REGISTRY_AUTH_FILE; podman's place)"
    )


def _logout(context: Context, arguments: argparse.Namespace) -> int:
    from layerfs.registry import credential_files, login

    options = registry_options.read(arguments)
    if arguments.all:
        if arguments.registry:
            raise UsageError("--all and a registry exclude each other", hint="leave one out")
        names = credential_files.remove_all(options)
    else:
        names = [login.registry_of(arguments.registry)]
        _forget(names[0], options)
    if context.json:
        output.document(names)
    for name in () if context.json else names:
        note(f"signed out of {name}")
    return 0


def _forget(name: str, options: Options) -> None:
    from layerfs.registry import credential_files

    try:
        credential_files.remove(name, options)
    except NotFoundError as error:
        other = credential_files.where(name, options) if options.authfile is None else None
        raise NotFoundError(
            f"nobody is signed in to {name}",
            hint=f"{other} has credentials for it: `layerfs logout --authfile {other} {name}`"
            if other
            else str(error),
        ) from None
    if options.authfile is None and (other := credential_files.where(name, options)) is not None:
        warn(f"{other} still has credentials for {name}, and they are used")


COMMANDS = {
    "login": Command(
        description="The credentials are proven to the registry, then kept for layerfs, podman and skopeo"
        " in\n$REGISTRY_AUTH_FILE, else in $XDG_RUNTIME_DIR/containers/auth.json, which lasts until the next"
        " start of the\nmachine; with --authfile ~/.config/containers/auth.json for longer, or"
        " ~/.docker/config.json for docker too.\nA credential helper that the file names gets the secret.",
        examples=[
            "layerfs login registry.example.com",
            "layerfs login -u ci --password-stdin localhost:5000 < token",
        ],
        configure=_configure_login,
        run=_login,
    ),
    "logout": Command(
        description="Credentials that docker keeps stay; --authfile ~/.docker/config.json reaches them.",
        examples=["layerfs logout registry.example.com", "layerfs logout --all"],
        configure=_configure_logout,
        run=_logout,
    ),
}
