"""Snapshots on disk: whole or none, each piece written when it changed, numbers that never come back."""

import errno
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loractl.bus.config import subprocess_environment
from loractl.bus.errors import CheckpointMismatch, StorageFailed
from loractl.bus.ids import AdapterId, LaneId
from loractl.bus.layout import StateLayout
from loractl.bus.messages import LoraSpec
from loractl.trainer_actor.checkpoints import Checkpoints
from loractl.trainer_actor.snapshots import Draft, SnapshotRecord, Snapshots
from loractl.trainer_actor.state_files import read_tensors, write_tensors
from loractl.trainer_actor.windows import Event, Window

A = AdapterId("ad-" + "a" * 32)
LORA = LoraSpec(rank=4, alpha=8.0, seed=1)
BASE = "tiny 0123"
OPEN = Window(step=3).after(Event.GATHERED, lane=LaneId("mine"))
ROOT = Path(__file__).resolve().parents[2]


@dataclass
class _Usage:
    free: int
    total: int = 2**40


@pytest.fixture
def layout(tmp_path: Path) -> StateLayout:
    return StateLayout(tmp_path)


@pytest.fixture
def snapshots(layout: StateLayout) -> Snapshots:
    return Snapshots(layout)


def draft(value: float = 1.0, **changes: object) -> Draft:
    tensors = {piece: {"x": torch.full((50,), value)} for piece in ("main", "exp_avg", "exp_avg_sq")}
    tensors["gradients"] = {"x": torch.full((50,), value + 0.5)}
    plain = {
        "adapter": A,
        "step": 3,
        "lora": LORA,
        "base": BASE,
        "window": OPEN,
        "metadata": {"step": "3", "tokens": "12"},
        "tensors": tensors,
    }
    return Draft(**{**plain, **changes})  # type: ignore[arg-type]


def after_gradients(before: SnapshotRecord, value: float) -> Draft:
    """Only a forward_backward came in between."""
    return draft(
        tensors={"gradients": {"x": torch.full((50,), value)}},
        unchanged=("main", "exp_avg", "exp_avg_sq"),
        before=before,
    )


def damage(file: Path, at: int = -1) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)


def test_what_is_read_is_what_was_written(snapshots: Snapshots, layout: StateLayout) -> None:
    record = snapshots.write(draft())

    found = Snapshots(layout).find(A, record.name)
    tensors, metadata = Snapshots(layout).load(found)

    assert found == record == snapshots.newest(A)
    assert (found.window.open, found.window.opened_by, found.window.step) == (True, "mine", 3)
    assert metadata["tokens"] == "12"
    assert torch.equal(tensors["gradients/x"], torch.full((50,), 1.5))
    assert sorted(tensors) == ["exp_avg/x", "exp_avg_sq/x", "gradients/x", "main/x"]


def test_equal_states_have_equal_digests_however_they_were_written(snapshots: Snapshots) -> None:
    first = snapshots.write(draft(1.0))
    linked = snapshots.write(after_gradients(first, 1.5))
    other = snapshots.write(after_gradients(first, 1.25))
    counted = snapshots.write(draft(1.0, metadata={"step": "4", "tokens": "12"}))

    assert first.digest == linked.digest
    assert len({first.digest, other.digest, counted.digest}) == 3


def test_pieces_that_did_not_change_are_not_written_again(snapshots: Snapshots, layout: StateLayout) -> None:
    first = snapshots.write(draft())
    second = snapshots.write(after_gradients(first, 7.0))

    def inode(record: SnapshotRecord, piece: str) -> int:
        return (layout.snapshots(A) / record.name / f"{piece}.safetensors").stat().st_ino

    assert inode(first, "main") == inode(second, "main")
    assert inode(first, "gradients") != inode(second, "gradients")
    snapshots.discard(first)
    tensors, _ = snapshots.load(second)
    assert (float(tensors["gradients/x"][0]), float(tensors["main/x"][0])) == (7.0, 1.0)


