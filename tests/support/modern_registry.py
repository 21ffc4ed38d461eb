"""A registry of distribution-spec 1.1 in memory: with the referrers API, and digests of every algorithm."""

from __future__ import annotations

import itertools
import json
import re
from typing import Any
from urllib.parse import parse_qs

from layerfs.digest import Digest
from tests.support.scripted import Asked, answer

_INDEX = "application/vnd.oci.image.index.v1+json"
_PATH = re.compile(r"/v2/(.+?)/(blobs/uploads|blobs|manifests|referrers|tags)/([^/]*)")


class ModernRegistry:
    """The answers, for `scripted.Scripted`; all repositories are one.

    Args:
        filters: choose referrers by their type when asked to; a registry need not.
        page: referrers in one answer.
    """

    def __init__(self, *, filters: bool = True, page: int = 100) -> None:
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, tuple[bytes, str]] = {}
        self.tags: dict[str, str] = {}
        self._uploads: dict[str, bytes] = {}
        self._numbers = itertools.count()
        self._filters = filters
        self._page = page

    def put(self, raw: bytes, media_type: str, *tags: str) -> str:
        """Have a manifest, by its digest and tags."""
        digest = str(Digest.of(raw))
        self.manifests[digest] = (raw, media_type)
        self.tags |= dict.fromkeys(tags, digest)
        return digest

    def add(self, data: bytes) -> str:
        """Have a blob."""
        digest = str(Digest.of(data))
        self.blobs[digest] = data
        return digest

    def __call__(self, asked: Asked) -> bytes:
        path, _, text = asked.target.partition("?")
        query = {name: values[0] for name, values in parse_qs(text).items()}
        if path == "/v2/":
            return answer(200, b"{}", Content_Type="application/json")
        found = _PATH.fullmatch(path)
        if found is None:
            return _refused(404, "NAME_UNKNOWN")
        does = {
            "blobs/uploads": self._upload, "blobs": self._blob, "manifests": self._manifest,
            "referrers": self._referrers, "tags": self._tags,
        }  # fmt: skip
        whole = does[found[2]](asked, found[1], found[3], query)
        return whole.partition(b"\r\n\r\n")[0] + b"\r\n\r\n" if asked.method == "HEAD" else whole

    def _upload(self, asked: Asked, name: str, number: str, query: dict[str, str]) -> bytes:
        if asked.method == "POST":
            number = str(next(self._numbers))
            self._uploads[number] = b""
        elif number not in self._uploads:
            return _refused(404, "BLOB_UPLOAD_UNKNOWN")
        self._uploads[number] += asked.body
        if asked.method == "PUT":
            data = self._uploads.pop(number)
            digest = Digest.parse(query["digest"])
            if Digest.of(data, digest.algorithm) != digest:
                return _refused(400, "DIGEST_INVALID")
            self.blobs[str(digest)] = data
            return answer(201, Location=f"/v2/{name}/blobs/{digest}")
        reached = max(len(self._uploads[number]) - 1, 0)
        return answer(
            204 if asked.method == "GET" else 202,
            Location=f"/v2/{name}/blobs/uploads/{number}",
            Range=f"0-{reached}",
        )

    def _blob(self, asked: Asked, name: str, digest: str, query: dict[str, str]) -> bytes:
        if digest not in self.blobs:
            return _refused(404, "BLOB_UNKNOWN")
        data = self.blobs[digest]
        wanted = asked.headers.get("range")
        if wanted is None:
            return answer(200, data, Accept_Ranges="bytes")
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        part = data[int(first) : int(last) + 1 if last else len(data)]
        given = f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}"
        return answer(206, part, Content_Range=given, Accept_Ranges="bytes")

    def _manifest(self, asked: Asked, name: str, what: str, query: dict[str, str]) -> bytes:
        if asked.method == "PUT":
            digest = Digest.parse(what) if ":" in what else Digest.of(asked.body)
            if Digest.of(asked.body, digest.algorithm) != digest:
                return _refused(400, "DIGEST_INVALID")
            self.manifests[str(digest)] = (asked.body, asked.headers["content-type"])
            if ":" not in what:
                self.tags[what] = str(digest)
            subject = json.loads(asked.body).get("subject")
            more = {"OCI_Subject": subject["digest"]} if subject else {}
            return answer(201, Docker_Content_Digest=str(digest), **more)
        digest_text = self.tags.get(what, what)
        if digest_text not in self.manifests:
            return _refused(404, "MANIFEST_UNKNOWN")
        if asked.method == "DELETE":
            del self.manifests[digest_text]
            self.tags = {tag: there for tag, there in self.tags.items() if there != digest_text}
            return answer(202)
        raw, media_type = self.manifests[digest_text]
        return answer(200, raw, Content_Type=media_type, Docker_Content_Digest=digest_text)

    def _referrers(self, asked: Asked, name: str, subject: str, query: dict[str, str]) -> bytes:
        found = [
            _described(raw, media_type)
            for raw, media_type in self.manifests.values()
            if (json.loads(raw).get("subject") or {}).get("digest") == subject
        ]
        more: dict[str, str] = {}
        if "artifactType" in query and self._filters:
            found = [each for each in found if each["artifactType"] == query["artifactType"]]
            more["OCI_Filters_Applied"] = "artifactType"
        start = int(query.get("from", "0"))
        if start + self._page < len(found):
            more["Link"] = f'<{asked.target.partition("?")[0]}?from={start + self._page}>; rel="next"'
        document = {
            "schemaVersion": 2, "mediaType": _INDEX, "manifests": found[start : start + self._page]
        }  # fmt: skip
        return answer(200, json.dumps(document).encode(), Content_Type=_INDEX, **more)

    def _tags(self, asked: Asked, name: str, what: str, query: dict[str, str]) -> bytes:
        body = json.dumps({"name": name, "tags": sorted(self.tags)}).encode()
        return answer(200, body, Content_Type="application/json")


def _described(raw: bytes, media_type: str) -> dict[str, Any]:
    members = json.loads(raw)
    kind = members.get("artifactType") or members["config"]["mediaType"]
    return {
        "mediaType": media_type, "digest": str(Digest.of(raw)), "size": len(raw), "artifactType": kind,
        "annotations": members.get("annotations") or {},
    }  # fmt: skip


def _refused(status: int, code: str) -> bytes:
    body = json.dumps({"errors": [{"code": code, "message": code.lower()}]}).encode()
    return answer(status, body, Content_Type="application/json")
