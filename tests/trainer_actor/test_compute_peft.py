"""What is exported is what was trained; what is imported is exactly what the files say."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from loractl.bus.errors import CheckpointMismatch
from loractl.bus.messages import LoraSpec
from loractl.tests.trainer_actor.compute_lab import Lab, adam, batch, begin, run, spec, weights
from loractl.trainer_actor.engine import TrainEngine
from peft import PeftModel
from safetensors.torch import load, save


def trained(engine: TrainEngine, lora: LoraSpec) -> None:
    begin(engine, 0, lora)
    for step in range(3):
        run(engine, batch(step, [30, 9], lora=lora))
        engine.optim_step(0, adam())


@pytest.mark.parametrize(
    ("family", "lora"),
    [
        ("llama", spec(rank=3, alpha=7.5)),
        ("smollm2", spec(rank=8, train_unembed=False)),
        ("qwen2", spec(rank=8)),
        ("qwen3", spec(rank=16, train_mlp=False)),
        ("qwen3-untied", spec(rank=2, train_attn=False)),
    ],
    ids=str,
)
def test_peft_reads_the_export_and_computes_our_logprobs(
    lab: Lab, family: str, lora: LoraSpec, tmp_path: Path
) -> None:
    engine = lab.engine(family)
    trained(engine, lora)
    tokens = np.arange(3, 60) * 5 % 320

    config_json, data, modules = engine.peft_files(0)

    (tmp_path / "adapter_config.json").write_text(config_json)
    (tmp_path / "adapter_model.safetensors").write_bytes(data)
    base = type(lab.model(family)).from_pretrained(lab.directory(family), dtype=torch.float32)
    model = PeftModel.from_pretrained(base, tmp_path).eval()
    with torch.no_grad():
        logprobs = model(torch.tensor(tokens)[None]).logits[0, :-1].log_softmax(-1)
    expected = logprobs.gather(1, torch.tensor(tokens)[1:, None]).squeeze(1)
    np.testing.assert_allclose(engine.score(0, tokens), expected.numpy(), rtol=0, atol=1e-4)
    assert modules == sum("lora_A" in name for name in load(data))
    assert json.loads(config_json)["r"] == lora.rank


def test_the_export_has_no_padding_and_the_models_type(lab: Lab) -> None:
    engine = lab.engine("qwen3", dtype="bfloat16")
    lora = spec(rank=3)
    trained(engine, lora)

    _, data, _ = engine.peft_files(0)

    tensors = load(data)
    assert sum(tensor.numel() for tensor in tensors.values()) == engine.parameters(lora)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert all(tensor.bool().any(dim=1 if "lora_A" in name else 0).all() for name, tensor in tensors.items())


def test_an_import_is_the_exported_adapter_with_a_cold_optimizer(lab: Lab) -> None:
    engine = lab.engine("llama")
    lora = spec(rank=4)
    trained(engine, lora)
    config_json, data, _ = engine.peft_files(0)

    engine.bank.copy_in(2, engine.state_from_peft(config_json, data, lora))

    assert engine.bank.row(2).step == 0
    assert all(torch.equal(tensor, weights(engine, 0)[name]) for name, tensor in weights(engine, 2).items())
    assert engine.peft_files(2) == (config_json, data, 15)
    run(engine, batch(9, [30], slot=2, weights=np.zeros(30, np.float32)))
    assert engine.optim_step(2, adam()).applied
    assert all(torch.equal(tensor, weights(engine, 0)[name]) for name, tensor in weights(engine, 2).items())


def test_files_that_peft_wrote_are_read(lab: Lab, tmp_path: Path) -> None:
    engine = lab.engine("llama")
    lora = spec(rank=4, alpha=16.0, train_unembed=False)
    model = lab.peft("llama", lora)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.1)
    model.save_pretrained(tmp_path)
    tokens = torch.arange(40)

    config_json = (tmp_path / "adapter_config.json").read_text()
    data = (tmp_path / "adapter_model.safetensors").read_bytes()
    engine.bank.copy_in(0, engine.state_from_peft(config_json, data, lora))

    with torch.no_grad():
        logprobs = model(tokens[None]).logits[0, :-1].log_softmax(-1)
    expected = logprobs.gather(1, tokens[1:, None]).squeeze(1).numpy()
    np.testing.assert_allclose(engine.score(0, tokens.numpy()), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"r": 8}, "r is 8 and the adapter's is 4"),
        ({"lora_alpha": 1}, "lora_alpha"),
        ({"peft_type": "LOHA"}, "LOHA"),
        ({"target_modules": ["q_proj"]}, "target_modules"),
        ({"use_dora": True}, "use_dora"),
        ({"use_rslora": True}, "use_rslora"),
        ({"bias": "all"}, "bias"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"a_feature_of_tomorrow": 3}, "a_feature_of_tomorrow"),
    ],
    ids=str,
)
def test_a_config_that_does_not_fit_says_why(lab: Lab, changes: dict[str, object], word: str) -> None:
    engine = lab.engine("llama")
    engine.fresh(0, spec())
    config_json, data, _ = engine.peft_files(0)

    with pytest.raises(CheckpointMismatch, match=word):
        engine.state_from_peft(json.dumps({**json.loads(config_json), **changes}), data, spec())


@pytest.mark.parametrize(
    "damage",
    [
        "missing",
        "extra",
        "shape",
        "nan",
        "integers",
        "float8",
        "huge",
        "type",
        "bytes",
        "json",
        "deep",
        "list",
    ],
)
def test_files_that_do_not_fit_say_why(lab: Lab, damage: str) -> None:
    engine = lab.engine("llama")
    engine.fresh(0, spec())
    config_json, data, _ = engine.peft_files(0)
    tensors = load(data)
    name = "base_model.model.model.layers.1.self_attn.k_proj.lora_A.weight"
    match damage:
        case "missing":
            del tensors[name]
        case "extra":
            tensors[name.replace("layers.1", "layers.2")] = tensors[name].clone()
        case "shape":
            tensors[name] = tensors[name].t().contiguous()
        case "nan":
            tensors[name][0, 0] = torch.nan
        case "integers":
            tensors[name] = tensors[name].long()
        case "float8":
            tensors[name] = tensors[name].to(torch.float8_e4m3fn)
        case "huge":
            tensors[name] = tensors[name].double().fill_(1e300)
    data = b"\x00" * 99 if damage == "bytes" else save(tensors)
    if damage == "type":
        header = b'{"a":{"dtype":"F8_E8M0","shape":[1],"data_offsets":[0,1]}}'
        data = len(header).to_bytes(8, "little") + header + b"\x00"
    config_json = {"json": "{", "deep": "[" * 100_000, "list": "[]"}.get(damage, config_json)

    with pytest.raises(CheckpointMismatch) as caught:
        engine.state_from_peft(config_json, data, spec())

    words = {
        "bytes": "cannot be read",
        "type": "cannot be read",
        "json": "no JSON",
        "deep": "no JSON",
        "list": "no JSON object",
    }
    assert words.get(damage, "k_proj") in caught.value.message
