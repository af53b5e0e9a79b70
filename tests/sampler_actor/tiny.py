"""A tiny random Qwen3 with a byte-level tokenizer, versions of adapters on it, and what they should say.

hidden 64, 2 layers, head_dim 32; weights drawn wide, so that every token depends visibly on the prompt.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from loractl.bus.ids import LOCAL_TENANT, AdapterId
from loractl.bus.messages import Floats, LoraSpec, VersionRecord
from loractl.sampler_actor.engine import EngineSettings, VersionKey
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import ByteLevelBPETokenizer
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

ALICE = AdapterId("ad-alice")
BOB = AdapterId("ad-bob")
VOCAB = 384
CONTEXT = 256
END_TOKEN = 1
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]
LAYERS = 2

_TEXT = ["the quick brown fox jumps over the lazy dog", "löse Grüße, 東京 🦊🦊 déjà vu", "0123456789 +-*/"]


def make_model(directory: Path) -> Path:
    """Write the model, and beside it a tokenizer whose token 1 ends an answer."""
    torch.manual_seed(0)
    config = Qwen3Config(
        hidden_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        intermediate_size=128,
        vocab_size=VOCAB,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
        initializer_range=0.2,
        eos_token_id=END_TOKEN,
        pad_token_id=0,
        bos_token_id=None,
    )
    Qwen3ForCausalLM(config).save_pretrained(directory)
    bytes_bpe = ByteLevelBPETokenizer()
    bytes_bpe.train_from_iterator(_TEXT, vocab_size=VOCAB, special_tokens=["<pad>", "<end>"])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=bytes_bpe._tokenizer, eos_token="<end>", pad_token="<pad>"
    )
    fast.save_pretrained(directory)
    return directory


def make_version(
    model: Path,
    directory: Path,
    *,
    adapter: AdapterId = ALICE,
    number: int = 1,
    rank: int = 4,
    alpha: float | None = None,
    seed: int = 1,
    train_mlp: bool = True,
    train_unembed: bool = False,
    size: float = 0.1,
) -> VersionRecord:
    """Write a random adapter as PEFT would, and describe it as the trainer would, probe included."""
    torch.manual_seed(seed)
    alpha = 2 * rank if alpha is None else alpha
    targets = ATTENTION + (MLP if train_mlp else []) + (["lm_head"] if train_unembed else [])
    lora = LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, task_type="CAUSAL_LM")
    peft = get_peft_model(Qwen3ForCausalLM.from_pretrained(model), lora)
    for name, parameter in peft.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=size)
    # Else PEFT adds a copy of the base's unembedding, which no version holds.
    peft.save_pretrained(directory, save_embedding_layers=False)
    weights = (directory / "adapter_model.safetensors").read_bytes()
    probe = tuple(int(t) for t in np.random.default_rng(number).integers(2, VOCAB, 12))
    logprobs = logprobs_of(peft, probe)
    return VersionRecord(
        adapter=adapter,
        tenant=LOCAL_TENANT,
        name=str(adapter),
        number=number,
        step=number,
        directory=str(directory),
        digest=hashlib.sha256(weights).hexdigest(),
        lora=LoraSpec(rank=rank, alpha=alpha, seed=seed, train_mlp=train_mlp, train_unembed=train_unembed),
        modules=LAYERS * (4 + 3 * train_mlp) + train_unembed,
        probe_tokens=probe,
        probe_logprobs=tuple(float(x) for x in logprobs[1:]),
    )


def damaged(record: VersionRecord, directory: Path) -> Path:
    """Files whose safetensors end in the middle."""
    directory.mkdir()
    source = Path(record.directory)
    (directory / "adapter_config.json").write_text((source / "adapter_config.json").read_text())
    whole = (source / "adapter_model.safetensors").read_bytes()
    (directory / "adapter_model.safetensors").write_bytes(whole[: len(whole) // 2])
    return directory


def retargeted(record: VersionRecord, directory: Path) -> Path:
    """Whole files that name layers which the model does not have: they bind to nothing."""
    from safetensors.torch import load_file, save_file

    source = Path(record.directory)
    directory.mkdir()
    config = json.loads((source / "adapter_config.json").read_text())
    (directory / "adapter_config.json").write_text(json.dumps(config))
    tensors = load_file(source / "adapter_model.safetensors")
    save_file(
        {k.replace(".layers.", ".layers.7"): v for k, v in tensors.items()},
        directory / "adapter_model.safetensors",
    )
    return directory


class Reference:
    """Hugging Face and PEFT, teacher-forced: what any engine's logprobs have to equal."""

    def __init__(self, model: Path, records: list[VersionRecord]) -> None:
        self._base = Qwen3ForCausalLM.from_pretrained(model)
        self._versions = {
            VersionKey(r.adapter, r.number): PeftModel.from_pretrained(
                Qwen3ForCausalLM.from_pretrained(model), r.directory
            )
            for r in records
        }

    def logprobs(
        self, version: VersionKey | None, tokens: tuple[int, ...], *, temperature: float = 1.0
    ) -> Floats:
        """log p(t_i | t_<i) of every token; the first is NaN."""
        model = self._base if version is None else self._versions[version]
        return logprobs_of(model, tokens, temperature=temperature)

    def table(
        self, version: VersionKey | None, tokens: tuple[int, ...], *, temperature: float = 1.0
    ) -> Floats:
        """[P, V]: row i holds the log p of every token that may follow tokens[: i + 1]."""
        model = self._base if version is None else self._versions[version]
        with torch.no_grad():
            logits_PV = model(torch.tensor([tokens])).logits[0].float() / temperature
        return logits_PV.log_softmax(-1).numpy()

    def greedy(self, version: VersionKey | None, prompt: tuple[int, ...], count: int) -> tuple[int, ...]:
        model = self._base if version is None else self._versions[version]
        tokens = list(prompt)
        with torch.no_grad():
            for _ in range(count):
                tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
        return tuple(tokens[len(prompt) :])

    def most_often_before(self, token: int) -> int:
        """The token after which the base model says `token` most often."""
        with torch.no_grad():
            logits_BV = self._base(torch.arange(VOCAB)[:, None]).logits[:, 0]
        return int(logits_BV.softmax(-1)[:, token].argmax())

    def assert_greedy(
        self, version: VersionKey | None, prompt: tuple[int, ...], answer: tuple[int, ...]
    ) -> None:
        """Every token is a likeliest one, within rounding. One forward pass, for long answers."""
        model = self._base if version is None else self._versions[version]
        with torch.no_grad():
            logits_TV = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        chosen_T = logits_TV.gather(-1, torch.tensor(answer)[:, None])[:, 0]
        assert float((logits_TV.max(-1).values - chosen_T).max()) < 1e-4


def logprobs_of(model: torch.nn.Module, tokens: tuple[int, ...], *, temperature: float = 1.0) -> Floats:
    with torch.no_grad():
        logits_TV = model(torch.tensor([tokens])).logits[0].float() / temperature
    scored = logits_TV[:-1].log_softmax(-1).gather(-1, torch.tensor(tokens)[1:, None])[:, 0]
    return np.concatenate([[np.nan], scored.numpy()]).astype(np.float32)


def engine_settings(model: Path, **changes: object) -> EngineSettings:
    """Settings for a CPU under test: small in everything."""
    defaults = {
        "model_path": str(model),
        "device": "cpu",
        "dtype": "float32",
        "context_tokens": CONTEXT,
        "threads": 1,
        "max_rank": 16,
        "max_loras": 2,
        "max_loaded": 8,
        "max_concurrent": 8,
        "max_batched_tokens": 256,
        "kv_cache_bytes": 64 * 2**20,
        "gpu_memory_utilization": 0.4,
    }
    return EngineSettings(**{**defaults, **changes})  # type: ignore[arg-type]
