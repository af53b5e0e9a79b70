"""Two tensor parallel ranks compute what one process computes, and their states are the same kind of state."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from loractl.bus.config import subprocess_environment
from loractl.bus.errors import InvalidConfig
from loractl.tests.trainer_actor.compute_lab import Lab, spec
from loractl.tests.trainer_actor.tensor_ranks import (
    FAMILIES,
    PARTS,
    RUINED,
    Found,
    begun_here,
    found_by,
    gone_on,
    read_checkpoint,
)
from loractl.trainer_actor.hf_config import check_shares, read_base_model
from loractl.trainer_actor.hf_weights import load_weights
from loractl.trainer_actor.linears import Linear, ModelShape
from loractl.trainer_actor.lora_grouped import GroupedPass
from loractl.trainer_actor.lora_pass import LoraPass, LoraSegment, SegmentedPass
from loractl.trainer_actor.row_floor import neighbours_matter
from loractl.trainer_actor.row_layout import RowLayouts
from loractl.trainer_actor.row_views import GradientRow, RowViews
from loractl.trainer_actor.shard import WHOLE, Shard
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parents[2]
SHAPE = ModelShape(layers=1, hidden=64, ffn=96, heads=8, kv_heads=4, head_dim=16, vocab=320)


@pytest.fixture(scope="module")
def ranks(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """alone, shared: what one process and what two ranks found. files: where they left it."""
    files = tmp_path_factory.mktemp("ranks")
    for family in (*FAMILIES, "smollm2"):
        lab.directory(family)
    checkpoint, metadata = begun_here(lab.engine("qwen2"))
    save_file(checkpoint, files / "alone.safetensors", metadata)
    command = [sys.executable, "-m", "loractl.tests.trainer_actor.tensor_ranks", str(lab.root), str(files)]
    # Nothing is compiled there, and loading the compiler costs seconds.
    extra = {"PYTHONPATH": str(ROOT / ".pkg"), "OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"}
    with subprocess.Popen(command, env=subprocess_environment(extra)) as process:
        try:
            alone = found_by(lab)
            assert process.wait(300) == 0
        finally:
            process.kill()
    return SimpleNamespace(alone=alone, shared=load_file(files / "found.safetensors"), files=files)


def named(found: Found, prefix: str) -> Found:
    return {name.removeprefix(prefix): tensor for name, tensor in found.items() if name.startswith(prefix)}


def assert_near(found: Found, expected: Found, tolerance: float = 1e-5) -> None:
    assert found.keys() == expected.keys()
    assert found
    for name, tensor in expected.items():
        if name.endswith(("logprobs", "terms")):
            torch.testing.assert_close(found[name], tensor, rtol=tolerance, atol=tolerance)
        else:
            assert float((found[name] - tensor).norm()) <= tolerance * float(tensor.norm()), name


@pytest.mark.parametrize("case", [*FAMILIES, "forward", "recomputed", "pieces", "filled"])
def test_two_ranks_find_every_log_p_and_every_gradient_of_one(ranks: SimpleNamespace, case: str) -> None:
    assert_near(named(ranks.shared, f"{case}/"), named(ranks.alone, f"{case}/"))


def test_in_bfloat16_they_do_within_its_rounding(ranks: SimpleNamespace) -> None:
    assert_near(named(ranks.shared, "bfloat16/"), named(ranks.alone, "bfloat16/"), 0.1)


def test_the_base_model_alone_and_its_size_are_the_same(ranks: SimpleNamespace) -> None:
    torch.testing.assert_close(ranks.shared["base"], ranks.alone["base"], rtol=1e-5, atol=1e-5)
    for family in FAMILIES:
        name = f"parameters/{family}"
        assert ranks.shared[name] == ranks.alone[name]


def test_among_ranks_neighbours_change_no_bit_either(ranks: SimpleNamespace) -> None:
    together = named(ranks.shared, "qwen3/")
    for index, part in enumerate(PARTS):
        alone = named(ranks.shared, f"alone/{index}/")

        for what in ("logprobs", "terms"):
            assert torch.equal(alone[f"0/{what}"], together[f"{index}/{what}"])
        if part.backward:
            for name, gradient in named(alone, f"gradients/{part.slot}/").items():
                assert torch.equal(gradient, together[f"gradients/{part.slot}/{name}"]), name


def test_weights_that_are_not_finite_change_no_bit_of_others(ranks: SimpleNamespace) -> None:
    ruined, together = named(ranks.shared, "ruined/"), named(ranks.shared, "qwen3/")

    lost = {f"{RUINED}/", f"gradients/{PARTS[RUINED].slot}/"}
    left = {name for name in together if not name.startswith(tuple(lost))}
    assert ruined.keys() == left
    assert all(torch.equal(ruined[name], together[name]) for name in left)


def test_recomputing_changes_no_bit_among_ranks(ranks: SimpleNamespace) -> None:
    plain, recomputed = named(ranks.shared, "qwen3/"), named(ranks.shared, "recomputed/")

    assert plain.keys() == recomputed.keys()
    assert all(torch.equal(plain[name], recomputed[name]) for name in plain)


def test_a_checkpoint_of_two_ranks_goes_on_in_one_process_and_back(lab: Lab, ranks: SimpleNamespace) -> None:
    checkpoint, metadata = read_checkpoint(ranks.files / "group.safetensors")
    mine, my_metadata = read_checkpoint(ranks.files / "alone.safetensors")
    assert metadata == my_metadata
    assert_near(checkpoint, mine, 1e-4)
    expected = gone_on(lab.engine("qwen2"), mine, my_metadata)

    here = gone_on(lab.engine("qwen2"), checkpoint, metadata)
    there = named(ranks.shared, "gone on/")

    assert_near(here, expected, 1e-4)
    assert_near(there, expected, 1e-4)


def test_what_ranks_cannot_share_is_refused_by_name(lab: Lab, ranks: SimpleNamespace) -> None:
    assert "key-value heads" in (ranks.files / "refused").read_text()
    base = read_base_model(lab.directory("llama"))

    check_shares(base, 2)
    with pytest.raises(InvalidConfig, match="key-value heads"):
        check_shares(base, 4)
    with pytest.raises(InvalidConfig, match="intermediate_size"):
        check_shares(replace(base, shape=replace(base.shape, ffn=104)), 2)


def test_a_rank_refuses_a_file_whose_vocabulary_is_another(lab: Lab) -> None:
    base = read_base_model(lab.directory("llama"))
    other = replace(base, shape=replace(base.shape, vocab=base.shape.vocab - 1))
    model = torch.nn.ModuleDict(
        {"embedding": torch.nn.ModuleDict({"word_embeddings": torch.nn.Embedding(160, base.shape.hidden)})}
    )

    with pytest.raises(InvalidConfig, match="embed_tokens"):
        load_weights(model, other, Shard(1, 2))


def test_from_three_ranks_on_the_order_of_a_sum_depends_on_neighbours() -> None:
    cpu = torch.device("cpu")

    assert [neighbours_matter(cpu, torch.float32, ranks) for ranks in (1, 2, 3, 4)] == [
        False,
        False,
        True,
        True,
    ]


@pytest.mark.parametrize("kind", [SegmentedPass, GroupedPass])
@pytest.mark.parametrize("ranks", [2, 4])
def test_what_ranks_add_and_gather_sums_up_to_the_whole(kind: type[LoraPass], ranks: int) -> None:
    whole = through(kind, WHOLE)

    parts = [through(kind, Shard(index, ranks)) for index in range(ranks)]

    for expected, *found in zip(whole, *parts, strict=True):
        assert (torch.stack(found).sum(0) - expected).norm() <= 1e-6 * expected.norm()


def through(kind: type[LoraPass], shard: Shard) -> list[torch.Tensor]:
    """What a rank adds to y and to dx at every linear, with zeros where it has no part, and its gradient rows."""
    draw = torch.Generator().manual_seed(0)
    layouts = RowLayouts(SHAPE, shard)
    segments = []
    for index, rank in enumerate((4, 7, 16)):
        layout = layouts.of(spec(rank=rank))
        row_N = torch.randn(layout.size, generator=draw)
        gradients = GradientRow(RowViews(torch.full((layout.size,), torch.nan), layout))
        gradients.finish()
        place = slice(16 * index, 16 * index + 16)
        segments.append(
            LoraSegment(
                start=place.start,
                stop=place.stop,
                scale=0.5,
                weights=RowViews(row_N, layout),
                gradients=gradients,
            )
        )
    lora, found = kind(segments), []
    for linear, own in zip(layouts.linears[:-1], layouts.own, strict=False):
        x, y, dy = (
            torch.randn(48, size, generator=draw) for size in (linear.inputs, linear.outputs, linear.outputs)
        )
        inputs, outputs = part_of(linear, shard)
        x_own, y_own, dx_own = x[:, inputs], torch.zeros(48, len(outputs)), torch.zeros(48, len(inputs))
        saved = lora.add(own, x_own, y_own)
        lora.backward(own, x_own, saved, dy[:, outputs], dx_own)
        found += [
            torch.zeros_like(y).index_copy_(1, outputs, y_own),
            torch.zeros_like(x).index_copy_(1, inputs, dx_own),
        ]
    lora.finish()
    return found + [segment.gradients.finish() for segment in segments if segment.gradients is not None]


def part_of(linear: Linear, shard: Shard) -> tuple[torch.Tensor, torch.Tensor]:
    """Which inputs and outputs a rank has, as megatron-core shares them out."""
    inputs, outputs = torch.arange(linear.inputs), torch.arange(linear.outputs)
    if linear.kind == "qkv":
        return inputs, outputs.view(SHAPE.kv_heads, -1)[shard.of(SHAPE.kv_heads)].flatten()
    if linear.kind == "fc1":
        return inputs, outputs.view(2, -1)[:, shard.of(SHAPE.ffn)].flatten()
    return inputs[shard.of(linear.inputs)], outputs
