"""Tests of `layerfs login` and `layerfs logout` against real registries, with podman and skopeo as peers."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.registry.credentials import Credentials
from layerfs.registry.settings import Options
from tests.support.authority import Authority
from tests.support.commandline import Done
from tests.support.registries import PASSWORD, USER, Registry, put_artifact
from tests.support.terminals import on_terminal
from tests.support.tiny_images import TinyImage, layout_files, write_files
from tests.support.token_server import TokenServer


class Home:
    """A user's home, and `layerfs` in its environment."""

    def __init__(self, directory: Path) -> None:
        self.authfile = directory / "run/containers/auth.json"
        self.docker = directory / "home/.docker/config.json"
        (directory / "run").mkdir()
        self.environment = {
            "PATH": os.environ["PATH"], "HOME": str(directory / "home"),
            "XDG_RUNTIME_DIR": str(directory / "run"),
        }  # fmt: skip

    def run(self, *words: str, stdin: str = "") -> Done:
        done = subprocess.run(
            [sys.executable, "-m", "layerfs", *words], input=stdin, capture_output=True, text=True,
            env=self.environment,
        )  # fmt: skip
        return Done(done.returncode, done.stdout, done.stderr)

    def good(self, *words: str, stdin: str = "") -> str:
        done = self.run(*words, stdin=stdin)
        assert done.status == 0, done.err
        return done.out


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def sign_in(home: Home, registry: Registry, *more: str) -> Done:
    words = ["login", "-u", USER, "--password-stdin", *more, registry.host]
    return home.run(*words, stdin=f"{PASSWORD}\n")


def test_who_signs_in_is_known_from_then_on(basic_registry: Registry, home: Home) -> None:
    done = sign_in(home, basic_registry)
    assert (done.status, done.out) == (0, "")
    assert done.err == f"signed in to {basic_registry.host} as alice; {home.authfile} knows of it\n"
    assert stat.S_IMODE(home.authfile.stat().st_mode) == 0o600
    assert home.good("login", "--get-login", basic_registry.host) == "alice\n"
    assert json.loads(home.good("--json", "login", "--get-login", basic_registry.host))["username"] == USER
    assert home.good("logout", basic_registry.host) == ""
    assert json.loads(home.authfile.read_text())["auths"] == {}
    done = home.run("login", "--get-login", basic_registry.host)
    assert (done.status, done.out) == (1, "")
    assert "nobody is signed in" in done.err


def test_a_token_server_is_asked_before_anything_is_kept(
    token_registry: Registry, token_server: TokenServer, home: Home
) -> None:
    token_server.requests.clear()
    assert sign_in(home, token_registry).status == 0
    assert token_server.requests == [(USER, (), "GET")]


@pytest.mark.parametrize("kind", ["basic_registry", "token_registry"])
def test_a_wrong_password_is_not_kept(kind: str, home: Home, request: pytest.FixtureRequest) -> None:
    registry: Registry = request.getfixturevalue(kind)
    done = home.run("login", "-u", USER, "-p", "queen of hearts", registry.host)
    assert done.status == 1
    assert "does not accept the user name or the password of alice" in done.err
    assert "queen" not in done.err
    assert not home.authfile.exists()


def test_a_registry_for_everybody_warns(registry: Registry, home: Home) -> None:
    assert "lets everybody in" in sign_in(home, registry).err


def test_what_is_no_registry_is_not_signed_in_to(home: Home) -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        done = home.run("login", "-u", "a", "-p", "b", f"127.0.0.1:{server.server_port}")
        server.shutdown()
    assert done.status == 1
    assert "is a web server, but it seems no registry" in done.err


def test_tls_is_verified_unless_told_otherwise(
    tls_registry: Registry, authority: Authority, home: Home
) -> None:
    done = sign_in(home, tls_registry)
    assert (done.status, "authority that is not known" in done.err) == (1, True)
    assert sign_in(home, tls_registry, "--cert-dir", str(authority.certs_d("known"))).status == 0
    assert sign_in(home, tls_registry, "--tls-verify=false").status == 0


def test_another_file_can_be_named(basic_registry: Registry, home: Home, tmp_path: Path) -> None:
    assert sign_in(home, basic_registry, "--authfile", str(home.docker)).status == 0
    assert not home.authfile.exists()
    assert home.good("login", "--get-login", basic_registry.host) == "alice\n"
    done = home.run("logout", basic_registry.host)
    assert done.status == 1
    assert f"layerfs logout --authfile {home.docker}" in done.err
    home.good("logout", "--authfile", str(home.docker), basic_registry.host)
    assert json.loads(home.docker.read_text())["auths"] == {}


def test_logout_says_where_credentials_remain(basic_registry: Registry, home: Home) -> None:
    sign_in(home, basic_registry)
    sign_in(home, basic_registry, "--authfile", str(home.docker))
    done = home.run("logout", basic_registry.host)
    assert done.status == 0
    assert f"warning: {home.docker} still has credentials" in done.err


