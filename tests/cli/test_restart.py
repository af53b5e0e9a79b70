"""`loractl daemon restart`: the same daemon again, where it was, with what was changed."""

import json

from loractl.bus.layout import StateLayout

KEPT = ("trainer.threads=1", "trainer.slots=3", "sampler.count=0", "daemon.http=auto")


def test_a_restart_keeps_the_settings_and_the_port_and_takes_what_is_given(loractl, tiny_model):
    settings = [word for setting in KEPT for word in ("--config", setting)]
    started = loractl("daemon", "start", "--detach", "--base-model", f"tiny={tiny_model}", *settings)
    assert started.code == 0, started.err
    before = json.loads(loractl("daemon", "status", "--json").out)["daemon"]
    (loractl.state_dir / "loractl.toml").write_text("[trainer]\nslots = 9\n")

    outcome = loractl("daemon", "restart", "--config", "trainer.max_rank=16")

    assert outcome.code == 0, outcome.err
    assert outcome.err.startswith("stopped\n")
    assert "serving tiny" in outcome.err
    after = json.loads(loractl("daemon", "status", "--json").out)["daemon"]
    assert after["pid"] != before["pid"]
    assert after["http"] == before["http"] != ""
    running = json.loads(StateLayout(loractl.state_dir).config.read_text())
    assert (running["trainer"]["slots"], running["trainer"]["max_rank"]) == (3, 16)


def test_what_cannot_be_started_is_not_stopped(loractl):
    before = json.loads(loractl("daemon", "status", "--json").out)["daemon"]

    wrong = [
        loractl("daemon", "restart", "--base-model", "tiny=/no/such/model"),
        loractl("daemon", "restart", "--config", "trainer.slots=0"),
        loractl("daemon", "restart", "--http", "192.0.2.1:80"),
    ]

    assert [each.code for each in wrong] == [2, 2, 1], [each.err for each in wrong]
    assert "no model directory" in wrong[0].err
    assert json.loads(loractl("daemon", "status", "--json").out)["daemon"]["pid"] == before["pid"]
