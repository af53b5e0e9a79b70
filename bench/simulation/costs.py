"""What work takes on the virtual clock: a machine as a handful of numbers, each of them a flag.

A pass over the base model takes `pass_ms + adapter_ms * adapters + token_ms * positions`; an optim_step goes by the adapter's parameters; a copy by its bytes.
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """rank_parameters: LoRA parameters of a rank. weight_bytes: of each parameter in the type of the model,
    0 where passes use the main weights. overlap: copies run beside passes, and only what is not
    there when its pass begins is waited for."""

    origin: str
    pass_ms: float
    adapter_ms: float
    token_ms: float
    pass_tokens: int
    step_ms_per_million: float
    copy_bytes_per_ms: float
    disk_bytes_per_ms: float
    overlap: bool
    rank_parameters: int
    weight_bytes: int
    device_bytes: int
    host_bytes: int
    disk_bytes: int

    def pass_cost_ms(self, positions: int, adapters: int = 1) -> float:
        return self.pass_ms + self.adapter_ms * adapters + self.token_ms * positions

    def step_cost_ms(self, rank: int) -> float:
        return self.step_ms_per_million * self.rank_parameters * rank / 1e6

    def row_bytes(self, rank: int) -> int:
        """Main weights, two moments, gradients and a pass's scratch in 4 bytes each, and the model's type."""
        return (20 + self.weight_bytes) * self.rank_parameters * rank

    def state_bytes(self, rank: int) -> int:
        """Main weights, two moments and gradients, in 4 bytes each."""
        return 16 * self.rank_parameters * rank


# What `python bench/sim.py --measure bfloat16` and `--measure float32` said at 23ba729, on two cores that others
# used as well (load 4 to 5). The memory is chosen.
TWO_CORES = Machine(
    origin="measured: SmolLM2-135M's shape in bfloat16 on one thread of two shared cores",
    pass_ms=158.0,
    adapter_ms=8.3,
    token_ms=2.34,
    pass_tokens=256,
    step_ms_per_million=3.9,
    copy_bytes_per_ms=6.2e6,
    disk_bytes_per_ms=1.3e6,
    overlap=False,
    rank_parameters=305_280,
    weight_bytes=0,
    device_bytes=2 * 2**30,
    host_bytes=8 * 2**30,
    disk_bytes=2 * 2**40,
)
TWO_CORES_FLOAT32 = replace(
    TWO_CORES,
    origin="measured: SmolLM2-135M's shape in float32 on one thread of two shared cores",
    pass_ms=245.0,
    adapter_ms=14.2,
    token_ms=4.96,
    step_ms_per_million=4.1,
    copy_bytes_per_ms=6.9e6,
    disk_bytes_per_ms=1.2e6,
)
LARGE_GPU = Machine(
    origin="assumed, not measured: a model of 8 billion parameters in bf16 on one large GPU",
    pass_ms=60.0,
    adapter_ms=0.0,
    token_ms=0.08,
    pass_tokens=16384,
    step_ms_per_million=0.02,
    copy_bytes_per_ms=50e6,
    disk_bytes_per_ms=3e6,
    overlap=True,
    rank_parameters=2_725_000,
    weight_bytes=2,
    device_bytes=60 * 2**30,
    host_bytes=512 * 2**30,
    disk_bytes=32 * 2**40,
)
PRESETS = {"two-cores": TWO_CORES, "two-cores-float32": TWO_CORES_FLOAT32, "large-gpu": LARGE_GPU}
