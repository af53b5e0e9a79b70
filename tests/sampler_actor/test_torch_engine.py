"""What the embedded engine does beyond the contract of all engines (`test_engine_contract`)."""

import asyncio
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from loractl.bus.errors import EngineFailed, NotFinite, PublishFailed, VersionNotFound
from loractl.bus.messages import VersionRecord
from loractl.sampler_actor.engine import Job, VersionKey, key_of
from loractl.sampler_actor.torch_engine import TorchEngine
from loractl.tests.sampler_actor.conftest import Run
from loractl.tests.sampler_actor.jobs import (
    Outcome,
    assert_logprobs_are_the_references,
    job_of,
    outcome,
    outcomes,
    prompt_of,
)
from loractl.tests.sampler_actor.tiny import CONTEXT, VOCAB, engine_settings, logprobs_of
from safetensors.torch import load_file, save_file
from structlog.testing import capture_logs
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

Start = Callable[..., TorchEngine]


@pytest.fixture
def start(run: Run, tiny_model: Path) -> Iterator[Start]:
    """Start engines with settings of their own; all are closed in the end."""
    opened: list[TorchEngine] = []

    def started(model: Path = tiny_model, **changes: object) -> TorchEngine:
        opened.append(TorchEngine(engine_settings(model, **changes)))
        run(opened[-1].start())
        return opened[-1]

    yield started
    for engine in opened:
        run(engine.close())


@pytest.fixture
def engine(start: Start, run: Run, versions: dict[str, VersionRecord]) -> TorchEngine:
    """All of `versions` added, the one that trains the unembedding too."""
    engine = start(max_loras=8, max_concurrent=32)
    for record in versions.values():
        run(engine.add(record))
    return engine


def keys_of(versions: dict[str, VersionRecord]) -> list[VersionKey]:
    return [key_of(record) for record in versions.values()]


# --- adapters ------------------------------------------------------------------------------------


def test_an_adapter_on_the_unembedding_equals_peft_among_others(engine, run, versions, reference):
    jobs = [
        job_of(version, prompt_of(5 + i, seed=i), temperature=t, seed=i)
        for i, version in enumerate([None, *keys_of(versions)])
        for t in (0.0, 1.0)
    ]

    for job, got in zip(jobs, run(outcomes(engine, jobs, at_once=32)), strict=True):
        assert_logprobs_are_the_references(reference, job, got)
    for version in keys_of(versions):
        scored = run(engine.score(version, prompt_of(70))).logprobs
        np.testing.assert_allclose(scored[1:], reference.logprobs(version, prompt_of(70))[1:], atol=1e-4)


def rewritten(
    record: VersionRecord, directory: Path, change: Callable[[dict], None], **config
) -> VersionRecord:
    """A copy of the version's files with other tensors or settings, and the digest of what is there."""
    directory.mkdir()
    source = Path(record.directory)
    tensors = load_file(source / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, directory / "adapter_model.safetensors")
    settings = json.loads((source / "adapter_config.json").read_text()) | config
    (directory / "adapter_config.json").write_text(json.dumps(settings))
    digest = hashlib.sha256((directory / "adapter_model.safetensors").read_bytes()).hexdigest()
    return replace(record, adapter="ad-eve", directory=str(directory), digest=digest)


Q_A = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"
DOWN_A = "base_model.model.model.layers.0.mlp.down_proj.lora_A.weight"
DOWN_B = "base_model.model.model.layers.0.mlp.down_proj.lora_B.weight"


def _missing(tensors):
    del tensors[Q_A]


def _extra(tensors):
    tensors[Q_A.replace("layers.1", "layers.9")] = tensors[Q_A].clone()


def _misshapen(tensors):
    tensors[Q_A] = tensors[Q_A].t().contiguous()


def _of_integers(tensors):
    tensors[Q_A] = tensors[Q_A].long()


def _nan(tensors):
    tensors[DOWN_B][3, 1] = torch.nan


def _infinite(tensors):
    tensors[Q_A][1, 3] = torch.inf


@pytest.mark.parametrize("fault", [_missing, _extra, _misshapen, _of_integers, _nan, _infinite])
def test_tensors_that_are_not_exactly_those_promised_are_refused(engine, run, versions, tmp_path, fault):
    bad = rewritten(versions["alice-1"], tmp_path / "bad", fault)

    with pytest.raises(PublishFailed):
        run(engine.add(bad))

    with pytest.raises(VersionNotFound):
        run(outcome(engine, job_of(key_of(bad))))


