"""What a user sees of each fault between here and a registry: the whole table, against real registries."""

from __future__ import annotations

import contextlib
import http.server
import io
import json
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from layerfs.errors import (
    AuthenticationError,
    BudgetError,
    DocumentError,
    Interrupted,
    LayerfsError,
    NotFoundError,
    RateLimitError,
    RegistryError,
    UnreachableError,
    UntrustedError,
    VerificationError,
)
from layerfs.oci import media_types
from layerfs.oci.descriptor import Descriptor
from layerfs.reference import Reference
from layerfs.registry import manifests, proxies
from layerfs.registry.credentials import Credentials
from layerfs.registry.download import fetch_whole
from layerfs.registry.origin import Origin
from layerfs.registry.repository import Repository
from layerfs.registry.session import Session
from layerfs.registry.settings import Options
from layerfs.registry.upload import Upload
from tests.support.authority import Authority
from tests.support.fault_proxy import Fault, FaultProxy
from tests.support.registries import PASSWORD, USER, Registry, put_artifact
from tests.support.token_server import SERVICE, TokenServer

# Few and short attempts: what is tested is what is said after them.
QUICK = {"attempts": 3, "backoff": 0.01, "connect_timeout": 1.0, "read_timeout": 0.4, "patience": 2.0}
NAME = "faults/image"
ALWAYS = 1000


def open_repository(host: str, **options: object) -> Repository:
    settings = Options(**{**QUICK, **options})  # type: ignore[arg-type]
    return Session(settings).repository(Reference.parse(f"{host}/{NAME}:1"))


@pytest.fixture
def proxy(registry: Registry) -> Iterator[FaultProxy]:
    with FaultProxy(registry.host) as started:
        put_artifact(open_repository(started.host))
        started.clear()
        yield started


def errors(code: str, message: str) -> bytes:
    return json.dumps({"errors": [{"code": code, "message": message}]}).encode()


class Row(NamedTuple):
    """One fault that lasts, and what becomes of it: class, words of the message, words of the hint."""

    fault: Fault
    kind: type[LayerfsError]
    message: str
    hint: str


