"""A process that has read what every recipe imports, and becomes one for each order: a fork runs it as
`python -m MODULE ARGUMENTS` would, and saves the seconds that the imports take.

Orders are lines of JSON on stdin: [module, arguments, output]. Each is answered with the fork's number; the exit
code of one that ended by itself lies beside its output.
"""

import importlib
import json
import os
import runpy
import signal
import sys
import threading
import traceback
from pathlib import Path

PACKAGE = "tinker_cookbook.recipes."
RECIPES = ("sl_loop", "chat_sl.train", "rl_loop", "math_rl.train", "preference.dpo.train", "sdft.train")


def code_file(output: Path) -> Path:
    return output.with_suffix(".code")


def main() -> int:
    for recipe in RECIPES:
        importlib.import_module(PACKAGE + recipe)
        del sys.modules[PACKAGE + recipe]  # each runs as __main__, and is nothing else there
    importlib.import_module("transformers.models.auto.tokenization_auto")
    assert threading.active_count() == 1, "a fork has one thread"
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody here waits for them
    for line in sys.stdin:
        module, arguments, output = json.loads(line)
        pid = os.fork()
        if pid == 0:
            return run(module, arguments, Path(output))
        print(pid, flush=True)
    return 0


def run(module: str, arguments: list[str], output: Path) -> int:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with output.open("wb") as opened, Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
        for stream in (1, 2):
            os.dup2(opened.fileno(), stream)
    sys.argv[1:] = arguments
    code = 0
    try:
        runpy.run_module(PACKAGE + module, run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:  # noqa: BLE001 - as the interpreter would
        traceback.print_exc()
        code = 1
    code_file(output).write_text(str(code))
    return code


if __name__ == "__main__":
    sys.exit(main())
