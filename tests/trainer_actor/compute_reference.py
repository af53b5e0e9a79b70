"""The plain way, for comparison: Hugging Face PEFT, whole logits at once, autograd through all of it."""

from collections.abc import Callable

import torch
from loractl.tests.trainer_actor.compute_lab import VOCAB, Lab, weights
from loractl.trainer_actor.engine import TrainEngine
from loractl.trainer_actor.passes import PassPart
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# The summed loss of one datum, from its log p [n] or [n, K] and the part's arrays for it.
DatumLoss = Callable[[Tensor, dict[str, Tensor]], Tensor]


def plain_pass(
    lab: Lab, family: str, engine: TrainEngine, part: PassPart, loss: DatumLoss
) -> tuple[Tensor, float, dict[str, Tensor]]:
    """log p of the targets, the summed loss, and the gradients of the slot's adapter by our names."""
    model = lab.peft(family, part.lora)
    adapter = {
        name.replace(".default", ""): each for name, each in model.named_parameters() if "lora_" in name
    }
    for name, value in weights(engine, part.slot).items():
        adapter[name].data.copy_(value)
    logprobs, total = [], torch.zeros(())
    for datum in datums_of(part):
        targets = datum["targets"].view(len(datum["tokens"]), -1)
        found = model(datum["tokens"][None]).logits[0].log_softmax(-1).gather(1, targets)
        logprobs.append(found.view(datum["targets"].shape))
        total = total + loss(logprobs[-1], datum)
    total.backward()
    return (
        torch.cat(logprobs).detach(),
        float(total.detach()),
        {name: each.grad for name, each in adapter.items()},
    )


def datums_of(part: PassPart) -> list[dict[str, Tensor]]:
    """The part's arrays, datum by datum; arrays that are empty stay so."""
    lengths = part.lengths.tolist()
    names = ("tokens", "targets", "weights", "old_logprobs", "advantages", "ratio_mask")
    arrays = {name: torch.tensor(getattr(part, name)) for name in names}
    pieces = {
        name: each.split(lengths) if len(each) else [each] * len(lengths) for name, each in arrays.items()
    }
    return [{name: each[index] for name, each in pieces.items()} for index in range(len(lengths))]


class WidestLogits(TorchDispatchMode):
    """The most rows that any tensor with the vocabulary as its last dimension ever had."""

    rows = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor) and tensor.ndim > 1 and tensor.shape[-1] == VOCAB:
                self.rows = max(self.rows, tensor.numel() // VOCAB)
        return result
