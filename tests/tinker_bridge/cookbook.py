"""The cookbook's recipes as processes of their own (`kitchen`), unmodified, on small data sets made here.

The recipes load data sets by their hub names; `datasets` takes a folder of that name in the working
directory instead. Neither a recipe nor its server gets a seed for fresh weights, so two runs that are
to be compared begin with the same saved state: `begin_with` makes a log directory whose last checkpoint
that is, and every recipe goes on from there.
"""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from loractl.tests.tinker_bridge.kitchen import code_file
from loractl.tests.tinker_bridge.sdk import types
from loractl.tests.tinker_bridge.served import MODEL, Served

PATIENCE_S = 250.0
# What rl_loop and math_rl reward on every row; the other is as likely at first.
RIGHT, WRONG = "\\boxed{7}", "\\boxed{8}"
_QUESTION = "Which number?"

Metrics = list[dict[str, Any]]


class Forked:
    """A process of the kitchen's. code: the file with its exit code, if it ended by itself."""

    def __init__(self, pid: int, code: Path) -> None:
        self._process, self._code = psutil.Process(pid), code

    def wait(self, timeout_s: float = PATIENCE_S) -> int:
        self._process.wait(timeout_s)
        return int(self._code.read_text()) if self._code.exists() else -signal.SIGKILL

    def kill(self) -> None:
        with suppress(psutil.NoSuchProcess):
            self._process.kill()


@dataclass(frozen=True)
class Recipe:
    """A running one. log: where it writes metrics and checkpoints."""

    process: Forked
    log: Path
    output: Path

    def metrics(self) -> Metrics:
        """Waits until it is through. One row a step."""
        code = self.process.wait()
        assert code == 0, self.output.read_text()[-4000:]
        return rows(self.log / "metrics.jsonl")

    def checkpoints(self) -> Metrics:
        """Those it has written down so far."""
        return rows(self.log / "checkpoints.jsonl")


@dataclass
class Cookbook:
    """root: working directory of all recipes. running: what is ended with the tests."""

    root: Path
    kitchen: "subprocess.Popen[str]"
    running: list[Recipe] = field(default_factory=list)

    def log(self, name: str) -> Path:
        return self.root / "logs" / name

    def begin_with(self, name: str, state: str) -> None:
        """Make a run whose last checkpoint is this one, before its first batch."""
        self.log(name).mkdir(parents=True)
        write_rows(
            self.log(name) / "checkpoints.jsonl",
            [{"name": "begin", "batch": 0, "epoch": 0, "state_path": state}],
        )

    def start(self, module: str, name: str, **options: object) -> Recipe:
        """name: of the log directory. What stands there already is gone on with."""
        given = [f"{option}={value}" for option, value in options.items()]
        arguments = [f"model_name={MODEL}", f"log_path={self.log(name)}", *given]
        output = self.root / f"{name}-{len(self.running)}.txt"
        assert self.kitchen.stdin is not None
        assert self.kitchen.stdout is not None
        print(json.dumps([module, arguments, str(output)]), file=self.kitchen.stdin, flush=True)
        process = Forked(int(self.kitchen.stdout.readline()), code_file(output))
        self.running.append(Recipe(process, self.log(name), output))
        return self.running[-1]

    def supervised_loop(self, name: str, **options: object) -> Recipe:
        """sl_loop: batches of 4 rows, a rate that is good for a tiny model."""
        settings = {"batch_size": 4, "max_length": 256, "learning_rate": 0.01, "save_every": 2, **options}
        return self.start("sl_loop", name, **settings)

    def chat(self, name: str, epochs: int) -> Recipe:
        """chat_sl: three batches an epoch, the same rate in all of them."""
        return self.start(
            "chat_sl.train",
            name,
            renderer_name="qwen3",
            dataset=self.root / "conversations.jsonl",
            batch_size=8,
            max_length=256,
            learning_rate=0.01,
            lr_schedule="constant",
            num_epochs=epochs,
            save_every=2,
            rolling_save_every=1,
            behavior_if_log_dir_exists="resume",
        )


