"""The doctor: what is there, what is missing, and what to do about it."""

import io
from pathlib import Path

from loractl.bus.client import check_daemon
from loractl.bus.config import load_config
from loractl.bus.layout import StateLayout
from loractl.client.doctor import (
    Check,
    Tried,
    examine_cheaply,
    show_checks,
    torch_check,
    try_import,
    vllm_check,
)
from rich.console import Console


def checks_for(state_dir: Path) -> dict[str, Check]:
    config = load_config(state_dir=str(state_dir), environ={})

    def ask_daemon():
        check_daemon(StateLayout(state_dir))
        raise AssertionError("no daemon runs in this test")

    return {check.name: check for check in examine_cheaply(config, ask_daemon)}


def test_everything_of_this_installation_is_found(tmp_path: Path):
    checks = checks_for(tmp_path / "state")

    assert {name for name, check in checks.items() if check.verdict == "missing"} == set()
    assert checks["daemon"] == Check(
        "daemon", "note", "not running", "loractl daemon start --base-model NAME=PATH"
    )
    assert not (tmp_path / "state").exists()


def test_a_library_is_tried_in_a_process_of_its_own():
    works = try_import("numpy", "print('fine')")
    dies = try_import("numpy", "import os; os.abort()")
    fails = try_import("numpy", "raise RuntimeError('no such operator')")

    assert works.works
    assert works.said == "fine"
    assert (dies.works, dies.said) == (False, "its import ended with code -6")
    assert (fails.works, fails.said) == (False, "RuntimeError: no such operator")
    assert try_import("no-such-package", "") == Tried(None, False, "not installed")


def test_torch_is_needed_and_vllm_only_when_it_is_the_chosen_engine():
    absent = Tried(None, False, "not installed")
    broken = Tried("0.32.0", False, "cannot open shared object file: libnuma.so.1")

    assert torch_check(absent).verdict == "missing"
    assert vllm_check(absent, needed=False).verdict == "note"
    assert "embedded torch engine samples" in vllm_check(absent, needed=False).remedy
    assert vllm_check(broken, needed=True).verdict == "missing"
    assert "libnuma1" in vllm_check(broken, needed=True).remedy


def test_something_needed_that_is_missing_fails_the_whole():
    stream = io.StringIO()
    checks = [Check("torch", "missing", "not installed", "pip install it"), Check("vllm", "note", "absent")]

    complete = show_checks(Console(file=stream), iter(checks))

    assert not complete
    assert (
        "missing  torch         not installed\n                       → pip install it\n" in stream.getvalue()
    )


def test_a_state_directory_too_deep_for_sockets_is_told(tmp_path: Path):
    checks = checks_for(tmp_path / ("x" * 100))

    assert checks["socket path"].verdict == "missing"
    assert "shorter --state-dir" in checks["socket path"].remedy