@pytest.mark.parametrize(
    "config",
    [
        {"r": 5},
        {"lora_alpha": 1},
        {"use_rslora": True},
        {"use_dora": True},
        {"bias": "all"},
        {"rank_pattern": {"q_proj": 2}},
        {"peft_type": "IA3"},
    ],
    ids=str,
)
def test_what_changes_a_loras_meaning_is_refused_by_name(engine, run, versions, tmp_path, config):
    bad = rewritten(versions["alice-1"], tmp_path / "bad", lambda tensors: None, **config)

    with pytest.raises(PublishFailed):
        run(engine.add(bad))


def test_files_that_changed_since_they_were_published_are_refused(engine, run, versions, tmp_path):
    changed = rewritten(versions["alice-1"], tmp_path / "changed", lambda tensors: tensors[Q_A].add_(1))

    with pytest.raises(PublishFailed, match="SHA-256"):
        run(engine.add(replace(changed, digest=versions["alice-1"].digest)))


def _enormous(tensors):
    """Finite, but whatever goes through it is not: another's token that met it would be NaN."""
    tensors[DOWN_A] = tensors[DOWN_A].sign() * 3e38


def test_an_adapter_that_overflows_fails_alone(engine, run, versions, reference, tmp_path):
    wild = key_of(rewritten(versions["alice-1"], tmp_path / "wild", _enormous))
    run(engine.add(rewritten(versions["alice-1"], tmp_path / "again", _enormous)))
    tame = [job_of(v, prompt_of(6, seed=i), max_tokens=40) for i, v in enumerate([None, *keys_of(versions)])]
    late = [job_of(None, prompt_of(3, seed=i), max_tokens=4) for i in range(6)]

    async def fail_then_answer() -> list:
        """Prompts of one token run in the products shared with everybody; long ones leave NaN in rows
        of the cache, which the short ones after them get while longer ones still run."""
        await outcome(engine, job_of(None, max_tokens=2))  # by now the tame ones are answering
        wilds = [outcome(engine, job_of(wild, prompt_of(n))) for n in (1, 40, 1, 40, 40)]
        failures = await asyncio.gather(*wilds, engine.score(wild, prompt_of(20)), return_exceptions=True)
        assert all(isinstance(one, NotFinite) for one in failures)
        return await outcomes(engine, late)

    async def together() -> tuple[list, list]:
        return await asyncio.gather(outcomes(engine, tame), fail_then_answer())

    for jobs, got in zip((tame, late), run(together()), strict=True):
        for job, one in zip(jobs, got, strict=True):
            assert one.tokens == reference.greedy(job.version, job.prompt, job.max_tokens)


def test_the_base_goes_on_when_its_only_version_is_removed(start, run, versions, reference):
    engine = start()
    run(engine.add(versions["bob-2"]))
    run(outcome(engine, job_of(key_of(versions["bob-2"]))))

    run(engine.remove(key_of(versions["bob-2"])))

    assert run(outcome(engine, job_of())).tokens == reference.greedy(None, prompt_of(9), 12)


def test_a_version_removed_under_a_request_ends_that_request_alone(engine, run, versions, reference):
    alice, bob = key_of(versions["alice-1"]), key_of(versions["bob-1"])

    async def remove_in_the_middle():
        doomed = asyncio.create_task(outcome(engine, job_of(alice, max_tokens=240)))
        neighbour = asyncio.create_task(outcome(engine, job_of(bob, max_tokens=40)))
        await outcome(engine, job_of(alice, max_tokens=1))
        await engine.remove(alice)
        return await asyncio.gather(doomed, neighbour, return_exceptions=True)

    doomed, neighbour = run(remove_in_the_middle())

    assert isinstance(doomed, VersionNotFound)
    assert neighbour.tokens == reference.greedy(bob, prompt_of(9), 40)


# --- neighbours ----------------------------------------------------------------------------------


