"""The measurements that need a CUDA device, on realistic shapes; keeps what they print.

Each table goes to bench/results/<what>-<device>.txt, with the command that printed it.

    python bench/gpu.py
"""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import torch
from loractl.client.interrupts import interrupt_when_ended

_RESULTS = Path(__file__).parent / "results"
_SHAPES = ("qwen3-0.6b", "qwen3-8b")


def main() -> int:
    if not torch.cuda.is_available():
        sys.stderr.write("no CUDA device here: `make bench` measures on the CPU\n")
        return 1
    interrupt_when_ended()
    device = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")
    for shape in _SHAPES:
        on_cuda = ["--device", "cuda", "--shape", shape]
        _keep(f"train-{shape}-{device}", ["train.py", *on_cuda, "--dtype", "bfloat16"])
        _keep(f"swap-{shape}-{device}", ["swap.py", *on_cuda])
    return 0


def _keep(name: str, command: list[str]) -> None:
    """Run a program of this directory; show and keep what it prints.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    said = shlex.join(["python", f"bench/{command[0]}", *command[1:]])
    print(f"$ {said}", flush=True)
    file = _RESULTS / f"{name}.txt"
    program = [sys.executable, str(Path(__file__).with_name(command[0])), *command[1:]]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [f"$ {said}\n"]
        try:
            for line in process.stdout:
                sys.stdout.write(line)
                lines.append(line)
        except KeyboardInterrupt:
            process.terminate()
            raise
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, said)
    file.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
