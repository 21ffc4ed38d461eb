"""Tests of sessions with real registries: who is let in, over what, and with which tokens."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from layerfs.errors import AuthenticationError, NotFoundError, UnreachableError
from layerfs.reference import Reference
from layerfs.registry import manifests
from layerfs.registry.credentials import Credentials
from layerfs.registry.session import Session
from layerfs.registry.settings import Options
from tests.support.authority import Authority
from tests.support.fault_proxy import FaultProxy
from tests.support.registries import PASSWORD, USER, Registry, put_artifact
from tests.support.token_server import TokenServer

ALICE = Credentials(USER, PASSWORD)


def test_everybody_may_push_to_and_pull_from_an_open_registry(registry: Registry) -> None:
    repository = registry.repository("session/open")
    manifest = put_artifact(repository)
    raw, descriptor = manifests.get(repository, "1")
    assert (raw, descriptor.digest) == (manifest.raw, manifest.digest)


def test_options_may_be_given_as_texts() -> None:
    options = Options(cert_dir="/c", authfile="a", creds="alice:se:cret", etc="/e")  # type: ignore[arg-type]
    assert (options.cert_dir, options.authfile, options.etc) == (Path("/c"), Path("a"), Path("/e"))
    assert options.creds == Credentials("alice", "se:cret")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"creds": ("alice", "secret")}, "creds are Credentials, or USER:PASSWORD, and no tuple"),
        ({"creds": {"alice": "secret"}}, "and no dict"),
        ({"authfile": 3}, "int"),
        ({"environment": None}, "an environment is a mapping, and no NoneType"),
    ],
)
def test_options_of_another_type_are_refused_at_once(given: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message) as refused:
        Options(**given)
    assert "secret" not in str(refused.value)


def test_a_session_takes_options_and_nothing_else() -> None:
    with pytest.raises(TypeError, match=r"options are layerfs\.Options, and no Credentials"):
        Session(ALICE)  # type: ignore[arg-type]


def test_a_registry_may_be_named_by_an_address_of_ipv6(registries: Path) -> None:
    # skopeo, podman and docker of Debian 12 do not know such names yet.
    try:
        prepared = Registry(registries / "ipv6", address="::1")
    except OSError as error:
        pytest.skip(f"no ::1: {error}")
    with prepared as there:
        assert there.host.startswith("[::1]:")
        manifest = put_artifact(there.repository("team/app"))
        assert manifests.get(there.repository("team/app"), "1")[1].digest == manifest.digest


def test_who_knows_the_password_is_let_in(basic_registry: Registry) -> None:
    repository = basic_registry.repository("session/basic", Options(creds=ALICE))
    manifest = put_artifact(repository)
    assert manifests.get(repository, manifest.digest)[0] == manifest.raw


def test_nobody_else_is_let_in(basic_registry: Registry) -> None:
    with pytest.raises(AuthenticationError, match="user name and a password") as refused:
        manifests.get(basic_registry.repository("session/basic"), "1")
    assert refused.value.hint == f"`layerfs login {basic_registry.host}` first"
    wrong = Options(creds=Credentials(USER, "queen of hearts"))
    with pytest.raises(AuthenticationError, match="does not accept") as refused:
        manifests.get(basic_registry.repository("session/basic", wrong), "1")
    assert "queen" not in f"{refused.value}{refused.value.hint}"


def test_a_token_is_fetched_once_for_all_requests_of_one_kind(
    token_registry: Registry, token_server: TokenServer
) -> None:
    repository = token_registry.repository("session/token", Options(creds=ALICE))
    token_server.requests.clear()
    put_artifact(repository)
    manifests.get(repository, "1")
    # The token for pushing pulls as well.
    assert token_server.requests == [(USER, ("repository:session/token:pull,push",), "GET")]
    again = token_registry.repository("session/token", Options(creds=ALICE))
    for _ in range(3):
        manifests.get(again, "1")
    assert token_server.requests[1:] == [(USER, ("repository:session/token:pull",), "GET")]


def test_everybody_gets_a_token_for_what_is_public(
    token_registry: Registry, token_server: TokenServer
) -> None:
    put_artifact(token_registry.repository("public/image", Options(creds=ALICE)))
    token_server.requests.clear()
    assert manifests.get(token_registry.repository("public/image"), "1")
    assert token_server.requests == [(None, ("repository:public/image:pull",), "GET")]
    with pytest.raises(AuthenticationError, match="is not for everybody, or does not exist"):
        manifests.get(token_registry.repository("session/token"), "1")


def test_a_token_is_renewed_before_it_ends(token_registry: Registry, token_server: TokenServer) -> None:
    put_artifact(token_registry.repository("session/renewed", Options(creds=ALICE)))
    repository = token_registry.repository("session/renewed", Options(creds=ALICE))
    token_server.requests.clear()
    before, token_server.lifetime = token_server.lifetime, 1
    try:
        manifests.get(repository, "1")
        threading.Event().wait(0.6)
        manifests.get(repository, "1")
    finally:
        token_server.lifetime = before
    assert len(token_server.requests) == 2


def test_an_identity_token_is_exchanged_for_access(
    token_registry: Registry, token_server: TokenServer
) -> None:
    options = Options(creds=Credentials(identity_token="identity-of-alice"))
    token_server.requests.clear()
    put_artifact(token_registry.repository("session/identity", options))
    assert {(request.user, request.method) for request in token_server.requests} == {(USER, "POST")}


def test_a_mount_asks_for_both_repositories(token_registry: Registry, token_server: TokenServer) -> None:
    source = token_registry.repository("session/from", Options(creds=ALICE))
    blob = put_artifact(source).layers[0]
    target = token_registry.repository("session/to", Options(creds=ALICE))
    token_server.requests.clear()
    query = [("mount", str(blob.digest)), ("from", "session/from")]
    target.send(
        "POST",
        "blobs/uploads/",
        query=query,
        actions=("pull", "push"),
        also_from="session/from",
        expect=(201,),
    ).close()
    assert set(token_server.requests[0].scopes) == {
        "repository:session/from:pull",
        "repository:session/to:pull,push",
    }


def test_deleting_asks_for_the_right_to_delete(token_registry: Registry, token_server: TokenServer) -> None:
    repository = token_registry.repository("session/deleted", Options(creds=ALICE))
    digest = put_artifact(repository).digest
    manifests.delete(repository, digest)
    assert token_server.requests[-1].scopes == ("repository:session/deleted:delete",)
    assert manifests.head(repository, digest) is None


def test_a_forked_process_makes_connections_of_its_own_and_keeps_the_tokens(
    token_registry: Registry, token_server: TokenServer
) -> None:
    repository = token_registry.repository("session/forked", Options(creds=ALICE))
    put_artifact(repository)
    manifests.get(repository, "1")
    token_server.requests.clear()
    child = os.fork()
    if child == 0:
        # What worker processes do: the parent's descriptors are not there any more.
        os.closerange(3, 4096)
        os._exit(0 if manifests.get(repository, "1") and manifests.get(repository, "1") else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert manifests.get(repository, "1")
    assert token_server.requests == []


def test_a_registry_with_a_certificate_of_a_known_authority_is_trusted(
    tls_registry: Registry, authority: Authority
) -> None:
    options = Options(cert_dir=authority.certs_d("known"))
    put_artifact(tls_registry.repository("session/tls", options))


def test_certificates_are_found_by_the_registrys_name(
    tls_registry: Registry, authority: Authority, tmp_path: Path
) -> None:
    for etc in ("containers/certs.d", "docker/certs.d"):
        (tmp_path / etc).mkdir(parents=True)
        (tmp_path / etc / tls_registry.host).symlink_to(authority.certs_d("known"))
        put_artifact(tls_registry.repository("session/tls", Options(etc=tmp_path)))
        (tmp_path / etc / tls_registry.host).unlink()


def test_an_unknown_authority_is_an_error_even_on_this_machine(tls_registry: Registry) -> None:
    with pytest.raises(UnreachableError, match="authority that is not known") as refused:
        manifests.get(tls_registry.repository("session/tls"), "1")
    assert "--cert-dir" in (refused.value.hint or "")


def test_any_certificate_will_do_when_asked_for(tls_registry: Registry) -> None:
    put_artifact(tls_registry.repository("session/lax", Options(tls_verify=False)))


def test_a_client_certificate_is_shown_where_one_is_wanted(registries: Path, authority: Authority) -> None:
    with Registry(
        registries / "mutual", tls=authority.issue("127.0.0.1"), client_authority=authority.certificate
    ) as registry:
        known = Options(cert_dir=authority.certs_d("mutual", client=authority.issue()))
        put_artifact(registry.repository("session/mutual", known))
        with pytest.raises(UnreachableError, match="wants a certificate of ours"):
            put_artifact(registry.repository("session/mutual", Options(cert_dir=authority.certs_d("none"))))


def test_plain_http_is_not_spoken_when_tls_is_asked_for(registry: Registry) -> None:
    with pytest.raises(UnreachableError, match="does not speak HTTPS") as refused:
        manifests.get(registry.repository("session/open", Options(tls_verify=True)), "1")
    assert "--tls-verify=false" in (refused.value.hint or "")


def test_several_threads_share_a_session(token_registry: Registry, token_server: TokenServer) -> None:
    manifest = put_artifact(token_registry.repository("session/threads", Options(creds=ALICE)))
    repository = token_registry.repository("session/threads", Options(creds=ALICE))
    token_server.requests.clear()
    found: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: found.append(manifests.get(repository, "1")[0])) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [manifest.raw] * 8
    assert len(token_server.requests) == 1


def test_one_connection_does_for_requests_of_all_kinds(token_registry: Registry) -> None:
    with FaultProxy(token_registry.host) as proxy:
        session = Session(Options(creds=ALICE))
        repository = session.repository(Reference.parse(f"{proxy.host}/session/kept:1"))
        manifest = put_artifact(repository)
        for _ in range(3):
            manifests.head(repository, "1")
            manifests.get(repository, "1")
        assert manifests.head(repository, "none") is None
        with pytest.raises(NotFoundError):
            manifests.get(repository, "none")
        manifests.delete(repository, manifest.digest)
        assert len(proxy.requests) > 15
        assert proxy.connections == 1


def test_who_hurries_has_connections_for_the_next_requests(token_registry: Registry) -> None:
    put_artifact(token_registry.repository("session/hurried", Options(creds=ALICE)))
    with FaultProxy(token_registry.host) as proxy, Session(Options(creds=ALICE)) as session:
        repository = session.repository(Reference.parse(f"{proxy.host}/session/hurried:1"))
        repository.hurry(5)
        manifests.get(repository, "1")
        deadline = time.monotonic() + 10
        while proxy.accepted < 5 and time.monotonic() < deadline:
            time.sleep(0.01)
        made = proxy.accepted
        assert made >= 5
        threads = [threading.Thread(target=manifests.get, args=(repository, "1")) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert proxy.accepted == made


def test_who_hurries_to_nowhere_hears_of_it_once(registries: Path) -> None:
    with Registry(registries / "gone") as registry:
        host = registry.host
    with Session() as session:
        repository = session.repository(Reference.parse(f"{host}/session/gone:1"))
        repository.hurry(3)
        with pytest.raises(UnreachableError) as refused:
            manifests.get(repository, "1")
        assert host in str(refused.value)


def test_who_hurries_is_refused_what_others_are(tls_registry: Registry) -> None:
    with Session() as session:
        repository = session.repository(Reference.parse(f"{tls_registry.host}/session/tls:1"))
        repository.hurry(3)
        with pytest.raises(UnreachableError, match="authority that is not known"):
            manifests.get(repository, "1")
