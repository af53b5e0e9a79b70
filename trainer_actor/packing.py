"""How sequences of different lengths share one pass: packed end to end, padded only for attention.

A sequence's padded length depends on its own length alone, and sequences of the same padded length
form one attention batch. So attention computes the same bits for a sequence whatever else is in the
pass. Padding repeats the sequence's own last position: causality keeps it from being seen, and if
it is NaN, it is NaN for its owner only.

Legend: T = packed positions, P = positions with padding, S = padded length, n = sequences of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """positions [T]: of each token within its sequence. batches: (n, S) of each attention batch.

    source [P]: which token stands at each padded place; place [T]: where each token stands. Both are
    None when nothing is padded and the order is the packed one.
    """

    tokens: int
    positions: torch.Tensor
    batches: tuple[tuple[int, int], ...]
    source: torch.Tensor | None
    place: torch.Tensor | None


def pack(lengths: Sequence[int], device: torch.device) -> Packing:
    """Plan a pass over sequences of these lengths, each at least 1, in this order."""
    spans = np.array(lengths, dtype=np.int64)
    starts = np.concatenate(([0], np.cumsum(spans)[:-1]))
    tokens = int(spans.sum())
    positions = np.arange(tokens) - np.repeat(starts, spans)
    padded = np.array([padded_length(int(span)) for span in spans])
    sizes = sorted(set(padded.tolist()))
    batches = tuple((int((padded == size).sum()), size) for size in sizes)
    source = place = None
    if len(sizes) > 1 or bool((spans != padded).any()):
        source, place = _padded_places(starts, spans, padded, sizes)
    return Packing(
        tokens=tokens,
        positions=torch.from_numpy(positions).to(device),
        batches=batches,
        source=None if source is None else torch.from_numpy(source).to(device),
        place=None if place is None else torch.from_numpy(place).to(device),
    )


def padded_length(length: int) -> int:
    """Round up to a multiple of 8, or of a sixteenth of the next power of two: less than 1/8 is added
    beyond 64."""
    step = max(8, (1 << (length - 1).bit_length()) // 16)
    return -(-length // step) * step


def _padded_places(
    starts: np.ndarray, spans: np.ndarray, padded: np.ndarray, sizes: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    sources = []
    place = np.empty(int(spans.sum()), dtype=np.int64)
    offset = 0
    for size in sizes:
        for index in np.flatnonzero(padded == size):
            start, span = int(starts[index]), int(spans[index])
            sources.append(start + np.minimum(np.arange(size), span - 1))
            place[start : start + span] = offset + np.arange(span)
            offset += size
    return np.concatenate(sources), place
