"""What the journal's tests write into it, and how they look into its file."""

import sqlite3
import struct
from contextlib import closing
from pathlib import Path

import msgspec
from loractl.bus.ids import AdapterId, LaneId, RequestId, TenantId
from loractl.bus.messages import CreateAdapter, LanePosition, OpenLane, OptimStep
from loractl.daemon.decisions import Frames
from loractl.daemon.journal.records import Ended, Received, Snapshot

ALICE = TenantId("alice")
ADAPTER, LANE = AdapterId("ad-1"), LaneId("ln-1")


def received(
    number: int,
    *,
    seq: int | None = None,
    kind: str = OptimStep.kind,
    adapter: AdapterId = ADAPTER,
    lane: LaneId = LANE,
    request: str = "",
    frames: Frames = (b"header",),
) -> Received:
    return Received(
        number=number,
        key=(ALICE, RequestId(request or f"r{number}")),
        kind=kind,
        digest=b"digest",
        adapter=adapter,
        lane=lane,
        seq=number if seq is None else seq,
        frames=frames,
    )


def created(number: int, adapter: AdapterId = ADAPTER, lane: LaneId = LANE) -> Received:
    return received(number, seq=0, kind=CreateAdapter.kind, adapter=adapter, lane=lane)


def lane_opened(number: int, lane: LaneId, adapter: AdapterId = ADAPTER) -> Received:
    return received(number, seq=0, kind=OpenLane.kind, adapter=adapter, lane=lane)


def ended(number: int, order: int, *, frames: Frames = (b"outcome",), **more: bool) -> Ended:
    return Ended(number=number, order=order, frames=frames, **more)


def snapshot(order: int, *, adapter: AdapterId = ADAPTER, name: str = "", **lanes: int) -> Snapshot:
    """lanes: `ln_1=5` holds lane ln-1 up to number 4."""
    positions = tuple(
        LanePosition(lane=LaneId(lane.replace("_", "-")), next_seq=seq) for lane, seq in lanes.items()
    )
    return Snapshot(
        order=order, adapter=adapter, name=name or str(order), step=order, digest="00", positions=positions
    )


def payloads(file: Path) -> int:
    """How many lie apart."""
    with closing(sqlite3.connect(file)) as db:
        (count,) = db.execute("SELECT count(*) FROM payload_bytes").fetchone()
    return int(count)


def contradictions(file: Path, *, every_page: bool = True) -> list[str]:
    """What in the file does not fit together; empty for a whole one."""
    with closing(sqlite3.connect(file)) as db:
        found = [row[0] for row in db.execute("PRAGMA integrity_check")] if every_page else ["ok"]
        told = [] if found == ["ok"] else found
        referred: dict[bytes, int] = {}
        for (packed,) in db.execute("SELECT frames FROM requests WHERE frames IS NOT NULL"):
            for apart, digest in msgspec.msgpack.decode(packed):
                if apart:
                    referred[digest] = referred.get(digest, 0) + 1
        counted = dict(db.execute("SELECT digest, refs FROM payloads"))
        if counted != referred:
            told.append(
                f"{len(referred)} payloads are referred to, {len(counted)} are counted, or how often differs"
            )
        if {*db.execute("SELECT place FROM payloads")} != {*db.execute("SELECT place FROM payload_bytes")}:
            told.append("payloads and their bytes differ")
        no_outcome = "SELECT number FROM requests WHERE number NOT IN (SELECT number FROM outcomes)"
        if {*db.execute(no_outcome)} != {*db.execute("SELECT number FROM unfinished")}:
            told.append("requests without an outcome differ from the unfinished ones")
    return told


def commits(file: Path) -> int:
    """How many commits the log holds: each ends with a frame that tells the file's size (SQLite's file
    format, section 4.1)."""
    log = file.with_name(f"{file.name}-wal").read_bytes()
    (page_size,) = struct.unpack(">I", log[8:12])
    salt, count = log[16:24], 0
    for at in range(32, len(log), 24 + page_size):
        if log[at + 8 : at + 16] != salt:
            break
        count += log[at + 4 : at + 8] != b"\0\0\0\0"
    return count
