"""What a crash test makes of what it saw, without a daemon."""

import json
from pathlib import Path

import httpx
import pytest

pytest.importorskip("tinker", reason="scripts of tenants use the SDK")

from loractl.tests.crash.crashed_daemon import CrashedDaemon
from loractl.tests.crash.judging import Life, broken_promises, compare
from loractl.tests.crash.recording import Record
from loractl.tests.crash.report import Report
from loractl.tests.crash.tenant_script import TenantScript

KEY = "key"


def script(number: int, seen: list[str], failure: str = "") -> TenantScript:
    return TenantScript(number, "", KEY, lambda _: False, seen=seen, failure=failure)


def test_after_a_failure_those_who_came_to_their_end_are_compared_and_the_others_as_far_as_they_came():
    report = Report(seed=1, tenants=3, failures=["tenant-1: hangs"])
    disturbed = Life(
        [script(0, ["a", "b"]), script(1, ["a"], "hangs"), script(2, ["a", "x"], "broke")],
        {"tenant-0": "one"},
    )
    calm = Life(
        [script(each, ["a", "b"]) for each in range(3)], {f"tenant-{each}": "another" for each in range(3)}
    )

    compare(disturbed, calm, report)

    assert report.compared == 1
    assert [each.split(":")[0] for each in report.differing] == ["tenant-0", "tenant-2"]


def test_what_the_daemon_itself_finds_broken_is_found_in_its_log(tmp_path: Path):
    daemon = CrashedDaemon(tmp_path)
    assert broken_promises(daemon) == []
    daemon.layout.logs.mkdir()
    lines = [{"event": "chaos.acted"}, {"event": "chaos.promise_broken", "promise": "told another"}]
    (daemon.layout.logs / "daemon.log").write_text("\n".join(map(json.dumps, lines)))

    [found] = broken_promises(daemon)

    assert "told another" in found


def told(record: Record, path: str, body: dict[str, object], answer: dict[str, object]) -> None:
    record.heard(KEY, "POST", path, json.dumps(body).encode(), httpx.Response(200, json=answer))


def test_a_save_that_comes_again_with_another_number_is_the_same_and_has_one_future():
    record = Record()

    for number, future in ((1, "f"), (2, "f"), (3, "g")):
        body = {"model_id": "m", "seq_id": 4, "sampling_session_seq_id": number}
        told(record, "/api/v1/save_weights_for_sampler", body, {"request_id": future})

    assert record.twice == ["/api/v1/save_weights_for_sampler: f, then g"]


def test_what_is_answered_at_once_counts_and_is_looked_for():
    record = Record()

    told(record, "/api/v1/create_session", {}, {"session_id": "s"})
    for sampler in ("t", "u"):
        body = {"session_id": "s", "sampling_session_seq_id": 1}
        told(record, "/api/v1/create_sampling_session", body, {"sampling_session_id": sampler})
    record.heard(KEY, "DELETE", "/adapters/a", b"", httpx.Response(200, json={}))
    told(record, "/api/v1/session_heartbeat", {"session_id": "s"}, {"type": "session_heartbeat"})

    assert record.acknowledged == 4
    assert [*record.made] == ["/api/v1/sessions/s", "/api/v1/samplers/t", "/api/v1/samplers/u"]
    assert record.twice == ["/api/v1/create_sampling_session: t, then u"]
