"""Images: names, ids, and what goes when one is removed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.digest import Digest
from layerfs.errors import ArchiveError, InUseError, InvalidError, NotFoundError
from layerfs.images import Image, familiar, full_name, seconds
from layerfs.instructions import apply_instructions
from layerfs.leases import Lease
from layerfs.oci.config import History, ImageConfig
from layerfs.oci.descriptor import Descriptor
from layerfs.oci.manifest import Manifest
from layerfs.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "root", driver="vfs", durability="none") as opened:
        yield opened


def make_tree(directory: Path, text: str) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "file").write_text(text)
    return directory


def image(store: Store, tmp_path: Path, name: str, text: str = "text") -> Image:
    return store.import_tree(make_tree(tmp_path / f"tree-{text}", text), name, message="made here")


def test_an_image_is_found_by_everything_that_names_it(store: Store, tmp_path: Path) -> None:
    made = image(store, tmp_path, "app")
    assert made.names == ("app:latest",)
    for ref in (
        "app",
        "app:latest",
        "docker.io/library/app:latest",
        f"app@{made.digest}",
        str(made.digest),
        str(made.id),
        made.id.hex,
        made.id.hex[:12],
        f"sha256:{made.id.hex[:8]}",
    ):
        assert store.images.get(ref) == made, ref
    for ref in ("other", "app:2", "ffffffffffff", f"app@{Digest.of(b'x')}", "Not A Name"):
        with pytest.raises(NotFoundError):
            store.images.get(ref)


def test_a_name_without_a_host_may_be_one_of_localhost(store: Store, tmp_path: Path) -> None:
    local = image(store, tmp_path, "localhost/system:1", "local")
    for ref in ("system:1", "localhost/system:1"):
        assert store.images.get(ref).id == local.id
    assert store.containers.create("system:1", name="box").image == "localhost/system:1"
    for ref in ("docker.io/system:1", "docker.io/library/system:1", "quay.io/system:1", "system"):
        with pytest.raises(NotFoundError):
            store.images.get(ref)
    store.save(["system:1"], tmp_path / "saved.tar")
    assert store.load(tmp_path / "saved.tar")[0].names == ("localhost/system:1",)
    store.images.tag("system:1", "team/app:1")
    assert store.images.get("localhost/system:1").names == ("team/app:1", "localhost/system:1")
    # The exact name wins from the moment that it is there.
    exact = image(store, tmp_path, "system:1", "exact")
    assert store.images.get("system:1").id == exact.id
    assert store.images.get("localhost/system:1").id == local.id
    assert store.images.remove("system:1")[0] == "Untagged: system:1"
    assert store.images.remove("system:1")[0] == "Untagged: localhost/system:1"


@pytest.mark.parametrize("called", ["sistem:1", "system", "system:2", "localhost/system"])
def test_whoever_mistypes_a_name_is_asked_whether_he_meant_another(
    store: Store, tmp_path: Path, called: str
) -> None:
    image(store, tmp_path, "localhost/system:1")
    store.containers.create("system:1", name="webserver")
    for ask in (store.images.get, store.containers.create, lambda ref: store.mount(ref, tmp_path / "place")):
        with pytest.raises(NotFoundError) as raised:
            ask(called)
        assert (raised.value.hint or "").startswith("did you mean localhost/system:1?")
    for find in (store.containers.get, lambda ref: store.mount(ref, tmp_path / "place")):
        with pytest.raises(NotFoundError) as raised:
            find("websrver")
        assert raised.value.hint == "did you mean webserver?"
    with pytest.raises(NotFoundError) as raised:
        store.images.get("quite-another")
    assert raised.value.hint == "layerfs images lists what there is"


def test_the_start_of_several_ids_is_refused(store: Store, tmp_path: Path) -> None:
    starts: set[str] = set()
    # With 257 images at the latest two ids begin alike.
    while len(starts) == len(store.images.list()):
        number = len(starts)
        starts.add(image(store, tmp_path, f"app{number}", f"text {number}").id.hex[:2])
        ambiguous = store.images.get(f"app{number}").id.hex[:2]
    with pytest.raises(InvalidError, match="several"):
        store.images.get(ambiguous)


def test_a_name_moves_to_the_image_that_gets_it(store: Store, tmp_path: Path) -> None:
    first = image(store, tmp_path, "app", "one")
    second = image(store, tmp_path, "app", "two")
    assert store.images.get("app").digest == second.digest
    assert store.images.get(str(first.digest)).names == ()
    again = store.images.tag(first.id.hex, "app")
    assert again.names == ("app:latest",)
    assert store.images.get(str(second.digest)).names == ()
    with pytest.raises(NotFoundError):
        store.images.tag("nothing", "x")
    with pytest.raises(InvalidError):
        store.images.tag("app", "Upper Case")


def test_the_last_name_takes_the_image_its_layers_and_blobs_along(store: Store, tmp_path: Path) -> None:
    made = image(store, tmp_path, "app")
    store.images.tag("app", "other:1")
    assert store.images.remove("app") == ["Untagged: app:latest"]
    lines = store.images.remove("other:1")
    assert lines == ["Untagged: other:1", f"Deleted: {made.id}", f"Deleted: {made.chain_ids[0]}"]
    assert store.images.list() == []
    assert list(store.blobs.list()) == []
    assert list(store.driver.layers()) == []


def test_an_id_with_several_names_needs_force(store: Store, tmp_path: Path) -> None:
    made = image(store, tmp_path, "app")
    store.images.tag("app", "other")
    with pytest.raises(InUseError, match="several names"):
        store.images.remove(made.id.hex)
    assert store.images.remove(made.id.hex, force=True)[:2] == [
        "Untagged: app:latest",
        "Untagged: other:latest",
    ]
    assert store.images.list() == []


def test_a_container_keeps_its_image(store: Store, tmp_path: Path) -> None:
    made = image(store, tmp_path, "app")
    container = store.containers.create("app", name="box")
    with pytest.raises(InUseError, match="box"):
        store.images.remove("app")
    assert store.images.remove("app", force=True) == ["Untagged: app:latest"]
    assert store.images.get(made.id.hex).names == ()
    with container.mounted() as place:
        assert (place / "file").read_text() == "text"
    store.containers.remove("box")
    assert store.images.remove(made.id.hex)[0] == f"Deleted: {made.id}"
    assert list(store.driver.layers()) == []


def test_layers_that_another_image_has_too_stay(store: Store, tmp_path: Path) -> None:
    image(store, tmp_path, "base")
    box = store.containers.create("base")
    with box.mounted() as place:
        (place / "more").write_text("more")
    child = box.commit("child")
    store.containers.remove(box.id)
    store.images.remove("base")
    assert store.images.get("child") == child
    again = store.containers.create("child")
    with again.mounted() as place:
        assert (place / "file").read_text() == "text"
        assert (place / "more").read_text() == "more"
    store.containers.remove(again.id)
    store.images.remove("child")
    assert list(store.driver.layers()) == []
    assert list(store.blobs.list()) == []


def test_history_tells_sizes_only_of_layers(store: Store, tmp_path: Path) -> None:
    image(store, tmp_path, "base")
    box = store.containers.create("base")
    box.commit("child", message="nothing new", author="me")
    newest, oldest = store.images.history("child")
    assert (newest.size, newest.history.comment, newest.history.author) == (0, "nothing new", "me")
    assert newest.history.empty_layer
    assert oldest.size > 0
    assert oldest.history.comment == "made here"
    assert oldest.created is not None
    assert len(store.images.get("child").manifest.layers) == 1


def test_raw_documents_stay_as_they_came(store: Store, tmp_path: Path) -> None:
    made = image(store, tmp_path, "app")
    config = json.dumps({**json.loads(made.config.raw), "x-unknown": [1, 2]}, indent=3).encode()
    store.blobs.put(config)
    descriptor = {
        **json.loads(made.manifest.raw)["config"],
        "digest": str(Digest.of(config)),
        "size": len(config),
    }
    raw = json.dumps({**json.loads(made.manifest.raw), "config": descriptor}, indent=2).encode()
    stored = store.images.put(raw, made.manifest.media_type, ["odd"])
    assert stored.manifest.raw == raw
    assert stored.config.raw == config
    assert stored.digest == Digest.of(raw)
    box = store.containers.create("odd")
    assert json.loads(box.commit("odd:2").config.raw)["x-unknown"] == [1, 2]


def test_an_image_whose_parts_do_not_fit_is_refused(store: Store, tmp_path: Path) -> None:
    made = image(store, tmp_path, "app")
    layers = [*made.manifest.layers, *made.manifest.layers]
    with pytest.raises(ArchiveError, match="diff ids"):
        store.images.put(Manifest.build(made.manifest.config, layers).raw)
    missing = Descriptor(made.manifest.layers[0].media_type, Digest.of(b"missing"), 7)
    with pytest.raises(ArchiveError, match="missing"):
        store.images.put(Manifest.build(made.manifest.config, [missing]).raw)
    assert store.images.list() == [made]


def test_an_image_without_layers_has_an_empty_tree(store: Store) -> None:
    config = ImageConfig.build(history=[History(created_by="nothing", empty_layer=True)])
    store.blobs.put(config.raw)
    descriptor = Descriptor("application/vnd.oci.image.config.v1+json", config.digest, len(config.raw))
    store.images.put(Manifest.build(descriptor, []).raw, None, ["empty"])
    box = store.containers.create("empty")
    with box.mounted() as place:
        assert list(place.iterdir()) == []
        (place / "file").write_text("x")
    assert len(box.commit("filled").manifest.layers) == 1


def test_names_are_completed_and_shortened() -> None:
    assert full_name("debian") == "docker.io/library/debian:latest"
    assert familiar("docker.io/library/debian:latest") == "debian:latest"
    with pytest.raises(InvalidError, match="digest"):
        full_name(f"debian@{Digest.of(b'')}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2024-01-02T03:04:05Z", 1704164645.0),
        ("2024-01-02T03:04:05.123456789Z", 1704164645.123456),
        ("2024-01-02T04:04:05+01:00", 1704164645.0),
        ("0001-01-01T00:00:00Z", None),
        ("1970-01-01T00:00:00Z", 0.0),
        ("rubbish", None),
        (None, None),
    ],
)
def test_times_are_read_as_seconds(text: str | None, expected: float | None) -> None:
    assert seconds(text) == expected


def test_instructions_change_a_config_as_docker_does() -> None:
    config = apply_instructions(
        {"Env": ["A=1", "B=2"], "Cmd": ["old"], "Labels": {"x": "y"}},
        [
            'ENTRYPOINT ["/bin/app"]',
            "cmd run this",
            'ENV A=3 C="4 5"',
            "ENV D some words",
            "LABEL a=b",
            "EXPOSE 80 53/udp",
            "VOLUME /data",
            "WORKDIR /srv",
            "WORKDIR app",
            "USER 1000:1000",
            "STOPSIGNAL SIGINT",
            "ONBUILD RUN make",
        ],
    )
    assert config == {
        "Env": ["B=2", "A=3", "C=4 5", "D=some words"],
        "Entrypoint": ["/bin/app"],
        "Cmd": ["/bin/sh", "-c", "run this"],
        "Labels": {"x": "y", "a": "b"},
        "ExposedPorts": {"80/tcp": {}, "53/udp": {}},
        "Volumes": {"/data": {}},
        "WorkingDir": "/srv/app",
        "User": "1000:1000",
        "StopSignal": "SIGINT",
        "OnBuild": ["RUN make"],
    }


@pytest.mark.parametrize("text", ["RUN make", "CMD", "", "ENV =x", "ENV NAME", "LABEL a='b"])
def test_an_instruction_that_cannot_be_done_is_refused(text: str) -> None:
    with pytest.raises(InvalidError):
        apply_instructions({}, [text])


def test_an_imported_tar_is_kept_as_it_is(store: Store, tmp_path: Path) -> None:
    import gzip
    import io
    import tarfile

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo("file")
        info.size = 4
        archive.addfile(info, io.BytesIO(b"text"))
    packed = gzip.compress(buffer.getvalue())
    made = store.import_tree(io.BytesIO(packed), "tar", changes=['CMD ["/file"]'])
    assert made.manifest.layers[0].digest.hex == hashlib.sha256(packed).hexdigest()
    assert made.manifest.layers[0].media_type.endswith("+gzip")
    assert made.config.diff_ids[0].hex == hashlib.sha256(buffer.getvalue()).hexdigest()
    assert made.config.config.cmd == ("/file",)
    assert made.size > 0


def test_an_image_that_an_operation_is_at_work_with_loses_its_name_alone(
    store: Store, tmp_path: Path
) -> None:
    made = image(store, tmp_path, "app")
    with Lease(store._database) as lease:
        lease.add("image", str(made.digest))
        assert store.images.remove("app") == ["Untagged: app:latest"]
        assert store.images.tag(str(made.digest), "again").names == ("again:latest",)
    assert any(line.startswith("Deleted:") for line in store.images.remove("again"))