def test_everything_is_forgotten_at_once(
    basic_registry: Registry, token_registry: Registry, home: Home
) -> None:
    sign_in(home, basic_registry)
    sign_in(home, token_registry)
    names = json.loads(home.good("--json", "logout", "--all"))
    assert set(names) == {basic_registry.host, token_registry.host}
    assert json.loads(home.authfile.read_text())["auths"] == {}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-u", "alice"], "there is no terminal to ask for the password on"),
        (["--password-stdin"], "--password-stdin needs a user name"),
        (["-u", "a", "-p", "b", "--password-stdin"], "exclude each other"),
        (["-u", "a:b", "-p", "c"], "holds no colon"),
        (["-u", "a", "--password-stdin"], "are needed"),
    ],
)
def test_a_wrong_command_line_is_told(words: list[str], message: str, home: Home) -> None:
    done = home.run("login", *words, "127.0.0.1:1")
    assert done.status == 2
    assert message in done.err


@pytest.mark.parametrize("name", ["not a host", "UPPER/Case", "a/b:tag", "host:port"])
def test_what_cannot_be_a_registry_is_told(name: str, home: Home) -> None:
    done = home.run("logout", name)
    assert done.status == 1
    assert "cannot be a registry" in done.err


def test_name_and_password_are_asked_for_on_a_terminal(basic_registry: Registry, home: Home) -> None:
    words = [sys.executable, "-m", "layerfs", "login", basic_registry.host]
    answers = [("user name: ", f"{USER}\n"), ("password: ", f"{PASSWORD}\n")]
    shown = on_terminal(words, answers, home.environment)
    assert f"signed in to {basic_registry.host} as alice" in shown
    assert PASSWORD not in shown


@pytest.mark.parametrize("peer", ["podman", "skopeo"])
def test_peers_and_we_know_each_others_logins(
    peer: str, basic_registry: Registry, home: Home, tmp_path: Path
) -> None:
    if shutil.which(peer) is None:
        pytest.skip(f"{peer} is not installed")
    environment = {**home.environment, "HOME": os.environ.get("HOME", "/root")}
    login = [peer, "login", "--tls-verify=false", "-u", USER, "--password-stdin", basic_registry.host]
    subprocess.run(login, input=PASSWORD, text=True, check=True, capture_output=True, env=environment)
    assert home.good("login", "--get-login", basic_registry.host) == "alice\n"
    home.good("logout", basic_registry.host)
    sign_in(home, basic_registry)
    asked = [peer, "login", "--get-login", basic_registry.host]
    known = subprocess.run(asked, capture_output=True, text=True, check=True, env=environment)
    assert known.stdout.strip() == USER


def test_stored_credentials_are_used(basic_registry: Registry, home: Home) -> None:
    put_artifact(basic_registry.repository("login/used", Options(creds=Credentials(USER, PASSWORD))))
    name = f"docker://{basic_registry.host}/login/used"
    assert home.run("tags", name).status == 1
    sign_in(home, basic_registry)
    assert home.good("tags", name) == "1\n"


@pytest.fixture(scope="module")
def secure(registries: Path, authority: Authority) -> Iterator[Registry]:
    """Run a registry whose tokens and whose answers all go by TLS, as out in the world."""
    pair = authority.issue("127.0.0.1")
    with (
        TokenServer(registries / "secure-tokens", tls=pair) as tokens,
        Registry(registries / "secure", auth=tokens.settings(), tls=pair) as registry,
    ):
        yield registry


def test_images_come_and_go_by_tls_with_tokens(
    secure: Registry, authority: Authority, home: Home, tmp_path: Path
) -> None:
    layout, copied = f"oci:{tmp_path / 'layout'}:1", f"oci:{tmp_path / 'copied'}:1"
    tiny = TinyImage(b"one", b"two")
    write_files(tmp_path / "layout", layout_files([tiny.entry(name="1")], tiny.blobs))
    image, other = f"docker://{secure.host}/team/app:1", f"docker://{secure.host}/team/other:1"
    trusting = ("--cert-dir", str(authority.certs_d("known")))
    refused = home.run("copy", *trusting, layout, image)
    assert (refused.status, "is not for everybody" in refused.err) == (1, True)
    assert sign_in(home, secure, *trusting).status == 0
    digest = home.good("copy", *trusting, layout, image)
    assert home.good("copy", *trusting, image, other) == digest
    assert home.good("copy", *trusting, other, copied) == digest
    assert home.good("tags", *trusting, other) == "1\n"
    home.good("delete", *trusting, image)
    home.good("logout", secure.host)
    assert home.run("copy", *trusting, other, copied).status == 1


def test_a_token_server_without_tls_gets_no_password_for_a_registry_with_it(
    registries: Path, authority: Authority, token_server: TokenServer, home: Home
) -> None:
    tls = authority.issue("127.0.0.1")
    with Registry(registries / "mixed", auth=token_server.settings(), tls=tls) as registry:
        token_server.requests.clear()
        done = sign_in(home, registry, "--cert-dir", str(authority.certs_d("known")))
    assert done.status == 1
    assert f"wants our credentials sent to {token_server.url}, without TLS" in done.err
    assert "nothing was sent" in done.err
    assert token_server.requests == []