WHERE = "GET .*/manifests/"
LASTING = {
    "no answer": Row(Fault(WHERE, silent=True), Interrupted, "cut the connection", "try again"),
    "a cut": Row(Fault(WHERE, cut=20), Interrupted, "cut the connection", "try again"),
    "a reset": Row(Fault(WHERE, cut=20, reset=True), Interrupted, "cut the connection", "try again"),
    "a stall": Row(Fault(WHERE, stall=20), Interrupted, "stopped sending", "try again"),
    "a length that is too long": Row(Fault(WHERE, promise=9), Interrupted, "cut the connection", "try again"),
    "a truncated manifest": Row(Fault(WHERE, shorten=9), VerificationError, "is not sha256:", "altered it"),
    "a wrong byte": Row(Fault(WHERE, flip=9), VerificationError, "is not sha256:", "altered it"),
    "a page of a web server": Row(
        Fault(WHERE, status=200, body=b"<html>", headers={"Content-Type": "text/html"}),
        RegistryError, "seems no registry", "HOST[:PORT]",
    ),
    "no document": Row(
        Fault(WHERE, status=200, body=b"hello", headers={"Content-Type": media_types.OCI_MANIFEST}),
        DocumentError, "not valid JSON", "",
    ),
    "too large a manifest": Row(
        Fault(WHERE, status=200, body=b" " * (5 << 20)), BudgetError, "at most 4194304", ""
    ),
    "unauthorized": Row(
        Fault(WHERE, status=401, body=errors("UNAUTHORIZED", "authentication required")),
        AuthenticationError, "is not for everybody, or does not exist", "`layerfs login",
    ),
    "denied": Row(
        Fault(WHERE, status=403, body=errors("DENIED", "requested access to the resource is denied")),
        AuthenticationError, f"does not let us pull from {NAME} without credentials", "`layerfs login",
    ),
    "name unknown": Row(
        Fault(WHERE, status=404, body=errors("NAME_UNKNOWN", "repository name not known")),
        NotFoundError, f"has no repository {NAME}", "check the spelling",
    ),
    "manifest unknown": Row(
        Fault(WHERE, status=404, body=errors("MANIFEST_UNKNOWN", "manifest unknown")),
        NotFoundError, f"{NAME} has no image 1", "`layerfs tags",
    ),
    "no registry": Row(
        Fault(WHERE, status=404, body=b"<html>Not Found</html>"),
        NotFoundError, f"{NAME} does not exist there", "no registry at all",
    ),
    "too many requests": Row(
        Fault(WHERE, status=429, body=errors("TOOMANYREQUESTS", "slow down")),
        RateLimitError, "was asked too often", "try again later",
    ),
    "too many requests, for long": Row(
        Fault(WHERE, status=429, headers={"Retry-After": "3600"}),
        RateLimitError, "was asked too often", "try again in 60 minutes",
    ),
    "a fault of the registry": Row(
        Fault(WHERE, status=500, body=errors("UNKNOWN", "unknown error")),
        RegistryError, "failed (HTTP 500): unknown error", "try again later",
    ),
    "a gateway without its registry": Row(
        Fault(WHERE, status=502, body=b"<html>Bad Gateway</html>"),
        RegistryError, "failed (HTTP 502)", "try again later",
    ),
    "a service that is off": Row(
        Fault(WHERE, status=503, headers={"Retry-After": "1"}),
        RegistryError, "failed (HTTP 503)", "try again later",
    ),
    "an image of schema 1": Row(
        Fault(WHERE, status=200, body=b"{}", headers={"Content-Type": media_types.DOCKER_SCHEMA1_SIGNED}),
        LayerfsError, "schema 1", "skopeo",
    ),
    "a redirect without end": Row(
        Fault(WHERE, status=302, headers={"Location": f"/v2/{NAME}/manifests/1"}),
        RegistryError, "redirects without end", "",
    ),
    "a redirect to nowhere": Row(
        Fault(WHERE, status=302, headers={"Location": "gopher://x/"}),
        UntrustedError, "is not a URL of HTTP", "",
    ),
    "a redirect without a place": Row(
        Fault(WHERE, status=307), RegistryError, "does not say where to go on", ""
    ),
    "credentials in a way that nobody knows": Row(
        Fault(WHERE, status=401, headers={"WWW-Authenticate": "Negotiate"}),
        RegistryError, "in a way that is not known here (negotiate)", "",
    ),
    "terminal codes in a message": Row(
        Fault(WHERE, status=500, body=errors("UNKNOWN", "\x1b[2J\nrm -rf" + "x" * 5000)),
        RegistryError, "[2J rm -rf", "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LASTING)
def test_a_lasting_fault_is_one_clear_error(name: str, proxy: FaultProxy) -> None:
    fault, kind, message, hint = LASTING[name]
    proxy.add(fault._replace(times=ALWAYS))
    with pytest.raises(LayerfsError) as raised:
        manifests.get(open_repository(proxy.host), "1")
    assert isinstance(raised.value, kind), repr(raised.value)
    said = str(raised.value)
    assert message in said
    assert hint in (raised.value.hint or "")
    assert said.isprintable()
    assert len(said) < 600


PASSING = {
    "no answer": Fault(WHERE, silent=True),
    "a cut": Fault(WHERE, cut=20),
    "a reset": Fault(WHERE, cut=20, reset=True),
    "a stall": Fault(WHERE, stall=20),
    "a length that is too long": Fault(WHERE, promise=9),
    "too many requests": Fault(WHERE, status=429, headers={"Retry-After": "0"}),
    "a fault of the registry": Fault(WHERE, status=500),
    "a gateway without its registry": Fault(WHERE, status=502),
    "a service that is starting": Fault(WHERE, status=503),
}


@pytest.mark.parametrize("name", PASSING)
def test_a_passing_fault_is_not_seen(name: str, proxy: FaultProxy) -> None:
    proxy.add(PASSING[name]._replace(times=2))
    assert manifests.get(open_repository(proxy.host), "1")
    assert len(proxy.asked(WHERE)) == 3


@pytest.mark.parametrize("upward", [False, True])
def test_a_registry_that_starts_again_in_the_middle_is_waited_for(upward: bool, registry: Registry) -> None:
    content = Descriptor.to(b"restart %d" % upward, "text/plain")
    with contextlib.ExitStack() as later:
        with FaultProxy(registry.host) as first:
            repository = open_repository(first.host, attempts=8, backoff=0.02)
            manifest = put_artifact(repository)
            # No connection is left that could be gone on with.
            first.add(Fault("(GET|POST)", replace={"Connection": "close"}, times=ALWAYS))
            manifests.get(repository, "1")
            sent = Upload(
                repository, content, lambda: contextlib.nullcontext(io.BytesIO(b"restart %d" % upward))
            )
            with repository.send("POST", "blobs/uploads/", actions=("pull", "push"), expect=(202,)) as begun:
                sent._began(begun)
        port = int(first.host.rpartition(":")[2])
        second = threading.Timer(
            0.2, lambda: later.enter_context(FaultProxy(registry.host, port=port))
        )  # fmt: skip
        second.start()
        if upward:
            sent.send()
            assert fetch_whole(repository, content) == b"restart 1"
        else:
            assert fetch_whole(repository, manifest.layers[0]) == b"content"
        second.join()


def test_a_push_that_is_cut_for_good_tells_of_pushes(proxy: FaultProxy) -> None:
    proxy.add(Fault("(POST|PUT|PATCH) .*/blobs/", silent=True, times=ALWAYS))
    with pytest.raises(Interrupted) as raised:
        put_artifact(open_repository(proxy.host), b"never there", tag="again")
    assert raised.value.hint == "try again; blobs that arrived whole are not sent again"


def test_nothing_is_repeated_that_cannot_help(proxy: FaultProxy) -> None:
    proxy.add(Fault(WHERE, times=ALWAYS, status=403))
    with pytest.raises(AuthenticationError):
        manifests.get(open_repository(proxy.host), "1")
    assert len(proxy.asked(WHERE)) == 1


def test_a_manifest_is_pushed_again_after_a_cut(proxy: FaultProxy) -> None:
    proxy.add(Fault("PUT .*/manifests/", cut_upload=10), Fault("PUT .*/manifests/", status=500))
    put_artifact(open_repository(proxy.host), tag="again")
    assert len(proxy.asked("PUT .*/manifests/")) == 3


def test_a_body_that_comes_once_is_sent_once(proxy: FaultProxy) -> None:
    repository = open_repository(proxy.host)
    with repository.send("POST", "blobs/uploads/", actions=("pull", "push"), expect=(202,)) as begun:
        place = begun.location()
    proxy.add(Fault("PATCH", status=500, times=ALWAYS))
    with pytest.raises(RegistryError):
        repository.send("PATCH", place, body=iter([b"a", b"b"]), actions=("pull", "push"), expect=(202,))
    assert len(proxy.asked("PATCH")) == 1


# ---- where there is no answer


@contextlib.contextmanager
def listening(handle: Callable[[socket.socket], None]) -> Iterator[str]:
    """Serve one TCP connection after the other, and give HOST:PORT."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError):
                handle(self.request)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def failure(host: str, **options: object) -> LayerfsError:
    with pytest.raises(LayerfsError) as raised:
        manifests.get(open_repository(host, **options), "1")
    return raised.value


def test_nobody_listens() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{free.getsockname()[1]}"
        error = failure(host)
    assert isinstance(error, UnreachableError)
    assert str(error) == f"{host} refuses the connection"
    assert "is the registry running" in (error.hint or "")


def test_nobody_answers() -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        # Nobody accepts: the queue is full, and the kernel drops whoever comes now.
        waiting = [socket.socket() for _ in range(2)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(full.getsockname())
        error = failure(f"127.0.0.1:{full.getsockname()[1]}", connect_timeout=0.3, tls_verify=True)
        for each in waiting:
            each.close()
    assert "does not answer: the connection timed out" in str(error)
    assert "firewalls" in (error.hint or "")


def test_there_is_no_such_host() -> None:
    error = failure("no-such-host.invalid")
    assert isinstance(error, UnreachableError)
    assert "no-such-host.invalid" in str(error)
    assert "/etc/resolv.conf" in (error.hint or "")


def test_the_host_is_no_registry() -> None:
    def greet(connection: socket.socket) -> None:
        connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
        connection.recv(1000)

    with listening(greet) as host:
        error = failure(host)
    assert str(error) == f"{host} does not speak HTTP: something else than a registry answers there"
    assert "HOST[:PORT]" in (error.hint or "")


def test_a_plain_http_server_is_not_spoken_to_without_being_asked(registry: Registry) -> None:
    error = failure(registry.host, tls_verify=True)
    assert str(error) == f"{registry.host} does not speak HTTPS"
    assert "--tls-verify=false" in (error.hint or "")


def test_an_unknown_authority(tls_registry: Registry) -> None:
    error = failure(tls_registry.host)
    assert "authority that is not known" in str(error)
    assert f"/etc/containers/certs.d/{tls_registry.host}/ca.crt" in (error.hint or "")


def test_a_certificate_for_another_host(registries: Path, authority: Authority) -> None:
    with Registry(registries / "other-host", tls=authority.issue("other.example")) as registry:
        error = failure(registry.host, cert_dir=authority.certs_d("known"))
    assert "is for another host" in str(error)
    assert "127.0.0.1" in str(error)


def test_a_certificate_that_has_expired(registries: Path, authority: Authority) -> None:
    with Registry(registries / "expired", tls=authority.issue("127.0.0.1", days=-1)) as registry:
        error = failure(registry.host, cert_dir=authority.certs_d("known"))
    assert "has expired" in str(error)
    assert "clock" in (error.hint or "")


def test_a_file_of_certificates_that_holds_none(tls_registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_text("nothing")
    error = failure(tls_registry.host, cert_dir=tmp_path)
    assert str(tmp_path / "ca.crt") in str(error)


def test_a_directory_of_certificates_that_is_not_there(tls_registry: Registry, tmp_path: Path) -> None:
    error = failure(tls_registry.host, cert_dir=tmp_path / "none")
    assert str(tmp_path / "none") in str(error)
    (tmp_path / "client.cert").write_text("")
    error = failure(tls_registry.host, cert_dir=tmp_path)
    assert "client.cert has no .key beside it" in str(error)


# ---- proxies of the environment


class _Forward(http.server.BaseHTTPRequestHandler):
    """A proxy that lets everything through to one registry, whatever it is called; or refuses."""

    protocol_version = "HTTP/1.1"
    registry = ""
    status = 200
    seen: list[tuple[str, str, str | None]]

    def log_message(self, *_: object) -> None:
        pass

    def _handle(self) -> None:
        self.seen.append((self.command, self.path, self.headers.get("Proxy-Authorization")))
        if self.status != 200:
            self.send_response(self.status)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        host, _, port = self.registry.partition(":")
        with socket.create_connection((host, int(port))) as far:
            if self.command == "CONNECT":
                self.send_response(200)
                self.end_headers()
            else:
                path = "/" + self.path.partition("://")[2].partition("/")[2]
                fields = {**self.headers, "Connection": "close"}
                lines = [f"{self.command} {path} HTTP/1.1", *(f"{k}: {v}" for k, v in fields.items())]
                far.sendall("\r\n".join([*lines, "", ""]).encode())
                self.close_connection = True
            back = threading.Thread(target=self._pump, args=(far, self.connection), daemon=True)
            back.start()
            if self.command == "CONNECT":
                self._pump(self.connection, far)
            back.join()
        self.close_connection = True

    do_GET = do_HEAD = do_CONNECT = _handle

    @staticmethod
    def _pump(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def forward_proxy(registry: Registry, *, status: int = 200) -> Iterator[tuple[str, type[_Forward]]]:
    class Handler(_Forward):
        seen: list[tuple[str, str, str | None]] = []  # noqa: RUF012

    Handler.registry, Handler.status = registry.host, status
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"127.0.0.1:{server.server_port}", Handler
        server.shutdown()


def test_registries_are_reached_through_the_proxy_of_the_environment(
    registries: Path, authority: Authority, registry: Registry
) -> None:
    put_artifact(open_repository(registry.host))
    with forward_proxy(registry) as (proxy, handler):
        environment = {"HTTP_PROXY": f"http://us%40er:secret@{proxy}", "HTTPS_PROXY": "http://127.0.0.1:1"}
        options = Options(environment=environment, tls_verify=False, **QUICK)  # type: ignore[arg-type]
        # HTTPS is tried first, through a proxy that nobody runs.
        repository = Session(options).repository(Reference.parse(f"registry.test/{NAME}:1"))
        assert manifests.get(repository, "1")
        assert handler.seen[-1][:2] == ("GET", f"http://registry.test/v2/{NAME}/manifests/1")
        assert handler.seen[-1][2] == "Basic dXNAZXI6c2VjcmV0"
    tls = authority.issue("registry.test")
    with Registry(registries / "proxied", tls=tls) as secure, forward_proxy(secure) as (proxy, handler):
        put_artifact(open_repository(secure.host, tls_verify=False))
        repository = open_repository(
            "registry.test", environment={"https_proxy": proxy}, cert_dir=authority.certs_d("known")
        )
        assert manifests.get(repository, "1")
        assert handler.seen == [("CONNECT", "registry.test:443", None)]


@pytest.mark.parametrize(
    ("status", "message", "hint"),
    [
        (407, "wants a user name and a password", "HTTPS_PROXY=http://USER:PASSWORD@"),
        (403, "refuses a connection to registry.test (HTTP 403)", "NO_PROXY"),
    ],
)
def test_a_proxy_that_refuses(status: int, message: str, hint: str, registry: Registry) -> None:
    with forward_proxy(registry, status=status) as (proxy, _):
        error = failure("registry.test", environment={"HTTPS_PROXY": f"http://user:secret@{proxy}"})
    assert message in str(error)
    assert hint in (error.hint or "")
    assert "secret" not in f"{error}{error.hint}"


@pytest.mark.parametrize(
    ("host", "exceptions", "direct"),
    [
        ("2001:db8::1", "x, 2001:DB8:0::1", True),
        ("2001:db8::1", "[2001:db8::1]:443", True),
        ("2001:db8::1", "[2001:db8::1]:80,[2001:db8::2]", False),
        ("2001:db8::1", "2001:db8::/32", True),
        ("10.0.0.1", "10.0.0.1", True),
        ("10.0.0.1", "10.0.0.0/8", True),
        ("10.0.0.1", "0.0.0.1,.0.0.1", False),
        ("a.example.com", ".example.com", True),
        ("example.com", ".example.com", False),
        ("a.example.com", "example.com:443", True),
        ("a.example.com", "example.com:80,xample.com", False),
        ("a.example.com", "*", True),
    ],
)
def test_what_no_proxy_names_is_reached_directly(host: str, exceptions: str, direct: bool) -> None:
    environment = {"HTTPS_PROXY": "http://proxy.test:3128", "NO_PROXY": exceptions}
    found = proxies.proxy_for(Origin("https", host, 443), environment)
    assert (found is None) is direct


def test_a_proxy_of_another_kind_is_refused() -> None:
    error = failure("registry.test", environment={"HTTPS_PROXY": "socks5://user:secret@127.0.0.1:1080"})
    assert str(error) == "the environment names a proxy of the kind 'socks5'"
    assert error.hint == "HTTPS_PROXY=http://HOST:PORT is of the form that is known"


def test_a_proxy_that_is_not_there() -> None:
    error = failure("registry.test", environment={"HTTPS_PROXY": "http://127.0.0.1:1"})
    assert str(error) == "the proxy http://127.0.0.1:1, on the way to registry.test, cannot be reached"
    assert "NO_PROXY" in (error.hint or "")


def test_this_machine_and_what_no_proxy_names_are_reached_directly(registry: Registry) -> None:
    put_artifact(open_repository(registry.host))
    environment = {"HTTP_PROXY": "http://127.0.0.1:1", "HTTPS_PROXY": "http://127.0.0.1:1"}
    assert manifests.get(open_repository(registry.host, environment=environment), "1")
    error = failure("a.registry.invalid", environment={**environment, "NO_PROXY": "x,registry.invalid"})
    assert "proxy" not in str(error)


# ---- where answers lead


@pytest.fixture
def basic_proxy(basic_registry: Registry) -> Iterator[FaultProxy]:
    with FaultProxy(basic_registry.host) as started:
        put_artifact(open_repository(started.host, creds=Credentials(USER, PASSWORD)))
        started.clear()
        yield started


def test_a_redirect_to_another_host_takes_no_credentials_along(
    basic_proxy: FaultProxy, registry: Registry
) -> None:
    put_artifact(open_repository(registry.host))
    with FaultProxy(registry.host, name="localhost") as elsewhere:
        basic_proxy.add(Fault(WHERE, elsewhere=f"http://{elsewhere.host}", after=1))
        repository = open_repository(basic_proxy.host, creds=Credentials(USER, PASSWORD))
        assert manifests.get(repository, "1")
        assert "Authorization" in basic_proxy.requests[-1].headers
        assert [seen.path for seen in elsewhere.requests] == [f"/v2/{NAME}/manifests/1"]
        assert "Authorization" not in elsewhere.requests[0].headers


def test_another_host_that_wants_credentials_gets_none(basic_proxy: FaultProxy) -> None:
    with FaultProxy(basic_proxy.upstream, name="localhost") as elsewhere:
        basic_proxy.add(Fault(WHERE, elsewhere=f"http://{elsewhere.host}", after=1))
        error = failure(basic_proxy.host, creds=Credentials(USER, PASSWORD))
        assert isinstance(error, AuthenticationError)
        assert not [seen for seen in elsewhere.requests if "Authorization" in seen.headers]


def test_the_url_of_a_foreign_layer_gets_no_credentials(basic_proxy: FaultProxy, registry: Registry) -> None:
    blob = put_artifact(open_repository(registry.host)).layers[0]
    with FaultProxy(registry.host, name="localhost") as elsewhere:
        repository = open_repository(basic_proxy.host, creds=Credentials(USER, PASSWORD))
        manifests.get(repository, "1")
        url = f"http://{elsewhere.host}/v2/{NAME}/blobs/{blob.digest}"
        with repository.send("GET", url) as answer:
            assert answer.data(100) == b"content"
        assert "Authorization" not in elsewhere.requests[0].headers


@pytest.mark.parametrize(
    ("realm", "message"),
    [
        ("http://auth.example.com/token", "without TLS"),
        ("https://192.0.2.1/token", "an address, not a name"),
        ("https://[::1]/token", "an address, not a name"),
        ("https://2130706433/token", "an address, not a name"),
        ("https://localhost/token", "an address, not a name"),
        ("https://user:pass@auth.example.com/token", "carries a user name"),
        ("file:///etc/passwd", "is not a URL of HTTP"),
    ],
)
def test_credentials_go_to_no_odd_token_server(
    realm: str, message: str, registries: Path, authority: Authority, tls_registry: Registry
) -> None:
    """As registry.test, through a proxy, a registry of TLS asks for a token from `realm`."""
    with (
        FaultProxy(tls_registry.host) as _,
        _challenging(realm, authority) as host,
        _tunnel(host) as proxy,
    ):
        error = failure(
            "registry.test", environment={"HTTPS_PROXY": proxy}, cert_dir=authority.certs_d("known"),
            creds=Credentials(USER, PASSWORD),
        )  # fmt: skip
    assert isinstance(error, UntrustedError), repr(error)
    assert message in str(error)
    assert PASSWORD not in str(error)


@contextlib.contextmanager
def _challenging(realm: str, authority: Authority) -> Iterator[str]:
    """Run a server of TLS that is called registry.test and always asks for a token."""
    import ssl

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(401)
            self.send_header("WWW-Authenticate", f'Bearer realm="{realm}",service="x"')
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    pair = authority.issue("registry.test")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pair.certificate, pair.key)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


@contextlib.contextmanager
def _tunnel(host: str) -> Iterator[str]:
    class Handler(_Forward):
        seen: list[tuple[str, str, str | None]] = []  # noqa: RUF012

    Handler.registry = host
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


# ---- token servers


@pytest.fixture
def token_proxy(token_registry: Registry) -> Iterator[FaultProxy]:
    with FaultProxy(token_registry.host) as started:
        put_artifact(open_repository(started.host, creds=Credentials(USER, PASSWORD)))
        started.clear()
        yield started


def test_a_token_that_is_refused_in_between_is_fetched_anew(
    token_proxy: FaultProxy, token_server: TokenServer
) -> None:
    repository = open_repository(token_proxy.host, creds=Credentials(USER, PASSWORD))
    manifests.get(repository, "1")
    token_server.requests.clear()
    challenge = f'Bearer realm="{token_server.url}",service="{SERVICE}",error="invalid_token"'
    token_proxy.add(Fault(WHERE, status=401, headers={"WWW-Authenticate": challenge}))
    assert manifests.get(repository, "1")
    assert len(token_server.requests) == 1


def test_a_right_that_is_lacking_is_told_and_not_asked_for_without_end(
    token_proxy: FaultProxy, token_server: TokenServer
) -> None:
    repository = open_repository(token_proxy.host, creds=Credentials(USER, PASSWORD))
    challenge = f'Bearer realm="{token_server.url}",service="{SERVICE}",error="insufficient_scope"'
    token_proxy.add(
        Fault(WHERE, times=ALWAYS, status=401, headers={"WWW-Authenticate": challenge},
              body=errors("UNAUTHORIZED", "access denied"))
    )  # fmt: skip
    with pytest.raises(AuthenticationError, match="does not let us pull from") as refused:
        manifests.get(repository, "1")
    assert "signs in as somebody else" in (refused.value.hint or "")
    assert len(token_proxy.asked(WHERE)) <= 3


def test_a_wrong_password_is_told_and_not_shown(token_proxy: FaultProxy) -> None:
    error = failure(token_proxy.host, creds=Credentials(USER, "queen of hearts"))
    assert isinstance(error, AuthenticationError)
    assert "does not accept the user name or the password of alice" in str(error)
    assert "queen" not in f"{error}{error.hint}{error!r}"


def test_a_token_server_that_fails_is_told(token_proxy: FaultProxy, token_server: TokenServer) -> None:
    with FaultProxy(token_server.url.partition("://")[2].partition("/")[0]) as tokens:
        challenge = f'Bearer realm="http://{tokens.host}/token",service="{SERVICE}"'
        token_proxy.add(Fault(WHERE, times=ALWAYS, status=401, headers={"WWW-Authenticate": challenge}))
        for fault, message in (
            (Fault("/token", status=500), "failed (HTTP 500)"),
            (Fault("/token", status=200, body=b"{}"), "an answer without a token"),
            (Fault("/token", status=200, body=b"<html>"), "an answer without a token"),
            (Fault("/token", silent=True), "cut the connection"),
        ):
            tokens.clear()
            tokens.add(fault._replace(times=ALWAYS))
            error = failure(token_proxy.host, creds=Credentials(USER, PASSWORD))
            assert message in str(error)
            assert tokens.host in str(error)


def test_what_a_registry_echoes_of_our_secrets_is_not_shown(basic_proxy: FaultProxy) -> None:
    body = errors("UNKNOWN", f"bad password {PASSWORD} in Basic YWxpY2U6d29uZGVybGFuZA==")
    basic_proxy.add(Fault(WHERE, times=ALWAYS, after=1, status=400, body=body))
    error = failure(basic_proxy.host, creds=Credentials(USER, PASSWORD))
    assert "bad password *** in Basic ***" in str(error)
