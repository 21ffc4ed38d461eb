"""One blob on its way into a registry (distribution-spec, "Push"): mounted, or sent and gone on with."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Final

from layerfs.errors import (
    AuthenticationError,
    Interrupted,
    NotFoundError,
    RegistryError,
    UnreachableError,
    VerificationError,
)
from layerfs.registry.ranges import Cuts
from layerfs.streams import Skips

if TYPE_CHECKING:
    from layerfs.compression import Readable
    from layerfs.oci.descriptor import Descriptor
    from layerfs.reference import Reference
    from layerfs.registry.answer import Answer
    from layerfs.registry.repository import Repository

_PUSH: Final = ("pull", "push")
_UPLOADS: Final = "blobs/uploads/"
_READ: Final = 1 << 18
# Bytes of a request where a server takes no large ones.
_CHUNK: Final = 8 << 20
_BYTES: Final = {"Content-Type": "application/octet-stream"}
# Repositories that are asked for a blob before it is sent.
_ASKED: Final = 3


def exists(repository: Repository, descriptor: Descriptor) -> bool:
    """Say whether the repository has a blob, with the right size as far as it tells.

    Raises:
        TransportError: as `Repository.send`.
    """
    try:
        answer = repository.send("HEAD", f"blobs/{descriptor.digest}", actions=_PUSH, expect=(200, 404))
    except NotFoundError:
        return False
    with answer:
        return answer.status == 200 and answer.headers.get("Content-Length") in (None, str(descriptor.size))


class Upload:
    """The upload of one blob.

    Args:
        opens: opens its bytes, again for each attempt; what they are is proven by the registry.
        advance: told how many bytes went out, each once.
        check: called between two pieces; ends the upload by raising.
    """

    def __init__(
        self,
        repository: Repository,
        descriptor: Descriptor,
        opens: Callable[[], AbstractContextManager[Readable]],
        *,
        advance: Callable[[int], object] = lambda count: None,
        check: Callable[[], object] = lambda: None,
    ) -> None:
        self._repository = repository
        self._descriptor = descriptor
        self._opens = opens
        self._advance = advance
        self._check = check
        self._shown = 0
        self._location: str | None = None
        self._least = 0
        self._chunked = False
        self._failed: BaseException | None = None

    def mount(self, origins: Iterable[Reference]) -> bool:
        """Have the blob taken over from another repository of the same registry, if one has it.

        Raises:
            TransportError: as `Repository.send`.
        """
        here = self._repository.reference
        asked = 0
        for origin in origins:
            if origin.host != here.host or origin.repository == here.repository or asked == _ASKED:
                continue
            asked += 1
            self._give_up()
            query = (("mount", str(self._descriptor.digest)), ("from", origin.repository))
            try:
                answer = self._repository.send(
                    "POST", _UPLOADS, query=query, actions=_PUSH, expect=(201, 202),
                    also_from=origin.repository,
                )  # fmt: skip
            except (AuthenticationError, NotFoundError):
                # It may not be read by whom we are; to write here we may be allowed all the same.
                continue
            with answer:
                if answer.status == 201:
                    return True
                self._began(answer)
        return False

    def send(self) -> None:
        """Send the blob: in one request where that is taken, and from where it was cut the next time.

        Raises:
            VerificationError: the bytes are fewer, or do not have the digest, as the registry finds.
            TransportError: it does not take them, or cannot be reached.
        """
        cuts = Cuts()
        offset = furthest = 0
        while True:
            if self._location is None:
                offset = 0
                with self._repository.send("POST", _UPLOADS, actions=_PUSH, expect=(202,)) as answer:
                    self._began(answer)
            try:
                if offset == 0 and not self._chunked:
                    self._put_whole()
                else:
                    self._patch(offset)
                return
            except (UnreachableError, RegistryError) as error:
                if isinstance(error, AuthenticationError) or self._is_final(error):
                    raise self._explained(error) from error
                offset = self._reached() if isinstance(error, UnreachableError) else 0
                # A registry that forgets and remembers by turns gets nowhere.
                if offset > furthest:
                    furthest = offset
                    cuts.progress()
                cuts.note(error)

    # -- requests

    def _put_whole(self) -> None:
        size = self._descriptor.size
        headers = {**_BYTES, "Content-Length": str(size)}
        self._put(headers, functools.partial(self._pieces, 0, size))

    def _patch(self, offset: int) -> None:
        """Send from an offset on, in chunks if need be, and say that this is all."""
        size = self._descriptor.size
        chunk = max(_CHUNK, self._least) if self._chunked else size
        while offset < size:
            end = min(size, offset + chunk)
            headers = {
                **_BYTES, "Content-Length": str(end - offset), "Content-Range": f"{offset}-{end - 1}"
            }  # fmt: skip
            body = functools.partial(self._pieces, offset, end)
            with self._request("PATCH", headers=headers, body=body, expect=(202,)) as answer:
                self._began(answer)
            offset = end
        self._put({"Content-Length": "0"}, None)

    def _put(self, headers: dict[str, str], body: Callable[[], Iterable[bytes]] | None) -> None:
        query = (("digest", str(self._descriptor.digest)),)
        with self._request("PUT", query=query, headers=headers, body=body, expect=(201, 202, 204)):
            pass

    def _request(
        self,
        method: str,
        *,
        query: tuple[tuple[str, str], ...] = (),
        headers: dict[str, str],
        body: Callable[[], Iterable[bytes]] | None,
        expect: tuple[int, ...],
    ) -> Answer:
        assert self._location is not None
        self._failed = None
        try:
            return self._repository.send(
                method, self._location, query=query, headers=headers, body=body, actions=_PUSH,
                expect=expect, retry=False,
            )  # fmt: skip
        except Exception as error:
            # Of whatever kind: what our own bytes could not be read for looks like a fault of the connection.
            if self._failed is not None:
                raise self._failed from error
            raise

    def _began(self, answer: Answer) -> None:
        self._location = answer.location()
        least = answer.headers.get("OCI-Chunk-Min-Length") or ""
        self._least = int(least) if re.fullmatch(r"\d{1,12}", least) else self._least

    def _reached(self) -> int:
        """Ask how far the upload came; 0 makes a new one."""
        assert self._location is not None
        try:
            with self._repository.send(
                "GET", self._location, actions=_PUSH, expect=(204, 202, 200)
            ) as answer:
                found = re.fullmatch(r"(?:bytes=)?0-(\d{1,18})", answer.headers.get("Range") or "")
                self._began(answer)
        except (RegistryError, NotFoundError, Interrupted):
            found = None
        # 0-0 stands for one byte, and in many registries for none.
        if found is None or found[1] == "0" or int(found[1]) >= self._descriptor.size:
            self._give_up()
            return 0
        return int(found[1]) + 1

    def _give_up(self) -> None:
        """Forget an upload that was begun; the registry clears it away."""
        self._location = None

    # -- what goes wrong

    def _is_final(self, error: Exception) -> bool:
        if isinstance(error, UnreachableError):
            return error.lasting
        assert isinstance(error, RegistryError)
        self._give_up()
        if error.status == 413 and not self._chunked:
            self._chunked = True
            return False
        return error.status < 500 and error.status not in (404, 408, 416, 429)

    def _explained(self, error: Exception) -> Exception:
        if isinstance(error, RegistryError) and "DIGEST_INVALID" in error.codes:
            return VerificationError(
                f"{self._repository.reference.host} finds that the bytes are not {self._descriptor.digest}",
                hint="layerfs check --contents tells whether the store is damaged",
            )
        return error

    # -- bytes

    def _pieces(self, start: int, end: int) -> Iterator[bytes]:
        """Give the bytes from `start` to before `end`, out of the stream opened anew."""
        try:
            with self._opens() as stream:
                position = self._skip(stream, start)
                while position < end:
                    self._check()
                    data = stream.read(min(_READ, end - position))
                    if not data:
                        raise VerificationError(f"{self._descriptor.digest} ended after {position} bytes")
                    position += len(data)
                    yield data
                    self._advance(max(0, position - self._shown))
                    self._shown = max(position, self._shown)
        except GeneratorExit:
            raise
        except BaseException as error:
            # Of whatever kind: it must not be taken for an error of the connection.
            self._failed = error
            raise

    def _skip(self, stream: Readable, count: int) -> int:
        if count and isinstance(stream, Skips):
            stream.skip(count)
            return count
        position = 0
        while position < count and (data := stream.read(min(_READ, count - position))):
            position += len(data)
        return position
