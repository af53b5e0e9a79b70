"""The trainer as a process: what it prints when it cannot start."""

import subprocess
import sys
from pathlib import Path

from loractl.bus.config import Config, ModelConfig, subprocess_environment
from loractl.bus.layout import StateLayout
from loractl.bus.sockets import bind_router, close, new_context


def test_a_trainer_that_cannot_start_prints_its_reason_and_nothing_of_libraries(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    config = Config(state_dir=str(tmp_path), model=ModelConfig(path=str(missing), device="cpu"))
    layout = StateLayout(tmp_path)
    layout.run.mkdir(mode=0o700)
    layout.config.write_text(config.to_json())
    context = new_context()
    broker = bind_router(context, layout.actor_socket, config.limits, handover=True)

    ended = subprocess.run(
        [sys.executable, "-m", "loractl.trainer_actor", "--config", str(layout.config)],
        env=subprocess_environment({"PYTHONPATH": str(Path(__file__).parents[2] / ".pkg")}),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    close(context, broker)

    assert ended.returncode == 3
    assert ended.stderr.splitlines() == [
        f"trainer cannot start: '{missing}' is no directory: set model.path to a Hugging Face model directory"
    ]
