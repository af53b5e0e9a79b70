"""How fast the engines sample: tokens per second at 1, 8 and 32 requests at a time.

Beside the embedded torch engine and vLLM (where it imports) stands Hugging Face generate, with PEFT's
`adapter_names` when rows have different adapters. The model is made here, with random weights; eight
adapters of rank 8 are mixed evenly. Every way runs in every round, one after another, and the median
of the rounds is shown, so a busy machine slows all of them alike: read ratios.

    python bench/sampler.py [--shape tiny|135m] [--rounds N] [--quick] [--json]
"""

import argparse
import asyncio
import hashlib
import json
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from loractl.bus.config import set_process_environment
from loractl.bus.errors import EngineFailed
from loractl.bus.ids import LOCAL_TENANT, AdapterId
from loractl.bus.messages import EngineName, LoraSpec, VersionRecord
from loractl.client.interrupts import interrupt_when_ended
from loractl.sampler_actor.engine import Engine, EngineSettings, Job, VersionKey, key_of
from loractl.sampler_actor.engines import open_engine
from loractl.sampler_actor.environment import thread_environment

# Before torch is imported: more threads than idle cores make every engine slower by factors.
set_process_environment(thread_environment(1))

import torch  # noqa: E402
from peft import LoraConfig, PeftModel, get_peft_model  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM  # noqa: E402

ADAPTERS = 8
RANK = 8
PROMPT_TOKENS = 24
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

# Runs so many requests at a time, each with so many new tokens.
Way = Callable[[int, int], Awaitable[None]]


def make_model(shape: str) -> PreTrainedModel:
    torch.manual_seed(0)
    if shape == "tiny":
        tiny = Qwen3Config(
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            intermediate_size=192,
            vocab_size=2048,
            max_position_embeddings=512,
        )
        return Qwen3ForCausalLM(tiny)
    smollm2 = LlamaConfig(
        hidden_size=576,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        intermediate_size=1536,
        vocab_size=49152,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(smollm2).to(torch.bfloat16)


def add_adapters(model: PreTrainedModel, root: Path) -> tuple[PeftModel, list[VersionRecord]]:
    """Eight random adapters, in the model for PEFT and as published versions for the engines."""
    lora = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=TARGETS, task_type="CAUSAL_LM")
    names = [f"adapter-{i}" for i in range(ADAPTERS)]
    peft = get_peft_model(model, lora, adapter_name=names[0], autocast_adapter_dtype=False)
    for name in names[1:]:
        peft.add_adapter(name, lora, autocast_adapter_dtype=False)
    for name, parameter in peft.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    peft.save_pretrained(root)
    return peft.eval(), [record_of(name, root / name, model.config.num_hidden_layers) for name in names]


def record_of(name: str, directory: Path, layers: int) -> VersionRecord:
    return VersionRecord(
        adapter=AdapterId(name),
        tenant=LOCAL_TENANT,
        name=name,
        number=1,
        step=1,
        directory=str(directory),
        digest=hashlib.sha256((directory / "adapter_model.safetensors").read_bytes()).hexdigest(),
        lora=LoraSpec(rank=RANK, alpha=2 * RANK, seed=0),
        modules=layers * len(TARGETS),
        probe_tokens=(),
        probe_logprobs=(),
    )


def settings_of(model: PreTrainedModel, path: Path) -> EngineSettings:
    return EngineSettings(
        model_path=str(path),
        device="cpu",
        dtype="float32" if model.dtype == torch.float32 else "bfloat16",
        context_tokens=512,
        threads=1,
        max_rank=RANK,
        max_loras=ADAPTERS,
        max_loaded=ADAPTERS,
        max_concurrent=32,
        max_batched_tokens=1024,
        kv_cache_bytes=256 * 2**20,
        gpu_memory_utilization=0.4,
    )


def prompt_of(number: int, vocabulary: int) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(number)
    return tuple(torch.randint(2, vocabulary, (PROMPT_TOKENS,), generator=generator).tolist())


def engine_way(engine: Engine, versions: Sequence[VersionKey | None], vocabulary: int) -> Way:
    run_number = 0

    async def drain(job: Job) -> None:
        async for _ in engine.sample(job):
            pass

    async def way(concurrent: int, new_tokens: int) -> None:
        nonlocal run_number
        run_number += 1
        jobs = [
            Job(
                key=f"{id(versions)}-{run_number}-{i}",
                version=versions[i % len(versions)],
                # Prompts never come twice: nobody gains from a cache of prefixes.
                prompt=prompt_of(1000 * run_number + i, vocabulary),
                max_tokens=new_tokens,
                temperature=1.0,
                top_k=-1,
                top_p=1.0,
                seed=i,
                stop_tokens=(),
            )
            for i in range(concurrent)
        ]
        await asyncio.gather(*(drain(job) for job in jobs))

    return way