@contextmanager
def cookbook(served: Served, root: Path) -> Iterator[Cookbook]:
    make_data(root)
    kitchen = subprocess.Popen(
        [sys.executable, "-P", str(Path(__file__).with_name("kitchen.py"))],
        cwd=root,
        env=served.environment(TINKER_COOKBOOK_RUNS_DIR=str(root / "runs"), HF_HOME=str(root / "hf")),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    book = Cookbook(root, kitchen)
    try:
        yield book
    finally:
        for recipe in book.running:
            recipe.process.kill()
            recipe.process.wait()
        kitchen.kill()
        kitchen.wait()


def make_data(root: Path) -> None:
    def chat(number: int) -> dict[str, Any]:
        question = {"role": "user", "content": f"What is {number} plus {number}?"}
        return {"messages": [question, {"role": "assistant", "content": f"It is {2 * number}."}]}

    def preference(number: int) -> dict[str, Any]:
        question = f"\n\nHuman: What is {number}?\n\nAssistant: "
        return {"chosen": f"{question}Good {number}.", "rejected": f"{question}Bad."}

    chats = [chat(number) for number in range(160)]
    _write_splits(root / "HuggingFaceH4/no_robots", chats, chats[:16])
    write_rows(root / "conversations.jsonl", chats[:24])
    preferences = [preference(number) for number in range(32)]
    _write_splits(root / "Anthropic/hh-rlhf", preferences, preferences[:8])
    problems = [{"question": _QUESTION, "answer": "#### 7"}] * 256
    _write_splits(root / "openai/gsm8k/main", problems, problems[:4])
    files = "  - split: train\n    path: main/train.jsonl\n  - split: test\n    path: main/test.jsonl\n"
    header = f"---\nconfigs:\n- config_name: main\n  data_files:\n{files}---\n"
    (root / "openai/gsm8k/README.md").write_text(header)
    choices = {"label": ["A", "B"], "text": ["one", "two"]}
    kind = {"domain": "Chemistry", "details": {"level": "L3"}, "type": "mcq-4-choices"}
    write_rows(
        root / "hicai-zju/SciKnowEval/test.jsonl",
        [{**kind, "question": f"What is {n}?", "choices": choices, "answerKey": "A"} for n in range(20)],
    )


def undecided(client: Any) -> None:
    """Train a client until it answers the reinforcement recipes' question right or wrong, half and half."""
    from tinker_cookbook import renderers
    from tinker_cookbook.recipes.math_rl.math_env import Gsm8kDataset, MathEnv

    renderer = renderers.get_renderer("qwen3", client.get_tokenizer())
    asked = {"role": "user", "content": _QUESTION + Gsm8kDataset.question_suffix()}
    prompt = renderer.build_generation_prompt([*MathEnv.standard_fewshot_prefix(), asked]).to_ints()
    stop = renderer.get_stop_sequences()[0]
    data = [_answered(prompt, [*client.get_tokenizer().encode(each), stop]) for each in (RIGHT, WRONG)]
    for _ in range(25):
        running = client.forward_backward(data, "cross_entropy")
        client.optim_step(types.AdamParams(learning_rate=0.003)).result()
        loss = running.result().metrics["loss:sum"]
    # What is left is the choice between the two: ln 2 for each.
    assert loss < 2.0


def _answered(prompt: Sequence[int], answer: Sequence[int]) -> Any:
    ids = [*prompt, *answer]
    weights = [0.0] * (len(prompt) - 1) + [1.0] * len(answer)
    return types.Datum(
        model_input=types.ModelInput.from_ints(ids[:-1]),
        loss_fn_inputs={"target_tokens": ids[1:], "weights": weights},
    )


def rows(file: Path) -> Metrics:
    """Complete lines only: the last may be half written."""
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]


def write_rows(file: Path, found: Sequence[object]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in found))


def _write_splits(folder: Path, train: Sequence[object], test: Sequence[object]) -> None:
    write_rows(folder / "train.jsonl", train)
    write_rows(folder / "test.jsonl", test)
