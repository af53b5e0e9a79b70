"""External weights: written whole, encrypted to whom they are for, read at addresses that end."""

import asyncio
import json
import shutil
import stat
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyrage
import pytest
from loractl.bus.errors import (
    CheckpointNotFound,
    DiskQuotaExceeded,
    InvalidRequest,
    ResultExpired,
    StorageFailed,
)
from loractl.bus.ids import AdapterId, TenantId
from loractl.bus.layout import StateLayout
from loractl.bus.messages import ExportWeights, LoraSpec, RefuseOperation, WeightsExported
from loractl.tests.tinker_bridge.bus_in_memory import SAFETENSORS, InMemoryBus
from loractl.tests.tinker_bridge.in_memory import HOST, User, client, rest, with_bridge
from loractl.tinker_bridge.age import Recipients
from loractl.tinker_bridge.bodies import SaveExternalBody
from loractl.tinker_bridge.bridge import Bridge
from loractl.tinker_bridge.calls import Place
from loractl.tinker_bridge.exporting import SaveExternal
from loractl.tinker_bridge.exports import Exports
from loractl.tinker_bridge.housekeeping import one_round
from loractl.tinker_bridge.records import CheckpointRecord
from loractl.tinker_bridge.store import Store

FILES = {"adapter_config.json": b'{"r": 8}', "adapter_model.safetensors": SAFETENSORS}
VIEWS = {name: memoryview(data) for name, data in FILES.items()}
SIZE_BYTES = sum(map(len, FILES.values()))
ANN = TenantId("ann")


async def exported(user: User, run: str, seq: int = 1, name: str = "final", **more: Any) -> str:
    saved = await user.work("/save_weights_external", model_id=run, seq_id=seq, path=name, **more)
    path: str = saved["path"]
    return path


async def addresses(user: User, path: str) -> dict[str, str]:
    urls: dict[str, str] = (await user.get(rest(path) + "/external_weights_urls"))["urls"]
    return urls


def test_an_export_is_read_at_its_addresses_without_a_key(tmp_path: Path) -> None:
    async def test(bridge: Bridge, bus: InMemoryBus) -> None:
        ann = User(bridge, "ann")
        path = await exported(ann, await ann.run())
        given = await ann.get(rest(path) + "/external_weights_urls")
        stranger = client(bridge)

        read = {name: await stranger.get(url) for name, url in given["urls"].items()}

        assert {name: answer.content for name, answer in read.items()} == FILES
        assert all(url.startswith(f"{HOST}/api/v1/exports/") for url in given["urls"].values())
        assert all(int(each.headers["content-length"]) == len(each.content) for each in read.values())
        left_s = (datetime.fromisoformat(given["expires"]) - datetime.now(UTC)).total_seconds()
        assert 3500 < left_s <= 3600
        (shown,) = (await ann.get("/checkpoints"))["checkpoints"]
        assert (shown["checkpoint_type"], shown["checkpoint_id"]) == ("external", "external_weights/final")
        assert shown["size_bytes"] == sum(map(len, FILES.values()))

    with_bridge(tmp_path, test)


def test_addresses_name_the_host_that_the_caller_called(tmp_path: Path) -> None:
    async def test(bridge: Bridge, _: InMemoryBus) -> None:
        ann = User(bridge, "ann")
        path = await exported(ann, await ann.run())

        ann.http.headers["Host"] = "box.example:1234"

        assert all(
            url.startswith("http://box.example:1234/api/") for url in (await addresses(ann, path)).values()
        )

    with_bridge(tmp_path, test)


def test_an_encrypted_export_is_read_by_each_recipient_and_lies_nowhere_in_the_clear(tmp_path: Path) -> None:
    async def test(bridge: Bridge, _: InMemoryBus) -> None:
        ann = User(bridge, "ann")
        readers = [pyrage.x25519.Identity.generate() for _ in range(2)]
        to = [str(each.to_public()) for each in readers]
        path = await exported(ann, await ann.run(), age_encryption_recipients=to)

        urls = await addresses(ann, path)

        assert set(urls) == {f"{name}.age" for name in FILES}
        for name, url in urls.items():
            secret = (await ann.http.get(url)).content
            for reader in readers:
                assert pyrage.decrypt(secret, [reader]) == FILES[name.removesuffix(".age")]
        on_disk = [file for file in bridge.layout.exports.rglob("*") if file.is_file()]
        assert len(on_disk) == 2
        assert not any(data in file.read_bytes() for file in on_disk for data in FILES.values())

    with_bridge(tmp_path, test)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"age_encryption_recipients": ["age1nobody"]}, "no age recipient"),
        ({"age_encryption_recipients": ["ssh-ed25519 AAAA"]}, "no age recipient"),
        ({"age_encryption_recipients": []}, "is empty"),
        ({"age_encryption_recipients": ["age1x"] * 11}, "at most 10"),
        ({"ttl_seconds": 60}, "ttl_seconds is 60"),
        ({"path": "../../x"}, "cannot name a checkpoint"),
        ({"path": None}, "path"),
    ],
)
def test_a_wrong_export_fails_through_its_future_and_uses_its_number(
    tmp_path: Path, more: dict[str, Any], said: str
) -> None:
    async def test(bridge: Bridge, bus: InMemoryBus) -> None:
        ann = User(bridge, "ann")
        run = await ann.run()
        body = {"model_id": run, "seq_id": 1, "path": "final", **more}
        started = await ann.post("/save_weights_external", **body)

        failed = await ann.post("/retrieve_future", request_id=started["request_id"])

        assert failed["category"] == "user"
        assert said in failed["error"]
        (refused,) = [each for _, each in bus.asked if isinstance(each, RefuseOperation)]
        assert refused.seq == 1
        assert await exported(ann, run, 2)

    with_bridge(tmp_path, test)


