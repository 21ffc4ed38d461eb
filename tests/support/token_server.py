"""A token server of the tests: what distribution's auth/token.md and auth/oauth.md describe, with RS256."""

from __future__ import annotations

import base64
import json
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self
from urllib.parse import parse_qsl, urlsplit

from tests.support.authority import Pair, openssl

ISSUER = "tests"
SERVICE = "registry of the tests"


class TokenRequest(NamedTuple):
    """What the server was asked: by whom (None: nobody), for which scopes, and how."""

    user: str | None
    scopes: tuple[str, ...]
    method: str


class TokenServer:
    """Gives everybody pull in ``public/...``, and its users everything; a context manager.

    `users` are passwords by name, `refresh_tokens` names by token. `lifetime` is told as ``expires_in``;
    None says nothing of it.
    """

    def __init__(self, directory: Path, *, tls: Pair | None = None) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._key = directory / "token.pem"
        self.certificate = directory / "token.crt"
        openssl(
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=tokens",
            "-keyout", self._key, "-out", self.certificate,
        )  # fmt: skip
        self.users = {"alice": "wonderland"}
        self.refresh_tokens = {"identity-of-alice": "alice"}
        self.lifetime: int | None = 300
        self.requests: list[TokenRequest] = []
        self._number = 0
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                fields = parse_qsl(urlsplit(self.path).query)
                user = None
                given = self.headers.get("Authorization", "")
                if given.startswith("Basic "):
                    user, _, password = base64.b64decode(given[6:]).decode().partition(":")
                    if server.users.get(user) != password:
                        return self._say(401, {"details": "incorrect username or password"})
                scopes = [value for name, value in fields if name == "scope"]
                return self._grant(user, scopes)

            def do_POST(self) -> None:
                fields = dict(parse_qsl(self.rfile.read(int(self.headers["Content-Length"])).decode()))
                user = server.refresh_tokens.get(fields.get("refresh_token", ""))
                if user is None:
                    return self._say(401, {"error_description": "unknown refresh token"})
                return self._grant(user, fields.get("scope", "").split())

            def _grant(self, user: str | None, scopes: list[str]) -> None:
                server.requests.append(TokenRequest(user, tuple(scopes), self.command))
                answer: dict[str, object] = {"token": server.token(user, scopes)}
                if server.lifetime is not None:
                    answer["expires_in"] = server.lifetime
                self._say(200, answer)

            def _say(self, status: int, value: object) -> None:
                data = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        if tls is not None:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(tls.certificate, tls.key)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self._server.server_port}/token"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def token(self, user: str | None, scopes: list[str]) -> str:
        """Sign what the user may do of `scopes`."""
        access = []
        for scope in scopes:
            kind, _, rest = scope.partition(":")
            name, _, actions = rest.rpartition(":")
            allowed = [a for a in actions.split(",") if user or (a == "pull" and name.startswith("public/"))]
            access.append({"type": kind, "name": name, "actions": allowed})
        now = int(time.time())
        self._number += 1
        der = openssl("x509", "-in", self.certificate, "-outform", "DER")
        head = {"typ": "JWT", "alg": "RS256", "x5c": [base64.b64encode(der).decode()]}
        claims = {
            "iss": ISSUER, "sub": user or "", "aud": SERVICE, "exp": now + 300, "nbf": now - 5, "iat": now,
            "jti": str(self._number), "access": access,
        }  # fmt: skip
        signed = f"{_encode(json.dumps(head).encode())}.{_encode(json.dumps(claims).encode())}"
        return f"{signed}.{_encode(openssl('dgst', '-sha256', '-sign', self._key, stdin=signed.encode()))}"

    def settings(self) -> dict[str, Any]:
        """Give the registry's configuration of its auth."""
        return {
            "token": {
                "realm": self.url, "service": SERVICE, "issuer": ISSUER,
                "rootcertbundle": str(self.certificate),
            }
        }  # fmt: skip

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
