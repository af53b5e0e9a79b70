"""What work takes on the virtual clock: a machine as a handful of numbers, each of them a flag.

A pass over the base model takes `pass_ms + token_ms * positions`, whatever number of adapters shares
it; an optim_step goes by the adapter's parameters; a copy by its bytes.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """rank_parameters: LoRA parameters of a rank. overlap: copies run beside passes, and only what is not
    there when its pass begins is waited for."""

    origin: str
    pass_ms: float
    token_ms: float
    pass_tokens: int
    step_ms_per_million: float
    copy_bytes_per_ms: float
    disk_bytes_per_ms: float
    overlap: bool
    rank_parameters: int
    device_bytes: int
    host_bytes: int
    disk_bytes: int

    def pass_cost_ms(self, positions: int) -> float:
        return self.pass_ms + self.token_ms * positions

    def step_cost_ms(self, rank: int) -> float:
        return self.step_ms_per_million * self.rank_parameters * rank / 1e6

    def row_bytes(self, rank: int) -> int:
        """Weights in 2 bytes; main weights, two moments, gradients and a pass's scratch in 4 each."""
        return 22 * self.rank_parameters * rank

    def state_bytes(self, rank: int) -> int:
        """Main weights, two moments and gradients, in 4 bytes each."""
        return 16 * self.rank_parameters * rank


TWO_CORES = Machine(
    origin="measured: SmolLM2-135M's shape in bf16 on one thread of two shared cores",
    pass_ms=175.0,
    token_ms=2.3,
    pass_tokens=1024,
    step_ms_per_million=4.3,
    copy_bytes_per_ms=12e6,
    disk_bytes_per_ms=1.6e6,
    overlap=False,
    rank_parameters=305_280,
    device_bytes=2 * 2**30,
    host_bytes=8 * 2**30,
    disk_bytes=2 * 2**40,
)
LARGE_GPU = Machine(
    origin="assumed, not measured: a model of 8 billion parameters in bf16 on one large GPU",
    pass_ms=60.0,
    token_ms=0.08,
    pass_tokens=16384,
    step_ms_per_million=0.02,
    copy_bytes_per_ms=50e6,
    disk_bytes_per_ms=3e6,
    overlap=True,
    rank_parameters=2_725_000,
    device_bytes=60 * 2**30,
    host_bytes=512 * 2**30,
    disk_bytes=32 * 2**40,
)
PRESETS = {"two-cores": TWO_CORES, "large-gpu": LARGE_GPU}