def test_a_crowd_changes_nobodys_tokens(engine, run, versions):
    def crowd() -> list:
        return [
            job_of(v, prompt_of(3 + 11 * i, seed=i), temperature=t, seed=i, max_tokens=25, top_k=k)
            for i, (v, t, k) in enumerate(
                (v, t, k) for v in [None, *keys_of(versions)] for t, k in ((0.0, -1), (0.9, -1), (1.2, 12))
            )
        ]

    together = run(outcomes(engine, crowd(), at_once=32))
    alone = [run(outcome(engine, job)) for job in crowd()]

    for crowded, lonely in zip(together, alone, strict=True):
        assert crowded.tokens == lonely.tokens
        np.testing.assert_allclose(crowded.logprobs, lonely.logprobs, atol=2e-5)


def _assorted_jobs(versions: dict[str, VersionRecord]) -> list[Job]:
    """Long enough that most outgrow their first row of the cache."""
    return [
        job_of(v, prompt_of(5 + 9 * i, seed=i), temperature=i % 2, seed=i, max_tokens=50)
        for i, v in enumerate([None, *keys_of(versions)] * 2)
    ]


@pytest.fixture(scope="module")
def with_room(run: Run, tiny_model: Path, versions: dict[str, VersionRecord]) -> list[Outcome]:
    engine = TorchEngine(engine_settings(tiny_model, max_loras=8, max_concurrent=16))
    run(engine.start())
    for record in versions.values():
        run(engine.add(record))
    got = run(outcomes(engine, _assorted_jobs(versions), at_once=16))
    run(engine.close())
    return got


@pytest.mark.parametrize(
    "narrow",
    [{"kv_cache_bytes": 0}, {"kv_cache_bytes": 200_000}, {"max_batched_tokens": 7}, {"max_loras": 1}],
    ids=str,
)
def test_little_room_changes_nobodys_tokens(start, run, versions, reference, with_room, narrow):
    """With room for few, sequences wait, come in pieces, or give way and compute their cache again."""
    engine = start(**narrow)
    for record in versions.values():
        run(engine.add(record))
    jobs = _assorted_jobs(versions)

    got = run(outcomes(engine, jobs))

    assert [one.tokens for one in got] == [one.tokens for one in with_room]
    for job, one in zip(jobs, got, strict=True):
        assert_logprobs_are_the_references(reference, job, one)


def test_samples_of_one_prompt_share_its_computation_and_nothing_else(engine, run, versions, reference):
    prompt = prompt_of(100, seed=4)
    jobs = [job_of(v, prompt, temperature=1.0, seed=i) for i in range(6) for v in keys_of(versions)]
    jobs += [job_of(jobs[0].version, (*prompt[:60], *prompt_of(20, seed=5)))]

    got = run(outcomes(engine, jobs, at_once=32))

    for job, one in zip(jobs, got, strict=True):
        assert_logprobs_are_the_references(reference, job, one)


# --- models --------------------------------------------------------------------------------------

_SHAPE = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": VOCAB,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.2,
}


def saved(model: PreTrainedModel, directory: Path) -> tuple[Path, PreTrainedModel]:
    model.save_pretrained(directory)
    return directory, model.eval()


@pytest.mark.parametrize(
    "make",
    [
        lambda: LlamaForCausalLM(LlamaConfig(**_SHAPE, head_dim=32, tie_word_embeddings=True)),
        lambda: LlamaForCausalLM(
            LlamaConfig(
                **_SHAPE,
                rope_parameters={
                    "rope_type": "llama3",
                    "rope_theta": 10000.0,
                    "factor": 4.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 64,
                },
            )
        ),
        lambda: Qwen2ForCausalLM(Qwen2Config(**_SHAPE)),
    ],
    ids=["llama-tied", "llama3-rope", "qwen2-bias"],
)
def test_other_families_give_hugging_faces_logprobs(start, run, tmp_path, make):
    torch.manual_seed(1)
    path, model = saved(make(), tmp_path / "model")
    engine = start(path)
    jobs = [job_of(None, prompt_of(10 + 30 * i, seed=i), temperature=1.0, seed=i) for i in range(4)]

    for job, got in zip(jobs, run(outcomes(engine, jobs)), strict=True):
        expected = logprobs_of(model, job.prompt + got.tokens)
        np.testing.assert_allclose(got.logprobs, expected[len(job.prompt) :], atol=1e-4)


