"""`completion`: scripts for bash, zsh and fish, written from the parsers."""

from __future__ import annotations

import argparse
import contextlib
import shlex
import sys
from collections.abc import Callable
from typing import NamedTuple

from layerfs.cli import commands
from layerfs.cli.commands import Command
from layerfs.cli.context import Context
from layerfs.cli.output import line
from layerfs.cli.parser import GLOBAL_OPTIONS, CommandParser, build

# What the argument of this metavar is completed with; a choice of words is completed with those.
KINDS = {
    "IMAGE": "images",
    "REPOSITORY": "images",
    "IMAGE:PATH": "places",
    "IMAGE[:PATH]": "places",
    "CONTAINER": "containers",
    "IMAGE-or-CONTAINER": "anything",
    "CONTAINER-or-IMAGE": "both",
    "TARGET-or-NAME": "containers",
    "DRIVER": "drivers",
    "OPTION[,OPTION...]": "options",
    "COMMAND": "nothing",
    # Of programs on the host.
    "ARGUMENT": "files",
    "NAME": "nothing",
}
FILES = "files"
# How places begin, and names that the store has for images of registries; with containers' names "anything".
PLACES = "places"
ANYTHING = "anything"
# How a place is begun that is not a registry's.
_WITH_FILES = ("oci:", "oci-archive:", "docker-archive:")
# What `--names` lists.
LISTED = ("images", "containers", "both", "drivers", "options")


class Taken(NamedTuple):
    """An option or a positional argument (which has no names), its text, and what completes its value.

    One that is `joined` has its value behind ``=`` or none.
    """

    names: list[str]
    text: str
    value: str | None
    joined: bool = False

    @property
    def written(self) -> list[str]:
        """The names, and where they hold their value with each of these."""
        values = (self.value or "").split()[1:] if self.joined else []
        return self.names + [f"{name}={value}" for name in self.names for value in values]


def _taken(parser: CommandParser) -> list[Taken]:
    """List what a command takes; `value` is a kind of `KINDS`, ``files``, ``words a b c``, or None."""
    found = []
    for action in parser._actions:
        if action.help == argparse.SUPPRESS:
            continue
        value: str | None = None
        if action.nargs != 0:
            if action.dest in parser.places:
                value = PLACES
            elif action.choices is not None:
                value = "words " + " ".join(str(choice) for choice in action.choices)
            else:
                value = _kind(str(action.metavar))
        joined = not parser.switches.isdisjoint(action.option_strings)
        found.append(Taken(list(action.option_strings), str(action.help), value, joined))
    return found


def _is_path(metavar: str) -> bool:
    return any(word in metavar for word in ("FILE", "DIR", "TARGET", "SOURCE", "DEST", "PATH"))


def _positionals(taken: list[Taken]) -> list[str]:
    """Say what completes each positional argument; the last one may be repeated."""
    return [one.value or "nothing" for one in taken if not one.names] or ["nothing"]


def bash() -> str:
    """Write the script for bash; it needs no bash-completion package."""
    cases = []
    for name in commands.COMMANDS:
        taken = _taken(build(name))
        options = " ".join(option for one in taken for option in one.written)
        with_value = " ".join(option for one in taken if one.value and not one.joined for option in one.names)
        valued: dict[str, list[str]] = {}
        for one in taken:
            if one.names and one.value and not one.joined:
                valued.setdefault(one.value, []).extend(one.names)
        values = "".join(
            f"                {'|'.join(names)}) kind={shlex.quote(value)} ;;\n"
            for value, names in valued.items()
        )
        cases.append(
            f"        {name})\n"
            f"            options={shlex.quote(options)} valued={shlex.quote(f' {with_value} ')}\n"
            f"            positions=({' '.join(map(shlex.quote, _positionals(taken)))})\n"
            f"            _layerfs_position\n"
            f"            case $before in\n{values}            esac ;;\n"
        )
    top = " ".join(option for option, _, _ in GLOBAL_OPTIONS)
    return (
        BASH.replace("@TOP@", top)
        .replace("@COMMANDS@", " ".join(commands.COMMANDS))
        .replace("@CASES@", "".join(cases))
        .replace(
            "@OF_FILES@", "|".join(f"{kind}:{form}*" for kind in (PLACES, ANYTHING) for form in _WITH_FILES)
        )
        .replace("@FORMS@", " ".join(_WITH_FILES))
    )