def test_an_ssh_key_can_read_an_export(tmp_path: Path) -> None:
    public = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHsKLqeplhpW+uObz5dvMgjz1OxfM/XXUB+VHtZ6isGN alice@host"

    Recipients([public])

    with pytest.raises(InvalidRequest, match="no age recipient"):
        Recipients(["ssh-dss AAAAB3NzaC1kc3MAAACB"])


def test_a_name_can_be_used_once(tmp_path: Path) -> None:
    async def test(bridge: Bridge, _: InMemoryBus) -> None:
        ann = User(bridge, "ann")
        run = await ann.run()
        path = await exported(ann, run, 1)

        again = await ann.work("/save_weights_external", model_id=run, seq_id=2, path="final")

        assert again["category"] == "user"
        assert "exists already" in again["error"]
        await ann.ask("DELETE", rest(path))
        assert await exported(ann, run, 3) == path

    with_bridge(tmp_path, test)


def test_a_deleted_exports_addresses_and_files_are_gone(tmp_path: Path) -> None:
    async def test(bridge: Bridge, _: InMemoryBus) -> None:
        ann = User(bridge, "ann")
        run = await ann.run()
        path = await exported(ann, run)
        urls = await addresses(ann, path)

        await ann.ask("DELETE", rest(path))
        await exported(ann, run, 2)

        for url in urls.values():
            assert (await ann.http.get(url)).status_code == 404
        assert len(list(bridge.layout.exports.iterdir())) == 1

    with_bridge(tmp_path, test)


def test_an_export_that_expired_is_swept_with_its_files(tmp_path: Path) -> None:
    async def test(bridge: Bridge, _: InMemoryBus) -> None:
        ann = User(bridge, "ann")
        await exported(ann, await ann.run(), ttl_seconds=3600)
        bridge.store.put(replace(bridge.store.all(CheckpointRecord)[0], expires_unix_s=1.0))

        await one_round(bridge)

        assert bridge.store.all(CheckpointRecord) == []
        assert list(bridge.layout.exports.iterdir()) == []

    with_bridge(tmp_path, test)


def test_a_public_export_can_be_downloaded_by_others(tmp_path: Path) -> None:
    async def test(bridge: Bridge, _: InMemoryBus) -> None:
        ann, ben = User(bridge, "ann"), User(bridge, "ben")
        path = await exported(ann, await ann.run())
        await ben.get(rest(path) + "/external_weights_urls", 404)

        await ann.post(rest(path) + "/publish")

        assert set(await addresses(ben, path)) == set(FILES)

    with_bridge(tmp_path, test)


def test_only_exports_have_addresses(tmp_path: Path) -> None:
    async def test(bridge: Bridge, _: InMemoryBus) -> None:
        ann = User(bridge, "ann")
        path = await ann.save(await ann.run(), 1, "a")

        answer = await ann.get(rest(path) + "/external_weights_urls", 400)

        assert "only external weights" in answer["detail"]

    with_bridge(tmp_path, test)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class OneExport:
    """An export with its record, and a clock to end its addresses with."""

    def __init__(self, state: Path, *, most_bytes: int = 0, **more: Any) -> None:
        self.clock = Clock()
        self.layout = StateLayout(state)
        self.store = Store(self.layout.tinker_store)
        self.exports = Exports(self.store, self.layout, most_bytes=most_bytes, clock=self.clock)
        token = self.exports.begin("work 1")
        self.directory = self.layout.exports / token
        self.directory.mkdir(parents=True)
        for name, data in FILES.items():
            (self.directory / name).write_bytes(data)
        self.record = CheckpointRecord(
            id="tinker://s:train:0/external_weights/final",
            tenant=TenantId("ann"),
            parent="s:train:0",
            created_unix_s=1.0,
            kind="external",
            name="final",
            adapter=AdapterId("ad-1"),
            base_model="tiny",
            lora=LoraSpec(rank=8, alpha=32.0, seed=1),
            token=token,
            **more,
        )
        self.store.put(self.record)
        self.exports.end(token)

    def signed(self) -> str:
        given, _ = self.exports.addresses(self.record)
        return given["adapter_config.json"].split("/")[0]


