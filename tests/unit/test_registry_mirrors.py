"""Tests of registries.conf(5): where a repository really is, and pulling from there."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from layerfs.errors import InvalidError, NotFoundError, UnreachableError, UntrustedError
from layerfs.reference import Reference
from layerfs.registry import credential_files, manifests, mirrors
from layerfs.registry.credentials import Credentials
from layerfs.registry.mirrors import Endpoint
from layerfs.registry.session import Session
from layerfs.registry.settings import Options
from tests.support.fault_proxy import Fault, FaultProxy
from tests.support.registries import PASSWORD, USER, Registry, put_artifact


def conf(etc: Path, text: str, name: str = "registries.conf") -> Options:
    path = etc / "containers" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return Options(etc=etc)


def places(options: Options, name: str) -> list[str]:
    found = mirrors.endpoints(Reference.parse(name), options)
    return [f"{place.host}/{place.repository}" for place in found]


# The example of containers-registries.conf(5), in our own names.
EXAMPLE = """
unqualified-search-registries = ["example.com"]
[[registry]]
prefix = "example.com/foo"
location = "inside.example.net/bar"
[[registry.mirror]]
location = "first.local/for-foo"
[[registry.mirror]]
location = "second.local/for/foo"
insecure = true
[[registry]]
location = "registry.com"
[[registry.mirror]]
location = "mirror.registry.com"
"""


def test_mirrors_come_before_the_registrys_own_location(tmp_path: Path) -> None:
    options = conf(tmp_path, EXAMPLE)
    assert places(options, "example.com/foo/image") == [
        "first.local/for-foo/image",
        "second.local/for/foo/image",
        "inside.example.net/bar/image",
    ]
    assert [place.insecure for place in mirrors.endpoints(Reference.parse("example.com/foo/x"), options)] == [
        False, True, False
    ]  # fmt: skip
    assert places(options, "registry.com/image") == ["mirror.registry.com/image", "registry.com/image"]
    assert places(options, "example.com/fool/image") == ["example.com/fool/image"]
    assert places(options, "registry.com:5000/image") == ["registry.com:5000/image"]


def test_the_longest_prefix_wins(tmp_path: Path) -> None:
    options = conf(
        tmp_path,
        """
        [[registry]]
        location = "a.com"
        insecure = true
        [[registry]]
        prefix = "a.com/team/app"
        location = "b.com/app"
        [[registry]]
        prefix = "*.example.com"
        blocked = true
        """,
    )
    assert places(options, "a.com/team/app") == ["b.com/app"]
    assert mirrors.endpoints(Reference.parse("a.com/team/other"), options) == (
        Endpoint("a.com", "team/other", insecure=True),
    )
    with pytest.raises(UntrustedError, match="is blocked by"):
        places(options, "deep.inside.example.com/x")
    assert places(options, "example.com/x") == ["example.com/x"]


def test_docker_hub_is_meant_by_its_whole_name(tmp_path: Path) -> None:
    options = conf(
        tmp_path,
        '[[registry]]\nlocation = "docker.io"\n[[registry.mirror]]\nlocation = "mirror.local/hub"\n',
    )
    assert places(options, "debian") == ["mirror.local/hub/library/debian", "docker.io/library/debian"]


def test_a_name_without_a_host_is_docker_hubs_whatever_the_configuration_has_for_short_names(
    tmp_path: Path,
) -> None:
    options = conf(
        tmp_path,
        'unqualified-search-registries = ["example.com"]\nshort-name-mode = "enforcing"\n'
        '[aliases]\n"debian" = "example.com/other/debian"\n',
    )
    assert places(options, "debian") == ["docker.io/library/debian"]


def test_a_mirror_may_be_for_digests_or_tags_only(tmp_path: Path) -> None:
    options = conf(
        tmp_path,
        """
        [[registry]]
        location = "a.com"
        [[registry.mirror]]
        location = "m.com"
        pull-from-mirror = "digest-only"
        [[registry.mirror]]
        location = "n.com"
        pull-from-mirror = "tag-only"
        """,
    )
    found = mirrors.endpoints(Reference.parse("a.com/x"), options)
    assert [(place.tags, place.digests) for place in found] == [(False, True), (True, False), (True, True)]


def test_the_users_file_and_directories_come_after_the_systems(tmp_path: Path) -> None:
    table = '[[registry]]\nprefix = "a.com"\nlocation = "{}"\n'
    options = conf(tmp_path / "etc", table.format("system.com"))
    assert places(options, "a.com/x") == ["system.com/x"]
    conf(tmp_path / "etc", table.format("dropped-in.com"), "registries.conf.d/50.conf")
    assert places(options, "a.com/x") == ["dropped-in.com/x"]
    user = tmp_path / "home/.config/containers"
    user.mkdir(parents=True)
    (user / "registries.conf").write_text("")
    options = Options(etc=tmp_path / "none", environment={"HOME": str(tmp_path / "home")})
    assert places(options, "a.com/x") == ["a.com/x"]
    (user / "registries.conf.d").mkdir()
    (user / "registries.conf.d/1.conf").write_text(table.format("mine.com"))
    assert places(options, "a.com/x") == ["mine.com/x"]


def test_the_first_version_of_the_format_is_read(tmp_path: Path) -> None:
    options = conf(
        tmp_path,
        "[registries.insecure]\nregistries = ['a.com']\n[registries.block]\nregistries = ['b.com']\n",
    )
    assert mirrors.endpoints(Reference.parse("a.com/x"), options)[0].insecure
    with pytest.raises(UntrustedError):
        places(options, "b.com/x")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[[registry]", "not valid TOML"),
        ("[[registry]]\ninsecure = true", "neither prefix nor location"),
        ('[[registry]]\nlocation = "a.com"\nblocked = "yes"', "blocked is neither true nor false"),
        ('[[registry]]\nlocation = "a.com"\nmirror = "b.com"', "no array of tables"),
        (
            '[[registry]]\nlocation = "a.com"\nmirror = [{location = "b.com", pull-from-mirror = "never"}]',
            "pull-from-mirror is 'never'",
        ),
    ],
)
def test_a_broken_file_is_named(text: str, problem: str, tmp_path: Path) -> None:
    options = conf(tmp_path, text)
    with pytest.raises(InvalidError, match=problem) as refused:
        places(options, "a.com/x")
    assert str(tmp_path) in str(refused.value)


def mirrored(etc: Path, registry: Registry, *hosts: str) -> Options:
    lines = [f'[[registry]]\nprefix = "origin.test"\nlocation = "{registry.host}"\n']
    lines += [f'[[registry.mirror]]\nlocation = "{host}"\n' for host in hosts]
    return Options(etc=conf(etc, "".join(lines)).etc, attempts=1)


def test_what_a_mirror_lacks_comes_from_the_registry(
    registry: Registry, basic_registry: Registry, tmp_path: Path
) -> None:
    manifest = put_artifact(registry.repository("mirrors/image"))
    with FaultProxy(registry.host) as proxy, FaultProxy(registry.host) as origin:
        options = mirrored(tmp_path, registry, f"{proxy.host}/mirrors")
        reference = Reference.parse("origin.test/image:1")
        told: list[str] = []
        with Session(options, warn=told.append) as session:
            repository = session.repository(reference)
            assert manifests.get(repository, "1")[1].digest == manifest.digest
            assert len(proxy.asked("manifests/1")) == 1
            with pytest.raises(NotFoundError):
                manifests.get(repository, "2")
        assert told == []
        assert origin.requests == []


def test_lists_are_the_registrys_own(registry: Registry, tmp_path: Path) -> None:
    manifest = put_artifact(registry.repository("lists"))
    with FaultProxy(registry.host) as proxy:
        with Session(mirrored(tmp_path, registry, proxy.host)) as session:
            repository = session.repository(Reference.parse("origin.test/lists:1"))
            assert list(manifests.tags(repository)) == ["1"]
            assert list(manifests.referrers(repository, manifest.digest)) == []
        assert not [seen for seen in proxy.requests if "/tags/" in seen.path or "/referrers/" in seen.path]


def test_a_mirror_that_fails_is_told_once_and_not_asked_again(registry: Registry, tmp_path: Path) -> None:
    put_artifact(registry.repository("image"))
    with FaultProxy(registry.host) as proxy:
        options = mirrored(tmp_path, registry, proxy.host)
        proxy.add(Fault("GET .*manifests", times=9, status=500))
        told: list[str] = []
        with Session(options, warn=told.append) as session:
            repository = session.repository(Reference.parse("origin.test/image:1"))
            manifests.get(repository, "1")
            manifests.get(repository, "1")
        assert len(told) == 1
        assert proxy.host in told[0]
        assert len(proxy.asked("manifests/1")) == 1


def test_a_mirror_that_fails_for_several_at_once_is_told_once_and_why(
    registry: Registry, tmp_path: Path
) -> None:
    manifest = put_artifact(registry.repository("crowd"))
    told: list[str] = []
    with FaultProxy(registry.host) as proxy:
        proxy.add(Fault("GET .*blobs", times=99, status=503))
        with Session(mirrored(tmp_path, registry, proxy.host), warn=told.append) as session:
            repository = session.repository(Reference.parse("origin.test/crowd:1"))
            ready = threading.Barrier(6)

            def fetch() -> None:
                ready.wait()
                repository.fetch(f"blobs/{manifest.config.digest}", limit=1 << 20)

            threads = [threading.Thread(target=fetch) for _ in range(6)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert told == [f"the mirror {proxy.host} is not used: {proxy.host} failed (HTTP 503)"]


def test_what_a_child_learns_of_a_mirror_its_siblings_know(registry: Registry, tmp_path: Path) -> None:
    manifest = put_artifact(registry.repository("siblings"))
    reader, writer = os.pipe()
    with FaultProxy(registry.host) as proxy:
        proxy.add(Fault("GET .*blobs", times=99, status=503))

        def tell(message: str) -> None:
            os.write(writer, b"told\n")

        with Session(mirrored(tmp_path, registry, proxy.host), warn=tell) as session:
            repository = session.repository(Reference.parse("origin.test/siblings:1"))
            for _ in range(2):
                child = os.fork()
                if child == 0:
                    try:
                        repository.fetch(f"blobs/{manifest.config.digest}", limit=1 << 20)
                    finally:
                        os._exit(0)
                os.waitpid(child, 0)
            assert len(proxy.asked("blobs")) == 1
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        assert file.read() == b"told\n"


def test_credentials_of_the_registry_do_not_go_to_its_mirror(
    registry: Registry, basic_registry: Registry, tmp_path: Path
) -> None:
    put_artifact(basic_registry.repository("image", Options(creds=Credentials(USER, PASSWORD))))
    auth = tmp_path / "auth.json"
    credential_files.store(basic_registry.host, Credentials(USER, PASSWORD), Options(authfile=auth))
    with FaultProxy(basic_registry.host) as proxy:
        found = mirrored(tmp_path, basic_registry, proxy.host)
        options = Options(etc=found.etc, attempts=1, authfile=auth)
        with Session(options) as session:
            manifests.get(session.repository(Reference.parse("origin.test/image:1")), "1")
        assert proxy.asked("manifests")
        assert not [seen for seen in proxy.requests if "Authorization" in seen.headers]


def test_a_push_goes_to_the_registry_and_to_no_mirror(registry: Registry, tmp_path: Path) -> None:
    with FaultProxy(registry.host) as proxy:
        with Session(mirrored(tmp_path, registry, proxy.host)) as session:
            put_artifact(session.repository(Reference.parse("origin.test/pushed:1")))
        assert proxy.requests == []
    assert manifests.head(registry.repository("pushed"), "1") is not None


def test_credentials_that_were_given_do_not_go_to_a_mirror(basic_registry: Registry, tmp_path: Path) -> None:
    own = Options(creds=Credentials(USER, PASSWORD))
    put_artifact(basic_registry.repository("given", own))
    with FaultProxy(basic_registry.host) as mirror:
        etc = mirrored(tmp_path, basic_registry, mirror.host).etc
        with Session(Options(etc=etc, attempts=1, creds=own.creds)) as session:
            manifests.get(session.repository(Reference.parse("origin.test/given:1")), "1")
        assert mirror.asked("manifests")
        assert not [seen for seen in mirror.requests if "Authorization" in seen.headers]


def test_what_is_lax_for_one_repository_is_not_for_another(tls_registry: Registry, tmp_path: Path) -> None:
    etc = conf(tmp_path, f'[[registry]]\nlocation = "{tls_registry.host}/lax"\ninsecure = true\n').etc
    with Session(Options(etc=etc)) as session:
        put_artifact(session.repository(Reference.parse(f"{tls_registry.host}/lax/image:1")))
        strict = session.repository(Reference.parse(f"{tls_registry.host}/strict/image:1"))
        with pytest.raises(UnreachableError, match="authority that is not known"):
            manifests.get(strict, "1")
    with Session(Options(etc=etc, tls_verify=True)) as session:
        strict = session.repository(Reference.parse(f"{tls_registry.host}/lax/image:1"))
        with pytest.raises(UnreachableError, match="authority that is not known"):
            manifests.get(strict, "1")