BASH = """\
# bash completion for layerfs: source <(layerfs completion bash)
_layerfs_position() {
    # What completes the positional argument at which the line ends.
    local word previous= at=0
    for word in "${rest[@]}"; do
        [[ $word == -?* || $valued == *" $previous "* ]] || ((at += 1))
        previous=$word
    done
    kind=${positions[at]-${positions[${#positions[@]} - 1]}}
}
_layerfs() {
    # Words are taken from the line itself: bash would cut image names at their colon.
    local line=${COMP_LINE:0:COMP_POINT} words current before command= word options= kind= items= prefix skip=
    local valued= option= positions rest=()
    read -ra words <<< "$line"
    current=
    [[ $line == *[[:space:]] ]] || { current=${words[-1]}; unset 'words[-1]'; }
    before=${words[-1]}
    # --option=value is completed as --option value.
    if [[ $current == --*=* ]]; then
        option=${current%%=*}=
        before=${current%%=*}
        current=${current#*=}
    fi
    for word in "${words[@]:1}"; do
        if [[ $command ]]; then rest+=("$word"); continue; fi
        if [[ $skip ]]; then skip=; continue; fi
        case $word in
        --root|--driver|--budget) skip=1 ;;
        -*) ;;
        *) command=$word ;;
        esac
    done
    if [[ ! $command && ( $skip || $option ) ]]; then
        case $before in
        --root) kind=files ;;
        --driver) kind=drivers ;;
        esac
    else
        case $command in
        '') options='@TOP@' kind='words @COMMANDS@' ;;
@CASES@        esac
    fi
    if [[ $option && " $options" == *" $option"* ]]; then
        # One whose value stands in the same word.
        kind='words '
        for word in $options; do [[ $word != "$option"* ]] || kind+=" ${word#"$option"}"; done
    fi
    if [[ $current == -* && ! $option ]]; then
        items=$options
    else
        case $kind in
        images|containers|both|places|anything)
            case $kind:$current in
            "$kind":[/.~]*) kind=files ;;
            @OF_FILES@)
                compopt -o filenames 2>/dev/null
                mapfile -t COMPREPLY < <(compgen -f -P "${current%%:*}:" -- "${current#*:}")
                kind= ;;
            *)
                prefix=$kind
                [[ $kind == places ]] && prefix=images
                [[ $kind == anything ]] && prefix=both
                [[ $current == docker://* ]] && prefix=images
                items=$(layerfs completion --names "$prefix" 2>/dev/null)
                if [[ $current == docker://* ]]; then
                    for word in $items; do prefix+=" docker://$word"; done
                    items=${prefix#images}
                elif [[ $kind == places || $kind == anything ]]; then
                    items+=' docker:// @FORMS@'
                fi ;;
            esac ;;
        drivers) items=$(layerfs completion --names drivers 2>/dev/null) ;;
        options)
            # Several with commas between them, some of which want a value.
            compopt -o nospace 2>/dev/null
            prefix=${current%"${current##*,}"}
            for word in $(layerfs completion --names options 2>/dev/null); do items+=" $prefix$word"; done ;;
        words\\ *) items=${kind#words } ;;
        esac
        if [[ $kind == files ]]; then
            compopt -o filenames 2>/dev/null
            mapfile -t COMPREPLY < <(compgen -f -- "$current")
            if [[ $option && $COMP_WORDBREAKS != *=* ]]; then COMPREPLY=("${COMPREPLY[@]/#/$option}"); fi
            return
        fi
    fi
    [[ $kind ]] && mapfile -t COMPREPLY < <(compgen -W "$items" -- "$current")
    # A name or a path follows.
    [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} == *[:/] ]] && compopt -o nospace 2>/dev/null
    if [[ $option && $COMP_WORDBREAKS != *=* ]]; then COMPREPLY=("${COMPREPLY[@]/#/$option}"); fi
    # Readline replaces only what follows the last of these.
    for word in : =; do
        prefix=${current%"${current##*"$word"}"}
        if [[ $prefix && $COMP_WORDBREAKS == *"$word"* ]]; then
            COMPREPLY=("${COMPREPLY[@]#"$prefix"}") current=${current#"$prefix"}
        fi
    done
}
complete -F _layerfs layerfs
"""


