"""Without a running daemon, `train` starts one for the run; a daemon that cannot start says why."""

import json


def settings(*more: str) -> tuple[str, ...]:
    """No sampler: these tests are about processes that come and go."""
    return tuple(
        word for each in ("sampler.count=0", "trainer.threads=1", *more) for word in ("--config", each)
    )


def test_a_run_without_a_daemon_borrows_one_and_resumes_with_the_next(loractl, tiny_model, rows):
    run = (
        "train",
        rows,
        "--adapter",
        "lonely",
        "--rank",
        "4",
        "--base-model",
        f"tiny={tiny_model}",
        *settings(),
    )

    first = loractl(*run, "--max-steps", "2")
    between = loractl("daemon", "status")
    second = loractl(*run, "--max-steps", "3", "--resume")

    assert first.code == 0, first.err
    assert "starting one with tiny for this run" in first.err
    assert first.err.splitlines()[-1] == "stopped the daemon"
    assert first.out == "published lonely version 1 (step 2); this daemon has no sampler to serve it\n"
    assert between.code == 2
    assert second.code == 0, second.err
    assert "from step 2" in second.err
    assert "version 2 (step 3)" in second.out


def test_an_actor_that_cannot_start_is_heard(loractl, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mystery", "architectures": ["Mystery"]}))

    outcome = loractl.start(tmp_path, "sampler.count=0", "daemon.restart_limit=1")

    assert outcome.code == 1
    *said, line = outcome.err.splitlines()
    assert line.startswith("error: trainer cannot start")
    assert any("Mystery" in each for each in said)
    assert loractl("daemon", "status").code == 2