def test_an_address_ends_after_an_hour_or_with_its_checkpoint(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    kept, short = OneExport(tmp_path / "a"), OneExport(tmp_path / "b", expires_unix_s=1500.0)

    for one, ends in ((kept, 4600.0), (short, 1500.0)):
        signed = one.signed()
        assert one.exports.addresses(one.record)[1] == ends
        one.clock.now = ends - 1
        assert one.exports.file_at(signed, "adapter_config.json").read_bytes() == b'{"r": 8}'
        one.clock.now = ends
        with pytest.raises(ResultExpired):
            one.exports.file_at(signed, "adapter_config.json")


@pytest.mark.parametrize(
    "forged",
    [
        lambda signed: "",
        lambda signed: ".",
        lambda signed: signed[:-1] + ("0" if signed[-1] != "0" else "1"),
        lambda signed: "A" + signed,
        lambda signed: signed.split(".")[0],
        lambda signed: signed + "é",
    ],
)
def test_a_forged_address_leads_nowhere(tmp_path: Path, forged: Callable[[str], str]) -> None:
    one = OneExport(tmp_path)

    with pytest.raises(CheckpointNotFound):
        one.exports.file_at(forged(one.signed()), "adapter_config.json")


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../../tinker.sqlite", "adapter_config.json/", "/etc/passwd", "a\0b", "other"]
)
def test_an_address_reads_its_own_files_only(tmp_path: Path, name: str) -> None:
    one = OneExport(tmp_path)

    with pytest.raises(CheckpointNotFound):
        one.exports.file_at(one.signed(), name)


def test_traversal_over_http_leads_nowhere(tmp_path: Path) -> None:
    async def test(bridge: Bridge, _: InMemoryBus) -> None:
        ann = User(bridge, "ann")
        url = next(iter((await addresses(ann, await exported(ann, await ann.run()))).values()))
        base = url.rsplit("/", 1)[0]

        for tail in ("..%2f..%2ftinker.sqlite", "%2e%2e", "../../tinker.sqlite", "", "%00"):
            answer = await ann.http.get(f"{base}/{tail}")
            assert answer.status_code == 404
            assert json.loads(answer.content)["detail"]

    with_bridge(tmp_path, test)


def test_directories_that_nobody_speaks_of_are_deleted_but_not_those_under_way(tmp_path: Path) -> None:
    one = OneExport(tmp_path)
    under_way, orphan = one.exports.begin("work 2"), "0" * 32
    for token in (under_way, orphan):
        (one.layout.exports / token).mkdir()

    one.exports.delete_orphans()

    left = {each.name for each in one.layout.exports.iterdir()}
    assert left == {one.record.token, under_way}
    one.exports.end(under_way)
    one.exports.delete_orphans()
    assert {each.name for each in one.layout.exports.iterdir()} == {one.record.token}


def test_files_are_for_their_owner_alone_and_an_unwritable_place_is_told(tmp_path: Path) -> None:
    async def test(bridge: Bridge, _: InMemoryBus) -> None:
        data = {name: memoryview(each) for name, each in FILES.items()}
        token = bridge.exports.begin("work 3")

        size_bytes = await bridge.exports.write(ANN, token, data, None)

        assert size_bytes == sum(map(len, FILES.values()))
        for directory in (bridge.layout.exports, bridge.layout.exports / token):
            assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        bridge.layout.exports.rename(tmp_path / "aside")
        bridge.layout.exports.write_text("in the way")
        with pytest.raises(StorageFailed, match="cannot write the export"):
            await bridge.exports.write(ANN, bridge.exports.begin("work 4"), data, None)

    with_bridge(tmp_path, test)


def test_an_export_that_cannot_be_written_fails_as_the_servers_fault_and_its_name_is_free(
    tmp_path: Path,
) -> None:
    async def test(bridge: Bridge, bus: InMemoryBus) -> None:
        ann = User(bridge, "ann")
        run = await ann.run()
        bridge.layout.exports.write_text("in the way")

        failed = await ann.work("/save_weights_external", model_id=run, seq_id=1, path="final")
        bridge.layout.exports.unlink()

        assert failed["category"] == "server"
        assert await exported(ann, run, 2)
        assert len([each for _, each in bus.asked if isinstance(each, ExportWeights)]) == 2

    with_bridge(tmp_path, test)