def test_a_file_system_without_links_gets_copies(
    snapshots: Snapshots, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    first = snapshots.write(draft())
    monkeypatch.setattr(os, "link", refuse)

    second = snapshots.write(after_gradients(first, 7.0))

    assert float(snapshots.load(second)[0]["main/x"][0]) == 1.0


@pytest.mark.parametrize("piece", ["main", "gradients", "exp_avg_sq"])
@pytest.mark.parametrize("how", ["bit", "short", "gone"])
def test_a_damaged_piece_is_refused_before_it_is_used(
    snapshots: Snapshots, layout: StateLayout, piece: str, how: str
) -> None:
    record = snapshots.write(draft())
    file = layout.snapshots(A) / record.name / f"{piece}.safetensors"
    if how == "bit":
        damage(file)
    elif how == "short":
        file.write_bytes(file.read_bytes()[:-4])
    else:
        file.unlink()

    with pytest.raises(CheckpointMismatch, match="damaged"):
        snapshots.check(record, LORA, BASE)
    with pytest.raises(CheckpointMismatch, match="damaged"):
        snapshots.load(record)
    assert snapshots.has(record) == (how == "bit")


@pytest.mark.parametrize("flip", [0x01, 0x80])
def test_no_changed_byte_of_a_description_goes_unseen(
    snapshots: Snapshots, layout: StateLayout, flip: int
) -> None:
    record = snapshots.write(draft())
    file = layout.snapshots(A) / record.name / "snapshot.json"
    whole = file.read_bytes()

    for at in range(len(whole)):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ flip]) + whole[at + 1 :])
        assert snapshots.newest(A) is None, f"byte {at}"


def test_another_geometry_or_base_is_refused_with_every_difference(snapshots: Snapshots) -> None:
    record = snapshots.write(draft())

    with pytest.raises(CheckpointMismatch) as refused:
        snapshots.check(record, LoraSpec(rank=8, alpha=9.0, seed=1), "other")

    for part in ("rank 4 is not 8", "alpha 8.0 is not 9.0", "base model tiny 0123 is not other"):
        assert part in refused.value.message
    snapshots.check(record, LoraSpec(rank=4, alpha=8.0, seed=5), BASE)


@pytest.mark.parametrize("name", ["9", "", "../1", "x", "01", "¹"])
def test_a_name_of_none_is_refused(snapshots: Snapshots, name: str) -> None:
    snapshots.write(draft())

    with pytest.raises(CheckpointMismatch):
        snapshots.find(A, name)


def test_what_is_foreign_is_no_snapshot_and_stays(snapshots: Snapshots, layout: StateLayout) -> None:
    record = snapshots.write(draft())
    home = layout.snapshots(A)
    (home / "latest").mkdir()
    (home / "7").mkdir()
    (home / "8").mkdir()
    (home / "8" / "snapshot.json").write_bytes((home / "1" / "snapshot.json").read_bytes())
    (home / "9").write_text("mine")
    (home / ".aside-0").mkdir()

    snapshots.sweep(A)

    assert snapshots.all(A) == [record]
    assert not (home / ".aside-0").exists()
    assert (home / "latest").exists()
    assert snapshots.write(draft()).number == 10


def test_numbers_grow_over_snapshots_and_checkpoints(snapshots: Snapshots, layout: StateLayout) -> None:
    checkpoints = Checkpoints(layout)

    def save(name: str) -> int:
        tensors = {"main/x": torch.ones(3)}
        return checkpoints.save(A, name, tensors, {}, step=0, lora=LORA, base=BASE).sequence

    assert [snapshots.write(draft()).number, save("a"), save("b"), snapshots.write(draft()).number] == [
        1,
        2,
        3,
        4,
    ]


def test_two_that_the_journal_has_stay_and_no_number_comes_back(
    snapshots: Snapshots, layout: StateLayout
) -> None:
    for _ in range(5):
        snapshots.write(draft())

    def there() -> list[int]:
        return [record.number for record in snapshots.all(A)]

    snapshots.keep(A, "2")
    assert there() == [1, 2, 3, 4, 5], "an earlier process may have had one kept"
    snapshots.keep(A, "4")
    assert there() == [2, 4, 5], "of what the journal did not take, and what is older, nothing is needed"
    snapshots.keep(A, "4")
    snapshots.keep(A, "3")
    assert there() == [2, 4, 5]
    snapshots.keep(A, "5")
    assert there() == [4, 5]
    assert Snapshots(layout).write(draft()).number == 6


