"""Datums: token sequences with what is learned at each position, and how they are packed to travel.

Losses are sums on the server. A `Batch` is scaled so that its loss is the mean over the tokens that
are trained, which keeps learning rates comparable whatever the batch size.

Legend: N = positions of one datum, T = positions of many, end to end.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..bus.errors import InvalidData
from ..bus.loss_settings import LOSS_SETTINGS
from ..bus.messages import Floats, Ints, LossName

# One operation carries at most this many positions; a larger batch travels as several, whose
# gradients add up to the same sum. It bounds what the trainer must hold for one pass.
OPERATION_TOKENS = 8192

# What some losses add to the part that grows with the advantages: the setting that is its size.
_PENALTIES: Mapping[LossName, str] = {"dro": "beta", "stable_reinforce": "kl_coeff"}


@dataclass(frozen=True, slots=True, eq=False)
class Datum:
    """One sequence: position i has seen tokens[: i + 1] and predicts targets[i].

    weights [N]: how much each position counts, 0 for not at all. old_logprobs [N] and
    advantages [N]: for all losses but cross_entropy, where they are empty.
    """

    tokens: Ints
    targets: Ints
    weights: Floats
    old_logprobs: Floats
    advantages: Floats

    @property
    def arrays(self) -> tuple[Ints, Ints, Floats, Floats, Floats]:
        return self.tokens, self.targets, self.weights, self.old_logprobs, self.advantages

    @property
    def trained(self) -> int:
        """Positions that are learned from."""
        return int(np.count_nonzero(self.weights))


def supervised_datum(tokens: Sequence[int], trained: Sequence[bool]) -> Datum:
    """A datum that learns to say the marked tokens, each after all tokens before it.

    Raises:
        InvalidData: fewer than two tokens, or not one mark for each.
    """
    if len(tokens) < 2 or len(tokens) != len(trained):
        raise InvalidData(f"{len(tokens)} tokens with {len(trained)} marks: give at least 2, one mark each")
    return Datum(
        tokens=np.asarray(tokens[:-1], np.int64),
        targets=np.asarray(tokens[1:], np.int64),
        weights=np.asarray(trained[1:], np.float32),
        old_logprobs=np.empty(0, np.float32),
        advantages=np.empty(0, np.float32),
    )


def sampled_datum(
    prompt: Sequence[int], tokens: Sequence[int], logprobs: Sequence[float], advantages: Sequence[float]
) -> Datum:
    """A datum for all losses but cross_entropy: what was sampled after a prompt, and how good it was.

    Raises:
        InvalidData: no prompt, no tokens, or not one logprob and advantage for each token.
    """
    if not prompt or not tokens or not len(tokens) == len(logprobs) == len(advantages):
        raise InvalidData(
            f"{len(prompt)} prompt tokens, {len(tokens)} tokens, {len(logprobs)} logprobs, "
            f"{len(advantages)} advantages: the last three must be as many, and none may be empty"
        )
    sequence = np.asarray([*prompt, *tokens], np.int64)
    before = np.zeros(len(prompt) - 1, np.float32)  # positions that predict the prompt itself
    return Datum(
        tokens=sequence[:-1],
        targets=sequence[1:],
        weights=np.concatenate([before, np.ones(len(tokens), np.float32)]),
        old_logprobs=np.concatenate([before, np.asarray(logprobs, np.float32)]),
        advantages=np.concatenate([before, np.asarray(advantages, np.float32)]),
    )


def cut_datum(datum: Datum, length: int) -> Datum:
    """The first `length` positions.

    Raises:
        InvalidData: nothing that is learned lies within them.
    """
    cut = Datum(
        tokens=datum.tokens[:length],
        targets=datum.targets[:length],
        weights=datum.weights[:length],
        old_logprobs=datum.old_logprobs[:length],
        advantages=datum.advantages[:length],
    )
    if not cut.trained:
        raise InvalidData(f"nothing to learn within the first {length} of {len(datum.tokens)} tokens")
    return cut


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """Datums end to end, as `ForwardBackward` carries them. loss_config: settings that their scale asks for."""

    lengths: Ints
    tokens: Ints
    targets: Ints
    weights: Floats
    old_logprobs: Floats
    advantages: Floats
    loss_config: Mapping[str, float] = field(default_factory=dict)


def pack(datums: Sequence[Datum], loss: LossName, scale: float = 1.0) -> Packed:
    """Pack datums, with each one's part of the loss multiplied by `scale`.

    cross_entropy is linear in the weights. The others use weights as a mask only, and are linear in
    the advantages for a scale above 0, but for the penalties of dro and stable_reinforce, which the
    loss's settings scale.

    Raises:
        InvalidData: there is no datum, or one lacks what the loss needs or brings what it does not use.
    """
    if not datums:
        raise InvalidData("an operation needs at least one datum")
    sampled = loss != "cross_entropy"
    for index, datum in enumerate(datums):
        if (len(datum.advantages) > 0) != sampled:
            needs = "needs" if sampled else "does not use"
            raise InvalidData(f"datum {index}: {loss} {needs} old_logprobs and advantages")
    factor = np.float32(scale)
    return Packed(
        lengths=np.asarray([len(d.tokens) for d in datums], np.int64),
        tokens=np.concatenate([d.tokens for d in datums]),
        targets=np.concatenate([d.targets for d in datums]),
        weights=np.concatenate([d.weights for d in datums]) * (np.float32(1) if sampled else factor),
        old_logprobs=np.concatenate([d.old_logprobs for d in datums]),
        advantages=np.concatenate([d.advantages for d in datums]) * factor,
        loss_config=_scaled_penalty(loss, scale),
    )


def _scaled_penalty(loss: LossName, scale: float) -> dict[str, float]:
    if loss not in _PENALTIES or scale == 1.0:
        return {}
    setting = _PENALTIES[loss]
    return {setting: LOSS_SETTINGS[loss][setting] * scale}


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """The datums of one optimizer step. tokens: all positions; trained: those learned from."""

    datums: tuple[Datum, ...]

    @property
    def tokens(self) -> int:
        return sum(len(d.tokens) for d in self.datums)

    @property
    def trained(self) -> int:
        return sum(d.trained for d in self.datums)

    def operations(self, loss: LossName, limit: int = OPERATION_TOKENS) -> Iterator[Packed]:
        """The batch as one or more operations of at most `limit` positions, unless one datum is longer."""
        scale = 1.0 / self.trained
        for group in _groups(self.datums, limit):
            yield pack(group, loss, scale)


def _groups(datums: Iterable[Datum], limit: int) -> Iterator[list[Datum]]:
    group: list[Datum] = []
    size = 0
    for datum in datums:
        if group and size + len(datum.tokens) > limit:
            yield group
            group, size = [], 0
        group.append(datum)
        size += len(datum.tokens)
    if group:
        yield group


def digest_of(datums: Iterable[Datum]) -> str:
    """A fingerprint of everything that is trained on, in order: text, template and cuts included."""
    sha = hashlib.sha256()
    for datum in datums:
        sha.update(len(datum.tokens).to_bytes(8, "little"))
        for array in datum.arrays:
            sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()