# --- how much of the disk they may take -------------------------------------------------------------------


def test_exports_beyond_the_tenants_quota_are_refused_until_it_deletes_some(tmp_path: Path) -> None:
    async def test(bridge: Bridge, _: InMemoryBus) -> None:
        ann, ben = User(bridge, "ann"), User(bridge, "ben")
        bridge.exports._most_bytes = 2 * SIZE_BYTES - 1
        run = await ann.run()
        first = await exported(ann, run, 1, "first")

        refused = await ann.work("/save_weights_external", model_id=run, seq_id=2, path="second")

        assert refused["category"] == "user"
        assert f"take {SIZE_BYTES:,} of at most {2 * SIZE_BYTES - 1:,} bytes" in refused["error"]
        assert len([*bridge.layout.exports.iterdir()]) == 1
        assert await exported(ben, await ben.run())
        await ann.ask("DELETE", rest(first))
        assert await exported(ann, run, 3, "second")

    with_bridge(tmp_path, test)


def test_what_is_being_written_counts_in_the_quota(tmp_path: Path) -> None:
    one = OneExport(tmp_path, most_bytes=2 * SIZE_BYTES - 1)

    async def at_once() -> list[int | BaseException]:
        writes = [one.exports.write(ANN, token, VIEWS, None) for token in ("1" * 32, "2" * 32)]
        return await asyncio.gather(*writes, return_exceptions=True)

    written, refused = asyncio.run(at_once())

    assert written == SIZE_BYTES
    assert isinstance(refused, DiskQuotaExceeded)
    assert not (one.layout.exports / ("2" * 32)).exists()


def test_an_export_leaves_the_journal_its_room_and_counts_what_is_being_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, spare = OneExport(tmp_path), 512 * 2**20
    usage = SimpleNamespace(free=spare + 2 * SIZE_BYTES - 1, total=100 * 2**30)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)

    async def at_once() -> list[int | BaseException]:
        writes = [one.exports.write(ANN, token, VIEWS, None) for token in ("1" * 32, "2" * 32)]
        return await asyncio.gather(*writes, return_exceptions=True)

    written, refused = asyncio.run(at_once())

    assert written == SIZE_BYTES
    assert isinstance(refused, StorageFailed)
    assert f"cannot write the export: it takes {SIZE_BYTES} bytes" in refused.message
    assert not (one.layout.exports / ("2" * 32)).exists()


def test_a_save_that_runs_again_finds_what_it_wrote_whatever_room_there_is(tmp_path: Path) -> None:
    async def test(bridge: Bridge, _: InMemoryBus) -> None:
        ann = User(bridge, "ann")
        run = await ann.run()
        await exported(ann, run)
        (record,) = bridge.store.all(CheckpointRecord)
        bridge.exports._most_bytes = 1
        body = SaveExternalBody(model_id=run, seq_id=1, path="final")
        again = SaveExternal(body, bridge.checkpoints, bridge.exports)
        owned = bridge.runs.owned(ANN, run)
        again.take_up(owned, Place(owned.adapter, owned.lane, 1))
        answer = WeightsExported(
            config_json="{}", safetensors=np.frombuffer(SAFETENSORS, dtype=np.uint8), step=3
        )

        result = await again.finish(answer, record.made_by)

        assert json.loads(result.body)["path"] == record.id
        assert set(await addresses(ann, record.id)) == set(FILES)

    with_bridge(tmp_path, test)


def test_an_export_whose_files_cannot_be_deleted_keeps_its_record_for_another_try(tmp_path: Path) -> None:
    async def test(bridge: Bridge, _: InMemoryBus) -> None:
        ann = User(bridge, "ann")
        await exported(ann, await ann.run())
        (record,) = bridge.store.all(CheckpointRecord)
        bridge.store.put(replace(record, expires_unix_s=1.0))
        directory = bridge.layout.exports / record.token
        directory.rename(tmp_path / "aside")
        directory.write_text("in the way")

        await one_round(bridge)
        assert len(bridge.store.all(CheckpointRecord)) == 1

        directory.unlink()
        await one_round(bridge)
        assert bridge.store.all(CheckpointRecord) == []

    with_bridge(tmp_path, test)


def test_a_large_export_is_encrypted_piece_by_piece(tmp_path: Path) -> None:
    reader = pyrage.x25519.Identity.generate()
    data = bytes(range(256)) * 12_345

    with (tmp_path / "f.age").open("wb") as file:
        Recipients([str(reader.to_public())]).encrypt(memoryview(data), file)

    assert pyrage.decrypt((tmp_path / "f.age").read_bytes(), [reader]) == data
