"""What a training run does at which step. Pure: the same settings give the same batches for ever.

Step k always trains on the same datums, so a run that stops and goes on takes the same steps as one
that never stopped.
"""

import functools
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from ..bus.errors import InvalidRequest
from ..bus.messages import LoraSpec, LossName


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """Everything about a run but its data. epochs and max_steps: whichever ends first; None for no
    bound of that kind. max_length: rows are cut to so many tokens; None cuts nothing."""

    rank: int = 16
    alpha: float = 32.0
    train_attn: bool = True
    train_mlp: bool = True
    train_unembed: bool = False
    seed: int = 0
    batch_size: int = 8
    loss: LossName = "cross_entropy"
    max_length: int | None = None
    learning_rate: float = 1e-4
    epochs: int | None = None
    max_steps: int | None = None
    save_every: int = 50

    @classmethod
    def of_lora(cls, lora: LoraSpec) -> "RunSettings":
        """Settings for an adapter that exists, the rest as when nothing is said."""
        return cls(
            rank=lora.rank,
            alpha=lora.alpha,
            train_attn=lora.train_attn,
            train_mlp=lora.train_mlp,
            train_unembed=lora.train_unembed,
            seed=lora.seed,
        )

    @property
    def lora(self) -> LoraSpec:
        return LoraSpec(
            rank=self.rank,
            alpha=self.alpha,
            seed=self.seed,
            train_attn=self.train_attn,
            train_mlp=self.train_mlp,
            train_unembed=self.train_unembed,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenSettings:
    """The settings that a person gave for this run; None where they gave none."""

    rank: int | None = None
    alpha: float | None = None
    train_attn: bool | None = None
    train_mlp: bool | None = None
    train_unembed: bool | None = None
    seed: int | None = None
    batch_size: int | None = None
    loss: LossName | None = None
    max_length: int | None = None
    learning_rate: float | None = None
    epochs: int | None = None
    max_steps: int | None = None
    save_every: int | None = None

    def over(self, base: RunSettings) -> RunSettings:
        """These settings, and the ones of `base` where none were given.

        A new bound on the run's length replaces both old ones.
        """
        if self.epochs is not None or self.max_steps is not None:
            base = replace(base, epochs=None, max_steps=None)
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(base, **{name: value for name, value in given.items() if value is not None})


# What an adapter is made of, and what makes a run this run: with another value, its steps would
# be other steps.
LORA_SETTINGS = ("rank", "alpha", "train_attn", "train_mlp", "train_unembed", "seed")
FIXED_SETTINGS = (*LORA_SETTINGS, "batch_size", "loss", "max_length")


def differences(
    recorded: RunSettings, wanted: RunSettings, names: Sequence[str] = FIXED_SETTINGS
) -> list[str]:
    """Why a run cannot go on with these settings, as "--rank 8 (so far: 16)"."""
    return [
        f"{option_name(name)} {_shown(getattr(wanted, name))} (so far: {_shown(getattr(recorded, name))})"
        for name in names
        if getattr(wanted, name) != getattr(recorded, name)
    ]


def option_name(field: str) -> str:
    return {"learning_rate": "--lr"}.get(field, "--" + field.replace("_", "-"))


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:g}"
    return "none" if value is None else str(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    """Which datums each step trains on, out of `count`, in an order drawn from the seed per epoch."""

    count: int
    batch_size: int
    seed: int
    total_steps: int

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.count / self.batch_size)

    def batch(self, step: int) -> tuple[int, ...]:
        """Indices of the datums of a step, counted from 0. The last batch of an epoch may be short."""
        epoch, place = divmod(step, self.steps_per_epoch)
        first = place * self.batch_size
        return epoch_order(self.count, self.seed, epoch)[first : first + self.batch_size]


def plan_run(settings: RunSettings, count: int) -> RunPlan:
    """One epoch when nothing else is said; max_steps alone goes round the data as often as it takes.

    Raises:
        InvalidRequest: a setting is out of range.
    """
    for name in ("rank", "batch_size", "epochs", "max_steps", "save_every", "max_length"):
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise InvalidRequest(f"{option_name(name)} must be at least 1, not {value}")
    for name in ("alpha", "learning_rate"):
        value = getattr(settings, name)
        if not 0 < value < math.inf:
            raise InvalidRequest(f"{option_name(name)} must be above 0, not {value:g}")
    per_epoch = math.ceil(count / settings.batch_size)
    bounds = [] if settings.max_steps is None else [settings.max_steps]
    if settings.epochs is not None or not bounds:
        bounds.append((settings.epochs or 1) * per_epoch)
    return RunPlan(count=count, batch_size=settings.batch_size, seed=settings.seed, total_steps=min(bounds))


@functools.lru_cache(maxsize=4)
def epoch_order(count: int, seed: int, epoch: int) -> tuple[int, ...]:
    """A permutation of range(count). Sorted by SHA-256, which no library version can change."""

    def key(index: int) -> bytes:
        return hashlib.sha256(f"{seed}/{epoch}/{index}".encode()).digest()

    return tuple(sorted(range(count), key=key))