def generate_way(peft: PeftModel, names: Sequence[str], vocabulary: int) -> Way:
    async def way(concurrent: int, new_tokens: int) -> None:
        prompts = torch.tensor([prompt_of(i, vocabulary) for i in range(concurrent)])
        with torch.inference_mode():
            peft.generate(
                input_ids=prompts,
                attention_mask=torch.ones_like(prompts),
                adapter_names=[names[i % len(names)] for i in range(concurrent)],
                do_sample=True,
                max_new_tokens=new_tokens,
                min_new_tokens=new_tokens,
                pad_token_id=0,
            )

    return way


async def measure(
    ways: dict[str, Way], counts: Sequence[int], new_tokens: int, rounds: int
) -> dict[str, dict[int, float]]:
    """Tokens per second, by way and by requests at a time."""
    taken: dict[str, dict[int, list[float]]] = {name: {c: [] for c in counts} for name in ways}
    for way in ways.values():
        await way(max(counts), 4)  # warm up
    for _ in range(rounds):
        for count in counts:
            for name, way in ways.items():
                started = time.perf_counter()
                await way(count, new_tokens)
                taken[name][count].append(count * new_tokens / (time.perf_counter() - started))
    return {name: {c: statistics.median(found) for c, found in row.items()} for name, row in taken.items()}


async def start_engines(settings: EngineSettings, records: Sequence[VersionRecord]) -> dict[str, Engine]:
    names: tuple[EngineName, ...] = ("torch", "vllm")
    engines: dict[str, Engine] = {}
    for name in names:
        try:
            engine = open_engine(name, settings)
            await engine.start()
        except EngineFailed as error:
            Console(stderr=True).print(f"without {name}: {error}", highlight=False)
            continue
        for record in records:
            await engine.add(record)
        engines[name] = engine
    return engines


async def run(shape: str, counts: Sequence[int], new_tokens: int, rounds: int) -> dict[str, dict[int, float]]:
    with tempfile.TemporaryDirectory(prefix="loractl-bench-") as directory:
        root = Path(directory)
        model = make_model(shape)
        model.save_pretrained(root / "model")
        vocabulary = model.config.vocab_size
        settings = settings_of(model, root / "model")
        peft, records = add_adapters(model, root / "adapters")
        engines = await start_engines(settings, records)
        keys = [key_of(record) for record in records]
        ways: dict[str, Way] = {}
        for name, engine in engines.items():
            ways[f"{name}, base"] = engine_way(engine, [None], vocabulary)
            ways[f"{name}, 1 adapter"] = engine_way(engine, keys[:1], vocabulary)
            ways[f"{name}, 8 mixed"] = engine_way(engine, keys, vocabulary)
        ways["generate, base"] = generate_way(peft, ["__base__"], vocabulary)
        ways["generate + PEFT, 8 mixed"] = generate_way(peft, [r.name for r in records], vocabulary)
        try:
            return await measure(ways, counts, new_tokens, rounds)
        finally:
            for engine in engines.values():
                await engine.close()


def show(found: dict[str, dict[int, float]], shape: str) -> None:
    table = Table(title=f"tokens per second, {shape} model, one thread")
    counts = next(iter(found.values())).keys()
    table.add_column("way")
    for count in counts:
        table.add_column(f"{count} at a time", justify="right")
    for name, row in found.items():
        table.add_row(name, *(f"{row[count]:,.0f}" for count in counts))
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=["tiny", "135m"], default="tiny")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one short round, 1 and 8 at a time")
    parser.add_argument("--json", action="store_true", help="numbers for programs on standard output")
    arguments = parser.parse_args()
    interrupt_when_ended()
    torch.set_num_threads(1)
    counts, new_tokens, rounds = ((1, 8), 16, 1) if arguments.quick else ((1, 8, 32), 48, arguments.rounds)
    found = asyncio.run(run(arguments.shape, counts, new_tokens, rounds))
    if arguments.json:
        print(json.dumps({"shape": arguments.shape, "new_tokens": new_tokens, "tokens_per_s": found}))
    else:
        show(found, arguments.shape)


# vLLM starts its process by importing this file again.
if __name__ == "__main__":
    main()
