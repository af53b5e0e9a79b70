"""The backbone computes what Hugging Face computes, and refuses what it would compute otherwise."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from loractl.bus.errors import InvalidConfig, StartFailed
from loractl.tests.trainer_actor.compute_lab import FAMILIES, VOCAB, Lab, batch, begin, run, spec
from loractl.trainer_actor.backbone import Backbone, refuse_trainable
from loractl.trainer_actor.hf_config import read_base_model
from loractl.trainer_actor.packing import pack
from loractl.trainer_actor.row_layout import RowLayouts
from safetensors.torch import load_file, save_file


def backbone_of(path: Path) -> Backbone:
    base = read_base_model(path)
    return Backbone(base, RowLayouts(base.shape).linears, torch.float32, torch.device("cpu"))


@pytest.fixture
def copy(lab: Lab, tmp_path: Path) -> Path:
    """A model directory that a test may damage."""
    return Path(shutil.copytree(lab.directory("qwen3-untied"), tmp_path / "model"))


def edit_config(path: Path, **changes: object) -> None:
    file = path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_hugging_faces(lab: Lab, family: str) -> None:
    lengths = [1, 70, 9, 33, 64]  # several paddings, and beyond the original positions of llama3
    tokens = torch.randint(0, VOCAB, (sum(lengths),), generator=torch.Generator().manual_seed(3))
    backbone = backbone_of(lab.directory(family))

    with torch.no_grad(), backbone.running(pack(lengths, torch.device("cpu")), None):
        logits = backbone.hidden(tokens) @ backbone.output_weight.t()
        expected = [lab.model(family)(part[None]).logits[0] for part in tokens.split(lengths)]

    assert (logits - torch.cat(expected)).abs().max() < 1e-5


def test_a_fresh_adapter_is_the_base_model(lab: Lab) -> None:
    engine = lab.engine("qwen2")
    engine.fresh(0, spec())
    part = batch(0, [20, 7], backward=False)

    (result,) = run(engine, part)

    logprobs = [
        lab.model("qwen2")(tokens[None]).logits[0].log_softmax(-1)
        for tokens in torch.tensor(part.tokens).split([20, 7])
    ]
    expected = torch.cat(logprobs).gather(1, torch.tensor(part.targets)[:, None]).squeeze(1)
    torch.testing.assert_close(torch.tensor(result.logprobs), expected, rtol=0, atol=1e-5)


def test_a_sharded_model_loads_like_a_whole_one(lab: Lab, tmp_path: Path) -> None:
    lab.model("qwen2").save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2

    sharded, whole = backbone_of(tmp_path), backbone_of(lab.directory("qwen2"))

    for one, other in zip(sharded._model.parameters(), whole._model.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"architectures": ["MixtralForCausalLM"]}, "MixtralForCausalLM"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"attention_bias": True}, "attention_bias"),
        ({"use_sliding_window": True, "sliding_window": 16}, "use_sliding_window"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}}, "yarn"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config"),
        ({"num_key_value_heads": 3}, "evenly"),
    ],
)
def test_a_model_that_would_be_computed_otherwise_is_refused_by_name(
    copy: Path, changes: dict[str, object], word: str
) -> None:
    edit_config(copy, **changes)

    with pytest.raises(InvalidConfig, match=word):
        read_base_model(copy)


def test_a_directory_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match=r"config\.json"):
        read_base_model(tmp_path)


@pytest.mark.parametrize("damage", ["missing", "extra", "shape", "integers"])
def test_weights_that_do_not_fit_exactly_are_refused(copy: Path, damage: str) -> None:
    file = copy / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.1.mlp.up_proj.weight"
    match damage:
        case "missing":
            del tensors[name]
        case "extra":
            tensors["model.layers.2.mlp.up_proj.weight"] = tensors[name].clone()
        case "shape":
            tensors[name] = tensors[name][:-1].clone()
        case "integers":
            tensors["model.norm.weight"] = tensors["model.norm.weight"].long()
    save_file(tensors, file)

    with pytest.raises(InvalidConfig, match=r"up_proj|linear_fc1|layernorm|Sizes of tensors"):
        backbone_of(copy)


def test_a_broken_file_is_refused(copy: Path) -> None:
    (copy / "model.safetensors").write_bytes(b"\xff" * 64)

    with pytest.raises(InvalidConfig, match="cannot read"):
        backbone_of(copy)


def test_only_adapters_are_trained(lab: Lab) -> None:
    backbone = backbone_of(lab.directory("llama"))
    backbone._model.decoder.final_layernorm.weight.requires_grad_(True)

    with pytest.raises(StartFailed, match=r"decoder\.final_layernorm\.weight"):
        refuse_trainable(backbone._model)


def test_training_leaves_the_base_model_as_it_was(lab: Lab) -> None:
    engine = lab.engine("qwen3")
    before = [each.clone() for each in engine._compute.backbone._model.parameters()]
    begin(engine, 0, spec())

    run(engine, batch(0, [20, 7]))

    for old, new in zip(before, engine._compute.backbone._model.parameters(), strict=True):
        assert torch.equal(old, new)