def test_logits_of_a_long_prompt_over_a_large_vocabulary_are_made_in_parts(start, run, tmp_path):
    shape = {**_SHAPE, "vocab_size": 120_000, "hidden_size": 32, "num_hidden_layers": 1}
    path, model = saved(LlamaForCausalLM(LlamaConfig(**shape)), tmp_path / "model")

    scored = run(start(path).score(None, prompt_of(200))).logprobs

    np.testing.assert_allclose(scored[1:], logprobs_of(model, prompt_of(200))[1:], atol=1e-4)


def test_bfloat16_is_near_float32(start, run, versions, reference):
    engine = start(dtype="bfloat16")
    for record in versions.values():
        run(engine.add(record))

    for version in [None, *keys_of(versions)]:
        scored = run(engine.score(version, prompt_of(50))).logprobs
        expected = reference.logprobs(version, prompt_of(50))
        assert np.abs(scored[1:] - expected[1:]).mean() < 0.1
    got = run(outcomes(engine, [job_of(v) for v in keys_of(versions)]))
    assert all(one.finished == "length" for one in got)


def _unknown_family(directory: Path) -> Path:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=64, n_embd=32, n_layer=1, n_head=2))
    return saved(model, directory)[0]


def _sliding_window(directory: Path) -> Path:
    config = Qwen2Config(**_SHAPE, use_sliding_window=True, sliding_window=16, max_window_layers=0)
    return saved(Qwen2ForCausalLM(config), directory)[0]


def _dynamic_rotary(directory: Path) -> Path:
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    return saved(LlamaForCausalLM(LlamaConfig(**_SHAPE, rope_parameters=rope)), directory)[0]


@pytest.mark.parametrize("make", [_unknown_family, _sliding_window, _dynamic_rotary, lambda d: d / "nowhere"])
def test_a_model_that_would_come_out_differently_is_refused_at_the_start(run, tmp_path, make):
    engine = TorchEngine(engine_settings(make(tmp_path / "model")))

    with pytest.raises(EngineFailed):
        run(engine.start())

    assert not run(engine.healthy())
    run(engine.close())


# --- giving up -----------------------------------------------------------------------------------


def test_whoever_gives_up_at_any_moment_harms_nobody(engine, run, versions, reference):
    key = key_of(versions["alice-2"])

    async def give_up_at_any_moment() -> None:
        for turns in range(12):
            calls = (
                engine.remove(key),
                engine.add(versions["alice-2"]),
                engine.score(None, prompt_of(50)),
                outcome(engine, job_of(max_tokens=100)),
            )
            for call in calls:
                task = asyncio.create_task(call)
                for _ in range(turns):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    run(give_up_at_any_moment())

    assert run(engine.healthy())
    assert run(engine.add(versions["alice-2"])) == versions["alice-2"].modules
    assert run(outcome(engine, job_of(key))).tokens == reference.greedy(key, prompt_of(9), 12)


# --- the end -------------------------------------------------------------------------------------


def test_an_engine_that_died_says_so_to_everyone_and_can_be_closed(start, run, versions):
    engine = start()
    run(engine.add(versions["alice-1"]))

    async def die_in_the_middle() -> list:
        streams = [asyncio.create_task(outcome(engine, job_of(max_tokens=240))) for _ in range(3)]
        # Not a token of this model: the actor never lets one through.
        streams.append(asyncio.create_task(outcome(engine, job_of(None, (VOCAB + 5,)))))
        return await asyncio.gather(*streams, return_exceptions=True)

    with capture_logs() as logs:
        got = run(die_in_the_middle())

    assert [entry["event"] for entry in logs] == ["torch_engine.died"]
    assert all(isinstance(one, EngineFailed) for one in got)
    assert not run(engine.healthy())
    for call in (
        engine.score(None, prompt_of(4)),
        engine.add(versions["bob-1"]),
        engine.remove(key_of(versions["alice-1"])),
        outcome(engine, job_of()),
    ):
        with pytest.raises(EngineFailed):
            run(call)
    run(engine.close())


def test_a_closed_engine_refuses_and_can_be_built_anew(start, run, versions):
    engine = start()
    run(engine.close())

    for call in (engine.add(versions["alice-1"]), engine.score(None, (1, 2)), outcome(engine, job_of())):
        with pytest.raises(EngineFailed):
            run(call)
    assert not run(engine.healthy())
    assert run(outcome(start(), job_of())).finished == "length"
