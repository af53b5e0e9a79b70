"""How fast training states move, against plain copies of as many bytes between the same memory.

A swap brings one adapter out of the only slot and another one into it, through the trainer's own
`Residents`: decided, copied, counted. Beside it, in the same run and in alternating rounds, `copy_`
moves the same pieces between the same tensors. Kinds of a swap:

    window   all four pieces both ways: gradients wait for their step
    stepped  main weights and moments both ways: gradients were just applied
    scored   inwards only: the one that leaves did not change

share is plain time / swap time, so 1 is as fast as the memory. overhead is what a swap costs beyond
its bytes: the time of one whose pieces are next to nothing. hidden, on CUDA only, is the share of a
prefetch's time that vanishes behind a computation that runs at the same time. On a CPU with one thread
it is CPU time that counts, otherwise wall time; every figure is the median of the rounds.

    python bench/swap.py [--shapes NAME,...] [--ranks N,...] [--dtype NAME] [--device cpu|cuda]
                         [--rounds N] [--quick] [--json]
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from loractl.bus.config import set_process_environment

# Before torch is imported.
set_process_environment({"TORCHDYNAMO_DISABLE": "1", "OMP_NUM_THREADS": "1"})

import structlog  # noqa: E402
import torch  # noqa: E402
from loractl.bus.ids import AdapterId  # noqa: E402
from loractl.bus.messages import LoraSpec  # noqa: E402
from loractl.trainer_actor.bank import PIECES, Bank, HostState, Piece  # noqa: E402
from loractl.trainer_actor.budgets import Budgets  # noqa: E402
from loractl.trainer_actor.linears import ModelShape  # noqa: E402
from loractl.trainer_actor.resident import Residents  # noqa: E402
from loractl.trainer_actor.row_layout import RowLayouts  # noqa: E402
from loractl.trainer_actor.spill import SpillStore  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

TARGET = 0.8
SHAPES = {
    "smollm2-135m": ModelShape(
        layers=30, hidden=576, ffn=1536, heads=9, kv_heads=3, head_dim=64, vocab=49152
    ),
    "qwen3-0.6b": ModelShape(
        layers=28, hidden=1024, ffn=3072, heads=16, kv_heads=8, head_dim=128, vocab=151936
    ),
    "qwen3-8b": ModelShape(
        layers=36, hidden=4096, ffn=12288, heads=32, kv_heads=8, head_dim=128, vocab=151936
    ),
    "tiny": ModelShape(layers=1, hidden=8, ffn=8, heads=1, kv_heads=1, head_dim=8, vocab=8),
}
KINDS: dict[str, tuple[Piece, ...]] = {
    "window": PIECES,
    "stepped": ("main", "exp_avg", "exp_avg_sq"),
    "scored": (),
}
A, B, C = (AdapterId(name) for name in "abc")


@dataclass(frozen=True)
class Case:
    """state_bytes: of one adapter, in this kind. swap_ms, plain_ms: of both ways together."""

    shape: str
    rank: int
    kind: str
    state_bytes: int
    swap_ms: float
    plain_ms: float
    share: float
    hidden: float | None


@dataclass(frozen=True)
class Report:
    device: str
    dtype: str
    overhead_us: float
    cases: list[Case]


class Scene:
    """Two adapters that take turns in one slot, each with a whole state in host memory as well."""

    def __init__(
        self, shape: str, rank: int, dtype: torch.dtype, device: torch.device, *, slots: int = 1
    ) -> None:
        self.device = device
        self.bank = Bank(RowLayouts(SHAPES[shape]), slots, dtype, device)
        budgets = Budgets(slots=slots, device_bytes=1 << 50, host_bytes=1 << 50, disk_bytes=0)
        self._directory = tempfile.TemporaryDirectory()
        self.residents = Residents(self.bank, budgets, SpillStore(Path(self._directory.name)))
        self.lora = LoraSpec(rank=rank, alpha=2.0 * rank, seed=1)
        for adapter in (A, B, C):
            self.residents.admit(adapter, self.lora)

    def train(self, adapter: AdapterId, *, gradients: bool) -> None:
        """As if passes and steps had run: every piece has numbers, and changed."""
        row = self.bank.row(self.residents.place(adapter))
        row.step, row.tokens = 1, 1
        for piece in PIECES:
            if piece != "gradients" or gradients:
                row.hold(piece).fill_(0.5)
        if not gradients:
            row.drop("gradients")
        row.round_weights()
        row.changed.update(piece for piece in PIECES if row.piece(piece) is not None)

    def change(self, adapter: AdapterId, pieces: tuple[Piece, ...]) -> None:
        self.bank.row(self.residents.place(adapter)).changed.update(pieces)

    def finish(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def timed_ms(self, work: Callable[[], None]) -> float:
        clock = time.process_time if self.device.type == "cpu" else time.perf_counter
        self.finish()
        begin = clock()
        work()
        self.finish()
        return (clock() - begin) * 1000


def measure_case(
    shape: str, rank: int, kind: str, dtype: torch.dtype, device: torch.device, rounds: int
) -> Case:
    scene = Scene(shape, rank, dtype, device)
    for adapter in (A, B, A, B):
        scene.train(adapter, gradients=kind == "window")
    state = scene.residents.state(B)
    other = scene.residents.state(A)
    swaps, plains = [], []
    for number in range(rounds + 2):
        out, into = (B, A) if number % 2 == 0 else (A, B)
        scene.change(out, KINDS[kind])
        swaps.append(scene.timed_ms(lambda adapter=into: place(scene, adapter)))
        plains.append(scene.timed_ms(lambda: plain_copies(scene, state, other, KINDS[kind])))
    swap_ms, plain_ms = statistics.median(swaps[2:]), statistics.median(plains[2:])
    hidden = measure_hidden(scene, KINDS[kind], rounds) if device.type == "cuda" else None
    return Case(shape, rank, kind, state.size_bytes, swap_ms, plain_ms, plain_ms / swap_ms, hidden)


def place(scene: Scene, adapter: AdapterId) -> None:
    scene.residents.place(adapter)


def plain_copies(scene: Scene, out: HostState, into: HostState, changed: tuple[Piece, ...]) -> None:
    """The bytes of a swap, between the tensors of a swap."""
    row = scene.bank.row(0)
    for piece in changed:
        getattr(out, piece).copy_(row.piece(piece), non_blocking=True)
    for piece in PIECES:
        if (source := getattr(into, piece)) is not None:
            row.hold(piece).copy_(source, non_blocking=True)


def measure_hidden(scene: Scene, changed: tuple[Piece, ...], rounds: int) -> float:
    """Of the time that a prefetch takes alone, how much a computation of twice its length hides."""
    square = torch.randn(4096, 4096, dtype=torch.bfloat16, device=scene.device)

    def compute(times: int) -> None:
        for _ in range(times):
            torch.mm(square, square)

    def swap(into: AdapterId) -> None:
        scene.residents.prefetch([into])

    compute(3)
    scene.residents.place(A)
    alone_ms = [swap_back_ms(scene, changed, lambda: None, swap) for _ in range(rounds)]
    swap_ms = statistics.median(alone_ms)
    once_ms = scene.timed_ms(lambda: compute(10)) / 10
    times = max(1, round(2 * swap_ms / once_ms))
    compute_ms = statistics.median(scene.timed_ms(lambda: compute(times)) for _ in range(rounds))
    both = [swap_back_ms(scene, changed, lambda: compute(times), swap) for _ in range(rounds)]
    return (compute_ms + swap_ms - statistics.median(both)) / swap_ms


def swap_back_ms(
    scene: Scene, changed: tuple[Piece, ...], compute: Callable[[], None], swap: Callable[[AdapterId], None]
) -> float:
    """One prefetch of the adapter that is away, with a computation given to the device behind it."""
    out, into = (A, B) if scene.residents.on_device(A) else (B, A)
    scene.change(out, changed)
    scene.residents.place_all([])  # nobody is in use, so the one in the slot may leave

    def both() -> None:
        swap(into)
        compute()

    return scene.timed_ms(both)


def measure_overhead_us(dtype: torch.dtype, device: torch.device, rounds: int) -> float:
    return 1000 * measure_case("tiny", 8, "window", dtype, device, 20 * rounds).swap_ms


def measure(options: argparse.Namespace) -> Report:
    device = torch.device(options.device)
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[options.dtype]
    torch.set_num_threads(1)
    cases = [
        measure_case(shape, int(rank), kind, dtype, device, options.rounds)
        for shape in options.shapes.split(",")
        for rank in options.ranks.split(",")
        for kind in KINDS
    ]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu, one thread"
    return Report(name, options.dtype, measure_overhead_us(dtype, device, options.rounds), cases)


def show(report: Report) -> None:
    table = Table(title=f"swaps on {report.device}, {report.dtype}")
    for column in ("shape", "rank", "kind", "state MB", "swap ms", "plain ms", "share", "hidden"):
        table.add_column(column, justify="left" if column in ("shape", "kind") else "right")
    for case in report.cases:
        table.add_row(
            case.shape,
            str(case.rank),
            case.kind,
            f"{case.state_bytes / 1e6:.1f}",
            f"{case.swap_ms:.2f}",
            f"{case.plain_ms:.2f}",
            f"{case.share:.2f}",
            "" if case.hidden is None else f"{case.hidden:.2f}",
        )
    console = Console()
    console.print(table)
    worst = min(case.share for case in report.cases)
    console.print(
        f"overhead of a swap beyond its bytes: {report.overhead_us:.0f} us; "
        f"lowest share {worst:.2f} (target {TARGET} or more)"
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--ranks", default="8,32")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--quick", action="store_true", help="fewer rounds of the smallest shape")
    parser.add_argument("--json", action="store_true", help="one object for programs on standard output")
    options = parser.parse_args()
    options.shapes = options.shapes or ("smollm2-135m" if options.quick else "smollm2-135m,qwen3-0.6b")
    options.rounds = options.rounds or (9 if options.quick else 25)
    return options


def main() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))
    options = arguments()
    report = measure(options)
    if options.json:
        print(json.dumps(asdict(report)))
    else:
        show(report)


if __name__ == "__main__":
    main()
