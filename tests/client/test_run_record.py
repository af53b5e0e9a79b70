"""Run records: what a resumed run is compared with."""

from dataclasses import replace
from pathlib import Path

import pytest
from loractl.bus.errors import CheckpointMismatch
from loractl.client.run_plan import RunSettings
from loractl.client.run_record import RunRecord, check_same_run, read_record, remove_record, write_record

RECORD = RunRecord(settings=RunSettings(rank=4), data="a.jsonl", data_digest="d1", rows=3)


def test_a_record_is_read_back_as_written(tmp_path: Path):
    file = tmp_path / "training" / "ad-1.json"

    write_record(file, RECORD)

    assert read_record(file) == RECORD
    assert [f.name for f in file.parent.iterdir()] == ["ad-1.json"]


def test_a_missing_broken_or_removed_record_is_none(tmp_path: Path):
    broken = tmp_path / "broken.json"
    broken.write_text('{"settings": 3}')
    removed = tmp_path / "removed.json"
    write_record(removed, RECORD)
    remove_record(removed)

    assert read_record(tmp_path / "missing.json") is None
    assert read_record(broken) is None
    assert read_record(removed) is None


def test_a_longer_run_with_another_rate_is_the_same_run():
    check_same_run("x", RECORD, replace(RECORD, settings=RunSettings(rank=4, learning_rate=1.0, epochs=9)))


def test_another_rank_and_other_data_are_named_in_one_line():
    other = replace(RECORD, settings=RunSettings(rank=8), data="b.jsonl", data_digest="d2")

    with pytest.raises(CheckpointMismatch) as caught:
        check_same_run("pirate", RECORD, other)

    assert "'pirate'" in caught.value.message
    assert "--rank 8 (so far: 4)" in caught.value.message
    assert "b.jsonl" in caught.value.message
    assert "\n" not in caught.value.message
