"""One packed step: tokens of many sequences side by side, and the attention that keeps them apart.

Everything else in the model works on single tokens, so packing changes nothing there. Only
attention knows which token belongs to whom: it writes the new keys and values into each sequence's
cache row, and lets each token see its own row up to its own position.

Legend: T = packed tokens, N = sequences that run one token, H = query heads, K = key-value heads,
D = head size, L = longest of a group, C = tokens of a prompt chunk.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .torch_cache import Bank, KvCache
from .torch_plan import Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class Answering:
    """Sequences of one bank that run one token each: tokens first to last of the packed batch.

    rows_N: theirs in the bank; span: the same rows, as a slice when they lie side by side.
    seen_N11L: which positions each may see.
    """

    bank: Bank
    first: int
    last: int
    rows_N: Tensor
    span: slice | Tensor
    positions_N: Tensor
    longest: int
    seen_N11L: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A chunk of one sequence, tokens first to last of the batch, positions from `start` on.

    seen_CL: which positions each token may see; None when it is all that came before it in the
    chunk, which is the whole sequence so far.
    """

    bank: Bank
    row: int
    first: int
    last: int
    start: int
    seen_CL: Tensor | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedStep:
    """order: the sequences and how many tokens of each, as they lie in ids_1T and positions_1T."""

    order: tuple[tuple[Sequence, int], ...]
    ids_1T: Tensor
    positions_1T: Tensor
    answering: tuple[Answering, ...]
    prompts: tuple[Prompt, ...]


def pack(chunks: Iterable[tuple[Sequence, int]], cache: KvCache, device: torch.device) -> PackedStep:
    """Lay out the next tokens of each sequence: single ones first, bank by bank in row order."""
    placed = [(sequence, count, *cache.place(sequence.key)) for sequence, count in chunks]
    placed.sort(key=lambda p: (p[1] > 1, p[2].capacity, p[3]))
    singles = [(sequence, bank, row) for sequence, count, bank, row in placed if count == 1]
    answering: list[Answering] = []
    first = 0
    for _, members in groupby(singles, key=lambda m: m[1].capacity):
        answering.append(_answering(list(members), first, device))
        first = answering[-1].last
    prompts = []
    for sequence, count, bank, row in placed[first:]:
        prompts.append(_prompt(sequence, count, bank, row, first, device))
        first += count
    ids = [t for s, count, *_ in placed for t in s.tokens[s.cached : s.cached + count]]
    positions = [p for s, count, *_ in placed for p in range(s.cached, s.cached + count)]
    return PackedStep(
        order=tuple((sequence, count) for sequence, count, *_ in placed),
        ids_1T=torch.tensor([ids], device=device),
        positions_1T=torch.tensor([positions], device=device),
        answering=tuple(answering),
        prompts=tuple(prompts),
    )


def _answering(members: list[tuple[Sequence, Bank, int]], first: int, device: torch.device) -> Answering:
    rows = [row for _, _, row in members]
    rows_N = torch.tensor(rows, device=device)
    positions_N = torch.tensor([sequence.cached for sequence, _, _ in members], device=device)
    longest = 1 + max(sequence.cached for sequence, _, _ in members)
    seen_NL = torch.arange(longest, device=device) <= positions_N[:, None]
    side_by_side = rows[-1] - rows[0] + 1 == len(rows)
    return Answering(
        bank=members[0][1],
        first=first,
        last=first + len(rows),
        rows_N=rows_N,
        span=slice(rows[0], rows[-1] + 1) if side_by_side else rows_N,
        positions_N=positions_N,
        longest=longest,
        seen_N11L=seen_NL[:, None, None, :],
    )


def _prompt(sequence: Sequence, count: int, bank: Bank, row: int, first: int, device: torch.device) -> Prompt:
    start = sequence.cached
    seen_CL = None
    if start:
        positions_C = torch.arange(start, start + count, device=device)
        seen_CL = torch.arange(start + count, device=device) <= positions_C[:, None]
    return Prompt(bank=bank, row=row, first=first, last=first + count, start=start, seen_CL=seen_CL)


def packed_attention(
    module: nn.Module,
    query_1HTD: Tensor,
    key_1KTD: Tensor,
    value_1KTD: Tensor,
    attention_mask: None,
    *,
    scaling: float,
    step: PackedStep,
    **_: object,
) -> tuple[Tensor, None]:
    """The attention function handed to transformers; returns [1, T, H, D]."""
    assert attention_mask is None, "transformers makes no mask for an attention it does not know"
    layer = module.layer_idx
    assert isinstance(layer, int)
    query_HTD, key_KTD, value_KTD = query_1HTD[0], key_1KTD[0], value_1KTD[0]
    mixed_THD = torch.empty_like(query_HTD.transpose(0, 1), memory_format=torch.contiguous_format)
    for group in step.answering:
        packed = slice(group.first, group.last)
        query, key, value = (t[:, packed].transpose(0, 1) for t in (query_HTD, key_KTD, value_KTD))
        mixed_THD[packed] = _attend_singles(group, layer, query, key, value, scaling)
    for prompt in step.prompts:
        packed = slice(prompt.first, prompt.last)
        query, key, value = (t[:, packed] for t in (query_HTD, key_KTD, value_KTD))
        mixed_THD[packed] = _attend_prompt(prompt, layer, query, key, value, scaling).transpose(0, 1)
    return mixed_THD.unsqueeze(0), None


def _attend_singles(
    group: Answering, layer: int, query_NHD: Tensor, key_NKD: Tensor, value_NKD: Tensor, scaling: float
) -> Tensor:
    """[N, H, D]: each sequence's one token over its own row."""
    keys_NKCD, values_NKCD = group.bank.keys[layer], group.bank.values[layer]
    keys_NKCD[group.rows_N, :, group.positions_N] = key_NKD
    values_NKCD[group.rows_N, :, group.positions_N] = value_NKD
    return F.scaled_dot_product_attention(
        query_NHD.unsqueeze(2),
        keys_NKCD[group.span, :, : group.longest],
        values_NKCD[group.span, :, : group.longest],
        attn_mask=group.seen_N11L,
        scale=scaling,
        enable_gqa=True,
    ).squeeze(2)


def _attend_prompt(
    prompt: Prompt, layer: int, query_HCD: Tensor, key_KCD: Tensor, value_KCD: Tensor, scaling: float
) -> Tensor:
    """[H, C, D]: a chunk over what came before it in its own row, and over itself."""
    keys_KCD = prompt.bank.keys[layer, prompt.row]
    values_KCD = prompt.bank.values[layer, prompt.row]
    end = prompt.start + key_KCD.shape[1]
    keys_KCD[:, prompt.start : end] = key_KCD
    values_KCD[:, prompt.start : end] = value_KCD
    return F.scaled_dot_product_attention(
        query_HCD.unsqueeze(0),
        keys_KCD[:, :end].unsqueeze(0),
        values_KCD[:, :end].unsqueeze(0),
        attn_mask=prompt.seen_CL,
        is_causal=prompt.seen_CL is None,
        scale=scaling,
        enable_gqa=True,
    ).squeeze(0)