def zsh() -> str:
    """Write the script for zsh, to be put as ``_layerfs`` into a directory of ``$fpath``, or sourced."""

    def action(value: str | None) -> str:
        if value is None or value == "nothing":
            return " "
        if value == FILES:
            return "_files"
        if value.startswith("words "):
            return f"({value[6:]})"
        if value in ("options", PLACES, ANYTHING):
            return f"_layerfs_{value}"
        return f"_layerfs_names {value}"

    def escaped(text: str) -> str:
        return "".join(f"\\{letter}" if letter in "[]:\\" else letter for letter in text)

    cases = []
    for name in commands.COMMANDS:
        parser = build(name)
        specs = []
        taken = _taken(parser)
        for one in taken:
            for option in one.names:
                value = "" if one.value is None else f":value:{action(one.value)}"
                if one.joined:
                    option, value = f"{option}=-", f":{value}"
                elif value and option.startswith("--"):
                    option += "="
                specs.append(shlex.quote(f"*{option}[{escaped(one.text)}]{value}"))
        kinds = _positionals(taken)
        for number, kind in enumerate(kinds, 1):
            place = "*" if number == len(kinds) else str(number)
            specs.append(shlex.quote(f"{place}:argument:{action(kind)}"))
        cases.append(f"        {name}) _arguments -s {' '.join(specs)} ;;\n")
    listed = "".join(
        f"        {shlex.quote(f'{name}:{summary}')}\n" for name, (_, summary) in commands.COMMANDS.items()
    )
    top = " ".join(
        shlex.quote(
            f"{option}[{escaped(text)}]" + ("" if metavar is None else f":{metavar}:{action(_kind(metavar))}")
        )
        for option, metavar, text in GLOBAL_OPTIONS
    )
    return ZSH.replace("@TOP@", top).replace("@COMMANDS@", listed).replace("@CASES@", "".join(cases))


def _kind(metavar: str) -> str:
    return KINDS.get(metavar, FILES if _is_path(metavar) else "nothing")


ZSH = """\
#compdef layerfs
# zsh completion for layerfs: source <(layerfs completion zsh), or put it into "${fpath[1]}/_layerfs"
_layerfs_names() {
    local -a names
    names=(${(f)"$(layerfs completion --names $1 2>/dev/null)"})
    compadd -a names
}
_layerfs_options() {
    local -a names
    names=(${(f)"$(layerfs completion --names options 2>/dev/null)"})
    compset -P '*,'
    compadd -S '' -a names
}
_layerfs_places() {
    if compset -P '(oci|oci-archive|docker-archive):'; then _files
    elif compset -P 'docker://'; then _layerfs_names images
    else _layerfs_names ${1:-images}; compadd -S '' docker:// oci: oci-archive: docker-archive:; fi
}
_layerfs_anything() { _layerfs_places both }
_layerfs() {
    local context state state_descr line
    typeset -A opt_args
    local -a commands
    commands=(
@COMMANDS@    )
    _arguments -C @TOP@ '1:command:->command' '*::argument:->argument' && return
    case $state in
    command) _describe command commands ;;
    argument)
        case $words[1] in
@CASES@        esac ;;
    esac
}
if [[ $funcstack[1] == _layerfs ]]; then _layerfs "$@"; else compdef _layerfs layerfs; fi
"""


