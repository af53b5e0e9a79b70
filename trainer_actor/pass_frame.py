"""What the modules of the model need to know of the pass that is running: set before it, cleared after.

megatron-core calls our modules with its own arguments only, so each holds this frame instead.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .packing import Packing

if TYPE_CHECKING:
    from .attention import Rotation
    from .lora_pass import LoraPass


def _nobody_asks() -> None:
    pass


class PassFrame:
    """alive: says that the pass gets on; the linears call it, forward and backward."""

    def __init__(self) -> None:
        self.alive: Callable[[], None] = _nobody_asks
        self._now: tuple[Packing, Rotation] | None = None
        self._lora: LoraPass | None = None

    @property
    def packing(self) -> Packing:
        assert self._now is not None, "the model runs outside of a pass"
        return self._now[0]

    @property
    def rotation(self) -> "Rotation":
        assert self._now is not None, "the model runs outside of a pass"
        return self._now[1]

    @property
    def lora(self) -> "LoraPass | None":
        """None: the base model without any adapter."""
        return self._lora

    @contextmanager
    def running(self, packing: Packing, rotation: "Rotation", lora: "LoraPass | None") -> Iterator[None]:
        """The frame of one pass, from its forward to the end of its backward."""
        self._now, self._lora = (packing, rotation), lora
        try:
            yield
        finally:
            self._now = self._lora = None
