"""Tests of reading command lines: options, slips, help, and what belongs to the process."""

from __future__ import annotations

import pytest

from layerfs.cli import commands, main
from layerfs.cli.parser import UsageError, build, split_global

ALL = sorted(commands.COMMANDS)


def test_every_row_of_the_design_is_there() -> None:
    images = {
        "pull",
        "push",
        "load",
        "save",
        "import",
        "export",
        "images",
        "tag",
        "rmi",
        "inspect",
        "history",
    }
    containers = {"mount", "umount", "create", "start", "run", "ps", "rm", "diff", "commit", "cp"}
    housekeeping = {"gc", "check", "info", "drivers", "du"}
    assert images | containers | housekeeping <= set(ALL)


@pytest.mark.parametrize("name", ALL)
def test_every_command_has_a_description_and_an_example_that_parses(name: str) -> None:
    command = commands.load(name)
    assert command.description.rstrip().endswith(".")
    assert any(f"layerfs {name}" in line or f" {name} " in line for line in command.examples)


@pytest.mark.parametrize("name", ALL)
def test_every_help_goes_to_stdout_and_shows_the_example(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([name, "--help"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith(f"usage: layerfs {name} [OPTIONS]")
    assert commands.load(name).examples[0] in captured.out
    assert captured.err == ""


@pytest.mark.parametrize("name", ALL)
def test_every_argument_says_what_it_is(name: str) -> None:
    for action in build(name)._actions:
        assert action.help, action.option_strings
        assert action.nargs == 0 or isinstance(action.metavar, str), action.option_strings


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    for name, (_, summary) in commands.COMMANDS.items():
        assert f"  {name} " in printed
        assert summary in printed


def test_help_of_a_command_can_be_asked_for_in_front(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["help", "run"]) == 0
    assert capsys.readouterr().out.startswith("usage: layerfs run")


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["--rm", "debian:12", "ls", "-l", "--help"], ["ls", "-l", "--help"]),
        (["debian:12", "--", "ls"], ["--", "ls"]),
        (["--", "debian:12", "ls", "--rm"], ["ls", "--rm"]),
        (["-e", "A=1", "-itw", "/tmp", "debian:12", "-ti", "--json"], ["-ti", "--json"]),
        (["--name=x", "-w/tmp", "debian:12", "env", "-e"], ["env", "-e"]),
        (["--root", "/store", "debian:12", "--root"], ["--root"]),
        (["debian:12"], []),
    ],
)
def test_what_follows_the_image_belongs_to_the_process(words: list[str], command: list[str]) -> None:
    arguments = build("run").parse(words)
    assert arguments.image == "debian:12"
    assert arguments.command == command


def test_options_of_run_before_the_image_are_ours() -> None:
    arguments = build("run").parse(["--rm", "-it", "-e", "A=1", "-eB=2", "-v", "/a:/b:ro", "image"])
    assert (arguments.rm, arguments.tty, arguments.interactive) == (True, True, True)
    assert arguments.env == ["A=1", "B=2"]
    assert arguments.volume == ["/a:/b:ro"]


@pytest.mark.parametrize("words", [["--root", "/a", "--json", "images"], ["--root=/a", "--json", "images"]])
def test_global_options_stand_before_the_command(words: list[str]) -> None:
    given, rest = split_global(words)
    assert (given.root, given.json, rest) == ("/a", True, ["images"])


def test_global_options_stand_after_the_command_too() -> None:
    arguments = build("images").parse(["--json", "--root", "/b"])
    assert (arguments.json, arguments.root) == (True, "/b")


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        ([], "a command is missing", "--help"),
        (["imgaes"], "'imgaes' is not a command", "did you mean images"),
        (["xyzzy"], "'xyzzy' is not a command", "lists the commands"),
        (["restart", "x"], "'restart' is not a command", "layerfs stop"),
        (["unmount", "/x"], "'unmount' is not a command", "umount"),
        (["--rot", "/a", "images"], "unknown option --rot", "did you mean --root"),
        (["--root"], "--root needs a value", "--root DIR"),
        (["--json=1", "images"], "--json takes no value", "only --json"),
        (["images", "--digest"], "unknown option --digest", "did you mean --digests"),
        (["tag", "one"], "required: NAME", "layerfs tag --help"),
        (["save", "--format", "zip", "x"], "invalid choice: 'zip'", "layerfs save --help"),
        (["push", "a", "b", "--digestfile"], "--digestfile: expected one argument", "layerfs push --help"),
        (["push", "a", "--bogus", "b"], "unknown option --bogus", "layerfs push --help"),
        (["push", "a", "b", "-q", "c"], "unrecognized arguments: c", "layerfs push --help"),
        (["pull", "--tls-verify", "false", "a"], "--tls-verify=false", "layerfs pull --help"),
    ],
)
def test_a_wrong_command_line_says_what_and_hints_and_ends_with_2(
    words: list[str], message: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    first, last = captured.err.splitlines()
    assert first.startswith("layerfs: ")
    assert message in first
    assert last.startswith("hint: ")
    assert hint in last


def test_a_wrong_command_line_of_run_ends_with_125_as_dockers_does(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["run", "--nmae", "x", "image"]) == 125
    assert "did you mean --name" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["a", "-q", "b", "--compression", "zstd"],
        ["a", "--compression", "zstd", "b", "-q"],
        ["-q", "a", "--compression=zstd", "--", "b"],
        ["--compression", "zstd", "-q", "a", "b"],
    ],
)
def test_options_stand_anywhere_among_the_arguments(words: list[str]) -> None:
    arguments = build("push").parse(words)
    assert (arguments.image, arguments.destination) == ("a", "b")
    assert (arguments.quiet, arguments.compression) == (True, "zstd")


def test_what_follows_two_dashes_is_no_option() -> None:
    arguments = build("pull").parse(["-q", "--", "-a", "--quiet"])
    assert (arguments.source, arguments.name, arguments.all_tags) == ("-a", "--quiet", False)
    assert build("rm").parse(["one", "-f", "--", "-two", "--"]).containers == ["one", "-two", "--"]


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (["--tls-verify", "a"], "true"),
        (["a", "--tls-verify=false"], "false"),
        (["a", "--tls-verify"], "true"),
        (["--", "true"], None),
    ],
)
def test_a_switch_has_its_value_after_an_equals_sign(words: list[str], value: str | None) -> None:
    assert build("pull").parse(words).tls_verify == value
    assert "--tls-verify[=true|false]" in build("pull").format_help()


def test_options_are_never_guessed_from_their_beginning() -> None:
    with pytest.raises(UsageError):
        build("images").parse(["--dig"])