def fish() -> str:
    """Write the script for fish."""
    lines = ["# fish completion for layerfs: layerfs completion fish | source", "complete -c layerfs -f"]
    none = "not __fish_seen_subcommand_from " + " ".join(commands.COMMANDS)

    def option(names: list[str], text: str, value: str | None, when: str, *, joined: bool = False) -> str:
        words = ["complete", "-c", "layerfs", "-n", shlex.quote(when)]
        for name in names:
            words += ["-l", name[2:]] if name.startswith("--") else ["-s", name[1:]]
        if value is not None and not joined:
            words.append("-r")
        words += _fish_value(value)
        return " ".join([*words, "-d", shlex.quote(text)])

    for name, metavar, text in GLOBAL_OPTIONS:
        lines.append(option([name], text, None if metavar is None else _kind(metavar), none))
    for name, (_, summary) in commands.COMMANDS.items():
        lines.append(f"complete -c layerfs -n {shlex.quote(none)} -a {name} -d {shlex.quote(summary)}")
    for name in commands.COMMANDS:
        taken = _taken(build(name))
        when = f"__fish_seen_subcommand_from {name}"
        lines += [
            option(one.names, one.text, one.value, when, joined=one.joined) for one in taken if one.names
        ]
        for kind in dict.fromkeys(_positionals(taken)):
            if words := _fish_value(kind):
                lines.append(" ".join(["complete -c layerfs -n", shlex.quote(when), *words]))
    return "\n".join(lines) + "\n"


def _fish_value(value: str | None) -> list[str]:
    if value is None or value == "nothing":
        return []
    if value == FILES:
        return ["-F"]
    if value in (PLACES, ANYTHING):
        names = f"layerfs completion --names {'images' if value == PLACES else 'both'} 2>/dev/null"
        return ["-F", "-a", shlex.quote(" ".join(("docker://", *_WITH_FILES, f"({names})")))]
    if value.startswith("words "):
        return ["-a", shlex.quote(value[6:])]
    names = f"layerfs completion --names {value} 2>/dev/null"
    if value == "options":
        return ["-a", shlex.quote(f"(__fish_complete_list , {shlex.quote(names)})")]
    return ["-a", shlex.quote(f"({names})")]


SHELLS: dict[str, Callable[[], str]] = {"bash": bash, "zsh": zsh, "fish": fish}


def _configure(parser: CommandParser) -> None:
    parser.add_argument("shell", metavar="SHELL", nargs="?", choices=list(SHELLS), help="bash, zsh or fish")
    parser.add_argument(
        "--names",
        metavar="KIND",
        choices=LISTED,
        help="print the names of this kind, one a line: the store's images, containers or both, drivers, or"
        " options of a mount",
    )


def _run(context: Context, arguments: argparse.Namespace) -> int:
    if arguments.names is not None:
        _print_names(context, arguments.names)
    elif arguments.shell is not None:
        sys.stdout.write(SHELLS[arguments.shell]())
    else:
        from layerfs.cli.parser import UsageError

        raise UsageError("which shell?", hint="write `layerfs completion bash`, zsh or fish")
    return 0


def _print_names(context: Context, kind: str) -> None:
    for name in sorted(_names(context, kind)):
        line(name)


def _names(context: Context, kind: str) -> set[str]:
    from layerfs import plugins

    if kind == "drivers":
        return set(plugins.available())
    if kind == "options":
        return _options()
    # Pressing a key must not make a store.
    if not (context.root / "layerfs.db").exists():
        return set()
    names: set[str] = set()
    with context.open_store() as store:
        if kind != "containers":
            names.update(name for image in store.images.list() for name in image.names)
        if kind != "images":
            names.update(container.name for container in store.containers.list())
    return names


def _options() -> set[str]:
    """List what `mount -o` takes, with any driver; where a value is the user's, the name and ``=``."""
    from layerfs import plugins
    from layerfs.errors import UnsupportedError
    from layerfs.mount_options import GENERAL

    found = set(GENERAL)
    for plugin in plugins.available().values():
        with contextlib.suppress(UnsupportedError):
            # Of `layerfs.driver.Configures`, which issubclass cannot ask for.
            for shape in getattr(plugin.load(), "mount_options", ()):
                name, equals, value = shape.partition("=")
                values = [""] if value[:1].isupper() else value.split("|")
                found.update(f"{name}{equals}{each}" for each in values)
    return found


COMMANDS = {
    "completion": Command(
        description="The script completes commands, options and their values, files, names of images and\n"
        "containers, and places of images (docker://, oci:, ...).",
        examples=[
            "source <(layerfs completion bash)",
            'layerfs completion zsh > "${fpath[1]}/_layerfs"',
            "layerfs completion fish > ~/.config/fish/completions/layerfs.fish",
        ],
        configure=_configure,
        run=_run,
    ),
}