def test_after_a_recovery_the_one_that_was_gone_on_from_stays_beside_the_next(
    snapshots: Snapshots, layout: StateLayout
) -> None:
    for _ in range(3):
        snapshots.write(draft())
    again = Snapshots(layout)
    again.known(A, "2")

    fourth = again.write(draft())
    again.keep(A, fourth.name)

    assert [record.number for record in again.all(A)] == [2, 4]


def test_a_full_disk_leaves_what_was_there(
    snapshots: Snapshots, layout: StateLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = snapshots.write(draft())
    monkeypatch.setattr("shutil.disk_usage", lambda _: _Usage(free=0))

    with pytest.raises(StorageFailed, match="0 free"):
        snapshots.write(draft())

    assert [path.name for path in layout.snapshots(A).iterdir()] == [record.name]


# --- crashes ---------------------------------------------------------------------------------------

POINTS = ("file.written", "file.synced", "file.renamed")
# One process that has imported torch; each of its children writes three, and dies in the second.
WRITERS = """
import importlib, os, sys
from pathlib import Path
from loractl.bus import crash_points
from loractl.bus.layout import StateLayout
from loractl.tests.trainer_actor.test_snapshots import POINTS, draft
from loractl.trainer_actor.snapshots import Snapshots

for point in POINTS:
    child = os.fork()
    if not child:
        os.environ["LORACTL_CRASH_AT"] = f"{point}:2"
        importlib.reload(crash_points)
        snapshots = Snapshots(StateLayout(Path(sys.argv[1], point)))
        for value in (1.0, 2.0, 3.0):
            print(point, snapshots.write(draft(value)).number, flush=True)
        os._exit(0)
    print(point, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def crashed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a state directory for each point at which a writer died."""
    states = tmp_path_factory.mktemp("crashed")
    for point in POINTS:
        (states / point).mkdir()
    environment = subprocess_environment({"PYTHONPATH": str(ROOT / ".pkg"), "OMP_NUM_THREADS": "1"})
    command = [sys.executable, "-c", WRITERS, str(states)]
    ended = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    assert ended.stdout.split("\n")[:-1] == [f"{point} {said}" for point in POINTS for said in (1, -9)]
    return states


@pytest.mark.parametrize("point", POINTS)
def test_a_writer_that_dies_leaves_whole_snapshots_only(crashed: Path, point: str) -> None:
    layout = StateLayout(crashed / point)
    snapshots = Snapshots(layout)

    snapshots.sweep(A)
    whole = snapshots.all(A)

    assert [record.number for record in whole] == ([1, 2] if point == "file.renamed" else [1])
    assert sorted(path.name for path in layout.snapshots(A).iterdir()) == [record.name for record in whole]
    for record in whole:
        assert float(snapshots.load(record)[0]["main/x"][0]) == float(record.number)


# --- the files ---------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=50)
@given(
    st.dictionaries(st.text(min_size=1, max_size=9), st.lists(st.integers(0, 5), max_size=3), max_size=5),
    st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3),
)
def test_tensors_of_any_name_and_shape_are_read_back_and_written_the_same(
    tmp_path_factory: pytest.TempPathFactory, shapes: dict[str, list[int]], metadata: dict[str, str]
) -> None:
    file = tmp_path_factory.mktemp("f") / "x.safetensors"
    tensors = {name: torch.randn(shape) for name, shape in shapes.items() if name != "__metadata__"}

    written = write_tensors(file, tensors, metadata)
    read, said = read_tensors(file)
    turned = write_tensors(file, dict(reversed(tensors.items())), dict(reversed(metadata.items())))

    assert said == metadata
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())
    assert turned == written
    assert written.size_bytes == file.stat().st_size


def test_a_view_that_is_not_contiguous_is_written_as_it_reads(tmp_path: Path) -> None:
    turned = torch.arange(6.0).reshape(2, 3).T

    write_tensors(tmp_path / "x", {"a": turned}, {})

    assert torch.equal(read_tensors(tmp_path / "x")[0]["a"], turned)
