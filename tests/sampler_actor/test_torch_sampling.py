"""From logits to tokens in the embedded engine, against plain computations."""

import math

import pytest
import torch
from loractl.sampler_actor.torch_sampling import Draw, Uniforms, sample

VOCAB = 50


@pytest.fixture
def row() -> torch.Tensor:
    return torch.randn(VOCAB, generator=torch.Generator().manual_seed(0)) * 2


def drawn(row: torch.Tensor, count: int, **changes: float) -> torch.Tensor:
    """How often each token came, as a share."""
    uniforms = Uniforms(3)
    settings = {"temperature": 1.0, "top_k": -1, "top_p": 1.0, **changes}
    draws = [Draw(uniform=uniforms.next(), **settings) for _ in range(count)]
    tokens = [one.token for one in sample(row.expand(count, -1), draws)]
    return torch.bincount(torch.tensor(tokens), minlength=len(row)) / count


def nucleus(probs_V: torch.Tensor, top_k: int, top_p: float) -> torch.Tensor:
    """The definition, token by token."""
    order = probs_V.argsort(descending=True)[: top_k if top_k > 0 else None]
    whole, mass, kept = float(probs_V[order].sum()), 0.0, torch.zeros_like(probs_V)
    for token in order:
        if mass >= top_p * whole and top_p < 1:
            break
        kept[token] = probs_V[token]
        mass += float(probs_V[token])
    return kept / kept.sum()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
@pytest.mark.parametrize(("top_k", "top_p"), [(-1, 1.0), (7, 1.0), (-1, 0.8), (10, 0.6), (50, 0.3), (1, 1.0)])
def test_tokens_come_as_often_as_their_probability_says(row, temperature, top_k, top_p):
    expected = nucleus((row / temperature).softmax(-1), top_k, top_p)

    shares = drawn(row, 8_000, temperature=temperature, top_k=top_k, top_p=top_p)

    assert bool((shares[expected == 0] == 0).all())
    # Six standard deviations of a share.
    assert bool(((shares - expected).abs() <= 6 * (expected * (1 - expected) / 8_000).sqrt() + 1e-9).all())


def test_a_nucleus_wider_than_the_likeliest_thousand_is_found():
    slope_V = torch.linspace(0.001, 0.0, 1500)
    evenly = [Draw(1.0, -1, 0.9, i / 3000) for i in range(3000)]

    tokens = {one.token for one in sample(slope_V.expand(len(evenly), -1), evenly)}

    assert sorted(tokens) == list(range(1350))


def test_rows_keep_to_their_own_settings(row):
    draws = [
        Draw(0.0, 3, 0.1, 0.9),
        Draw(1.0, -1, 1.0, 0.0),
        Draw(2.0, 1, 1.0, 0.5),
        Draw(1.0, -1, 1.0, 1 - 2**-53),
    ]

    tokens, logprobs, _ = zip(*sample(row.expand(4, -1), draws), strict=True)

    best = int(row.argmax())
    assert tokens == (best, 0, best, VOCAB - 1)
    assert logprobs[0] == pytest.approx(float(row.log_softmax(-1)[best]))
    assert logprobs[2] == pytest.approx(float((row / 2).log_softmax(-1)[best]))


def test_a_token_of_probability_zero_never_comes(row):
    impossible = row.clone()
    impossible[[0, VOCAB - 1]] = -math.inf

    got = sample(impossible.expand(2, -1), [Draw(1.0, -1, 1.0, 0.0), Draw(1.0, -1, 1.0, 1 - 2**-53)])

    assert [one.token for one in got] == [1, VOCAB - 2]


@pytest.mark.parametrize("draw", [Draw(0.0, -1, 1.0, 0.0), Draw(1.0, -1, 1.0, 0.5), Draw(1.0, 5, 0.5, 0.5)])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_broken_row_is_marked_and_its_neighbour_is_not(row, draw, bad):
    broken = row.clone()
    broken[7] = bad

    bad_one, neighbour = sample(torch.stack([broken, row]), [draw, Draw(0.0, -1, 1.0, 0.0)])

    assert math.isnan(bad_one.logprob)
    assert neighbour.token == int(row.argmax())
    assert math.isfinite(neighbour.logprob)


def test_uniforms_are_the_same_for_the_same_seed_and_lie_below_one():
    first, second, other = Uniforms(5), Uniforms(5), Uniforms(6)

    numbers = [first.next() for _ in range(100)]

    assert numbers == [second.next() for _ in range(100)]
    assert numbers != [other.next() for _ in range(100)]
    assert all(0 <= number < 1 for number in numbers)
