"""What every sampling engine does, run over each: the embedded torch loop always, vLLM where it is."""

import asyncio
import importlib.util
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from loractl.bus.config import set_process_environment
from loractl.bus.errors import PublishFailed
from loractl.bus.messages import VersionRecord
from loractl.sampler_actor.engine import Engine, EngineSettings, Scores, ScoreWish, VersionKey, key_of
from loractl.sampler_actor.environment import vllm_environment
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
from loractl.tests.sampler_actor.tiny import (
    CONTEXT,
    END_TOKEN,
    VOCAB,
    Reference,
    damaged,
    engine_settings,
    make_version,
)

CAROL = "ad-carol"


def _open(name: str, settings: EngineSettings) -> Engine:
    if name == "torch":
        return TorchEngine(settings)
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vllm is not installed")
    set_process_environment(vllm_environment("cpu"))
    from loractl.sampler_actor.vllm_engine import VllmEngine

    return VllmEngine(settings)


@pytest.fixture(scope="module", params=["torch", "vllm"])
def engine(request: pytest.FixtureRequest, run: Run, tiny_model: Path) -> Iterator[Engine]:
    engine = _open(request.param, engine_settings(tiny_model, max_loras=3, max_concurrent=16))
    run(engine.start())
    yield engine
    run(engine.close())


@pytest.fixture(scope="module")
def records(
    tiny_model: Path, versions: dict[str, VersionRecord], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, VersionRecord]:
    """Versions that both engines serve: of different ranks, of different alpha / rank."""
    directory = tmp_path_factory.mktemp("carol") / "1"
    carol = make_version(tiny_model, directory, adapter=CAROL, rank=16, alpha=5, seed=7)
    return {**{name: r for name, r in versions.items() if not r.lora.train_unembed}, "carol-1": carol}


@pytest.fixture(scope="module")
def peft(tiny_model: Path, records: dict[str, VersionRecord]) -> Reference:
    return Reference(tiny_model, list(records.values()))


@pytest.fixture
def keys(engine: Engine, run: Run, records: dict[str, VersionRecord]) -> dict[str, VersionKey]:
    """All of `records`, added."""
    for record in records.values():
        run(engine.add(record))
    return {name: key_of(record) for name, record in records.items()}


def test_a_healthy_engine_says_so(engine, run):
    assert run(engine.healthy())


def test_adding_a_version_tells_how_many_modules_it_bound_to(engine, run, records):
    for record in records.values():
        assert run(engine.add(record)) == record.modules
        assert run(engine.add(record)) == record.modules  # it is there already


# --- numbers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 0.6, 1.0])
def test_adapters_of_any_rank_and_alpha_mixed_with_the_base_give_pefts_logprobs(
    engine, run, keys, peft, temperature
):
    choices = [None, *keys.values()] * 2
    jobs = [
        job_of(version, prompt_of(4 + 5 * i, seed=i), temperature=temperature, seed=i)
        for i, version in enumerate(choices)
    ]

    got = run(outcomes(engine, jobs, at_once=16))

    for job, one in zip(jobs, got, strict=True):
        assert len(one.tokens) == 12
        assert_logprobs_are_the_references(peft, job, one)


def test_greedy_tokens_are_hugging_faces_next_to_any_neighbours(engine, run, keys, peft):
    jobs = [job_of(v, prompt_of(7, seed=3)) for v in [None, *keys.values(), None]]

    together = run(outcomes(engine, jobs))
    alone = [run(outcome(engine, job_of(job.version, job.prompt))) for job in jobs]

    for job, crowded, lonely in zip(jobs, together, alone, strict=True):
        expected = peft.greedy(job.version, job.prompt, 12)
        assert crowded.tokens == expected
        assert lonely.tokens == expected


def test_adapters_differ_from_each_other_and_from_the_base(engine, run, keys):
    answers = run(outcomes(engine, [job_of(v) for v in [None, *keys.values()]]))

    assert len({answer.tokens for answer in answers}) == len(answers)


def test_logprobs_are_those_before_top_k_and_top_p(engine, run, keys, peft):
    jobs = [
        job_of(keys["alice-1"], temperature=0.8, top_k=3, seed=1),
        job_of(keys["bob-1"], temperature=1.0, top_p=0.5, seed=2),
        job_of(None, temperature=1.3, top_k=20, top_p=0.7, seed=3),
    ]

    got = run(outcomes(engine, jobs))

    for job, one in zip(jobs, got, strict=True):
        assert_logprobs_are_the_references(peft, job, one)


def test_top_k_of_one_is_greedy(engine, run, keys):
    greedy, one = run(
        outcomes(engine, [job_of(keys["alice-1"]), job_of(keys["alice-1"], temperature=1.0, top_k=1)])
    )

    assert one.tokens == greedy.tokens


def test_a_tiny_top_p_is_greedy(engine, run, keys):
    greedy, one = run(
        outcomes(engine, [job_of(keys["bob-1"]), job_of(keys["bob-1"], temperature=1.0, top_p=1e-6)])
    )

    assert one.tokens == greedy.tokens


# --- prompt logprobs -----------------------------------------------------------------------------


def test_a_prompts_logprobs_are_pefts_and_the_first_is_nan(engine, run, keys, peft):
    for version in [None, *keys.values()]:
        prompt = prompt_of(40, seed=5)

        scored = run(engine.score(version, prompt)).logprobs

        assert scored.dtype == np.float32
        assert np.isnan(scored[0])
        np.testing.assert_allclose(scored[1:], peft.logprobs(version, prompt)[1:], rtol=0, atol=1e-4)


def test_a_prompt_of_one_token_has_one_nan(engine, run, keys):
    scored = run(engine.score(keys["alice-1"], (5,))).logprobs

    assert scored.shape == (1,)
    assert np.isnan(scored[0])


def test_prompts_are_scored_the_same_beside_hot_samples(engine, run, keys, peft):
    prompt = prompt_of(30, seed=6)

    async def both() -> tuple[Scores, list[Outcome]]:
        hot = [job_of(keys["bob-1"], prompt, temperature=2.0, seed=i) for i in range(4)]
        return await asyncio.gather(engine.score(keys["alice-1"], prompt), outcomes(engine, hot))

    scored = run(both())[0].logprobs

    np.testing.assert_allclose(scored[1:], peft.logprobs(keys["alice-1"], prompt)[1:], rtol=0, atol=1e-4)


# --- what else is said of a prompt ---------------------------------------------------------------


def score(engine: Engine, run: Run, version: VersionKey | None, prompt: tuple[int, ...], **wish) -> Scores:
    return run(engine.score(version, prompt, ScoreWish(**wish)))


def targets_of(prompt: tuple[int, ...], columns: int) -> np.ndarray:
    """Random tokens, the prompt's own in the first column, and nothing in a third of the cells."""
    dice = np.random.default_rng(4)
    targets = dice.integers(0, VOCAB, (len(prompt) - 1, columns))
    targets[dice.random(targets.shape) < 1 / 3] = -1
    targets[:, 0] = prompt[1:]
    return targets


@pytest.mark.parametrize("k", [1, 5, 50, VOCAB])
def test_the_likeliest_tokens_of_a_prompt_are_pefts(engine, run, keys, peft, k):
    for version in [None, *keys.values()]:
        prompt = prompt_of(12, seed=21)

        scored = score(engine, run, version, prompt, topk=k)

        expected = np.sort(peft.table(version, prompt)[:-1], axis=-1)[:, ::-1][:, :k]
        assert scored.topk_tokens.shape == (12, k)
        assert (scored.topk_tokens[0] == -1).all()
        assert np.isnan(scored.topk_logprobs[0]).all()
        np.testing.assert_allclose(scored.topk_logprobs[1:], expected, rtol=0, atol=1e-4)
        told = np.take_along_axis(peft.table(version, prompt)[:-1], scored.topk_tokens[1:], axis=-1)
        np.testing.assert_allclose(told, expected, rtol=0, atol=1e-4)


def test_any_tokens_can_be_scored_in_the_place_of_a_prompts_own(engine, run, keys, peft):
    prompt = prompt_of(40, seed=22)
    targets = targets_of(prompt, 7)
    for version in [None, *keys.values()]:
        scored = score(engine, run, version, prompt, targets=targets)

        expected = np.take_along_axis(peft.table(version, prompt)[:-1], targets.clip(min=0), axis=-1)
        expected[targets < 0] = np.nan
        np.testing.assert_allclose(scored.target_logprobs, expected, rtol=0, atol=1e-4)
        np.testing.assert_array_equal(scored.target_logprobs[:, 0], scored.logprobs[1:])


@pytest.mark.parametrize("temperature", [1.0, 0.4])
def test_alternatives_come_as_often_as_the_tempered_model_says_with_plain_logprobs(
    engine, run, keys, peft, temperature
):
    prompt, version = prompt_of(6, seed=23), keys["alice-1"]

    scored = score(engine, run, version, prompt, alternatives=1000, temperature=temperature, seed=5)

    plain = peft.table(version, prompt)[:-1]
    told = np.take_along_axis(plain, scored.alternative_tokens, axis=-1)
    np.testing.assert_allclose(scored.alternative_logprobs, told, rtol=0, atol=1e-4)
    probs = np.exp(peft.table(version, prompt, temperature=temperature)[:-1])
    shares = np.stack([np.bincount(row, minlength=VOCAB) / 1000 for row in scored.alternative_tokens])
    # Six standard deviations of a share, and one draw.
    assert (np.abs(shares - probs) <= 6 * np.sqrt(probs * (1 - probs) / 1000) + 1e-3).all()


def test_alternatives_are_the_same_for_the_same_seed_and_differ_between_positions(engine, run, keys):
    prompt = prompt_of(30, seed=24)[:1] * 30

    def drawn(seed: int) -> np.ndarray:
        return score(engine, run, keys["bob-1"], prompt, alternatives=8, seed=seed).alternative_tokens

    first, again, other = drawn(1), drawn(1), drawn(2)

    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert len({tuple(row) for row in first}) > 20


def test_alternatives_at_temperature_0_are_the_likeliest(engine, run, keys, peft):
    prompt = prompt_of(20, seed=25)

    scored = score(engine, run, keys["bob-1"], prompt, alternatives=2, temperature=0.0, last=0)

    likeliest = peft.table(keys["bob-1"], prompt)[:-1].argmax(axis=-1)
    np.testing.assert_array_equal(scored.alternative_tokens, np.stack([likeliest] * 2, axis=-1))
    assert np.isnan(scored.logprobs).all()


@pytest.mark.parametrize("last", [1, 10, 100, 199])
def test_the_last_positions_alone_are_scored_and_exactly(engine, run, keys, peft, last):
    prompt, version = prompt_of(200, seed=26), keys["alice-2"]
    run(outcome(engine, job_of(version, prompt)))  # warm: its whole prefix is in the cache

    scored = score(engine, run, version, prompt, last=last, topk=2)

    assert np.isnan(scored.logprobs[:-last]).all()
    assert (scored.topk_tokens[:-last] == -1).all()
    expected = peft.logprobs(version, prompt)[-last:]
    np.testing.assert_allclose(scored.logprobs[-last:], expected, rtol=0, atol=1e-4)
    assert (scored.topk_tokens[-last:] >= 0).all()


def test_targets_and_alternatives_do_not_mind_how_many_positions_are_scored(engine, run, keys, peft):
    prompt, version = prompt_of(60, seed=27), keys["carol-1"]
    targets = np.full((59, 2), -1)
    targets[20, 1] = 9

    scored = score(engine, run, version, prompt, last=3, targets=targets, alternatives=1)

    expected = peft.table(version, prompt)[20, 9]
    assert scored.target_logprobs[20, 1] == pytest.approx(expected, abs=1e-4)
    assert np.isnan(scored.target_logprobs).sum() == 59 * 2 - 1
    assert (scored.alternative_tokens >= 0).all()
    assert np.isfinite(scored.logprobs).sum() == 3


def test_everything_at_once_over_prompts_that_fill_the_context_beside_samples(engine, run, keys, peft):
    """More tokens than a step holds, so prompts are computed in parts and side by side."""
    prompts = [prompt_of(CONTEXT, seed=28 + i) for i in range(4)]
    versions = list(keys.values())
    wishes = [
        ScoreWish(topk=3, targets=targets_of(prompt, 2 + i), alternatives=2 * i, seed=i)
        for i, prompt in enumerate(prompts)
    ]

    async def all_at_once() -> list:
        scoring = [engine.score(*each) for each in zip(versions, prompts, wishes, strict=True)]
        sampling = outcomes(engine, [job_of(v, temperature=1.0, topk=4) for v in versions])
        return await asyncio.gather(*scoring, sampling)

    *scores, _ = run(all_at_once())

    for version, prompt, wish, scored in zip(versions, prompts, wishes, scores, strict=True):
        table = peft.table(version, prompt)[:-1]
        expected = np.take_along_axis(table, wish.targets.clip(min=0), axis=-1)
        expected[wish.targets < 0] = np.nan
        np.testing.assert_allclose(scored.target_logprobs, expected, rtol=0, atol=1e-4)
        np.testing.assert_allclose(scored.topk_logprobs[1:, 0], table.max(axis=-1), rtol=0, atol=1e-4)
        assert scored.alternative_tokens.shape == (CONTEXT - 1, wish.alternatives)


def test_a_warm_prompt_is_not_computed_again_and_the_engine_says_so(engine, run, keys, peft):
    """The embedded engine shares with neighbours under way only, so one of them is kept going."""
    prompt, version = prompt_of(150, seed=40), keys["bob-1"]
    first_is_warm: list[int] = []

    async def beside_a_neighbour() -> tuple[int, int]:
        async with aclosing(engine.sample(job_of(version, prompt, max_tokens=100))) as neighbour:
            first_is_warm.append((await anext(neighbour)).cached)
            async with aclosing(engine.sample(job_of(version, prompt, max_tokens=2))) as stream:
                found = (await anext(stream)).cached
            scored = await engine.score(version, prompt, ScoreWish(last=20))
        return found, scored.cached

    found, scored = run(beside_a_neighbour())

    assert first_is_warm == [0]
    assert 120 <= found < 150
    assert 90 <= scored < 130


# --- likeliest tokens beside sampled ones --------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_the_likeliest_tokens_are_told_beside_every_sampled_one(engine, run, keys, peft, temperature):
    jobs = [
        job_of(version, prompt_of(9, seed=i), temperature=temperature, seed=i, topk=k, top_k=2 + i)
        for i, (version, k) in enumerate(zip([None, *keys.values()], [1, 0, 30, 5, VOCAB], strict=True))
    ]

    for job, got in zip(jobs, run(outcomes(engine, jobs)), strict=True):
        assert [len(choices.tokens) for choices in got.choices] == [job.topk] * 12 * (job.topk > 0)
        table = peft.table(job.version, job.prompt + got.tokens, temperature=temperature or 1.0)
        for row, choices in zip(table[len(job.prompt) - 1 :], got.choices, strict=False):
            likeliest = np.sort(row)[::-1][: job.topk]
            np.testing.assert_allclose(choices.logprobs, likeliest, rtol=0, atol=1e-4)
            np.testing.assert_allclose(row[list(choices.tokens)], likeliest, rtol=0, atol=1e-4)


# --- seeds ---------------------------------------------------------------------------------------


def test_a_seed_gives_the_same_answer_alone_and_in_a_crowd(engine, run, keys):
    def wanted() -> list:
        return [job_of(v, temperature=1.0, seed=11) for v in (None, *keys.values())]

    others = [job_of(None, prompt_of(20, seed=i), temperature=1.0, seed=i, max_tokens=5) for i in range(6)]
    crowded = run(outcomes(engine, [*others, *wanted()]))[len(others) :]
    alone = [run(outcome(engine, job)) for job in wanted()]

    assert [one.tokens for one in crowded] == [one.tokens for one in alone]


def test_different_seeds_give_different_answers(engine, run, keys):
    jobs = [job_of(keys["alice-1"], temperature=1.0, seed=seed) for seed in range(8)]

    answers = {one.tokens for one in run(outcomes(engine, jobs))}

    assert len(answers) == 8


# --- where an answer ends ------------------------------------------------------------------------


def test_a_stop_token_ends_the_answer_and_is_part_of_it(engine, run, keys):
    whole = run(outcome(engine, job_of(keys["alice-1"])))
    stop = whole.tokens[4]

    got = run(outcome(engine, job_of(keys["alice-1"], stop_tokens=(383, stop))))

    assert got.finished == "stop"
    assert got.tokens == whole.tokens[: whole.tokens.index(stop) + 1]


def test_without_stop_tokens_not_even_the_models_own_end_stops_it(engine, run, peft):
    prompt = (peft.most_often_before(END_TOKEN),)
    jobs = [job_of(None, prompt, temperature=1.0, max_tokens=4, seed=seed) for seed in range(100)]

    got = run(outcomes(engine, jobs))

    assert [(len(one.tokens), one.finished) for one in got] == [(4, "length")] * 100
    assert any(END_TOKEN in one.tokens[:-1] for one in got), "no answer met the end token: use more seeds"


@pytest.mark.parametrize("count", [1, 2, 9])
def test_an_answer_has_at_most_max_tokens(engine, run, keys, count):
    got = run(outcome(engine, job_of(keys["bob-1"], max_tokens=count)))

    assert (len(got.tokens), got.finished) == (count, "length")


def test_a_stop_token_at_the_last_place_counts_as_stop(engine, run):
    whole = run(outcome(engine, job_of(max_tokens=1)))

    got = run(outcome(engine, job_of(max_tokens=1, stop_tokens=whole.tokens)))

    assert got.finished == "stop"


def test_a_prompt_and_its_answer_may_fill_the_context(engine, run, keys, peft):
    job = job_of(keys["carol-1"], prompt_of(246, seed=9), max_tokens=10)

    got = run(outcome(engine, job))

    assert got.finished == "length"
    assert_logprobs_are_the_references(peft, job, got)


# --- giving up -----------------------------------------------------------------------------------


def test_an_abort_ends_the_stream_and_disturbs_nobody(engine, run, keys, peft):
    neighbour = job_of(keys["bob-1"], max_tokens=40)

    async def aborted() -> list:
        job = job_of(keys["alice-1"], max_tokens=200)
        reasons = []
        async for delta in engine.sample(job):
            reasons.append(delta.finished)
            if len(reasons) == 2:
                await engine.abort(job.key)
        return reasons

    async def both() -> tuple[list, Outcome]:
        return await asyncio.gather(aborted(), outcome(engine, neighbour))

    reasons, got = run(both())

    assert reasons[-1] == "abort"
    assert reasons[:-1] == [None] * (len(reasons) - 1)
    assert got.tokens == peft.greedy(neighbour.version, neighbour.prompt, 40)


def test_an_abort_of_an_unknown_or_finished_job_is_ignored(engine, run):
    job = job_of()
    run(outcome(engine, job))

    run(engine.abort(job.key))
    run(engine.abort("never-heard-of"))

    assert run(outcome(engine, job_of())).finished == "length"


def test_closing_a_stream_early_frees_its_place(engine, run):
    async def look_and_leave() -> None:
        async with aclosing(engine.sample(job_of(max_tokens=240))) as stream:
            async for _ in stream:
                return

    async def many() -> Outcome:
        for _ in range(40):
            await look_and_leave()
        return await outcome(engine, job_of())

    assert run(many()).finished == "length"


# --- versions ------------------------------------------------------------------------------------


def test_a_version_added_while_another_streams_does_not_change_its_tokens(engine, run, records, peft):
    first, second = records["alice-1"], records["alice-2"]
    run(engine.add(first))
    run(engine.remove(key_of(second)))
    job = job_of(key_of(first), max_tokens=60)

    async def publish_in_the_middle() -> tuple[list[int], Outcome]:
        tokens: list[int] = []
        newer = None
        async for delta in engine.sample(job):
            tokens += delta.tokens
            if newer is None:
                await engine.add(second)
                newer = await outcome(engine, job_of(key_of(second), job.prompt, max_tokens=20))
        return tokens, newer

    tokens, newer = run(publish_in_the_middle())

    assert tuple(tokens) == peft.greedy(key_of(first), job.prompt, 60)
    assert newer.tokens == peft.greedy(key_of(second), job.prompt, 20)


def test_a_prompt_that_is_warm_on_one_version_is_cold_on_the_next(engine, run, keys, peft):
    prompt = prompt_of(160, seed=12)

    for name in ("alice-1", "alice-1", "alice-2", "bob-1"):
        got = run(outcome(engine, job_of(keys[name], prompt, max_tokens=6)))

        assert got.tokens == peft.greedy(keys[name], prompt, 6)


def test_the_same_prompt_many_times_at_once_is_still_every_version_for_itself(engine, run, keys, peft):
    prompt = prompt_of(120, seed=13)
    jobs = [job_of(v, prompt, temperature=1.0, seed=i) for i in range(3) for v in keys.values()]

    for job, got in zip(jobs, run(outcomes(engine, jobs)), strict=True):
        assert_logprobs_are_the_references(peft, job, got)


def test_a_removed_version_can_be_added_again(engine, run, records):
    record = records["carol-1"]
    run(engine.add(record))
    before = run(outcome(engine, job_of(key_of(record))))

    run(engine.remove(key_of(record)))
    run(engine.remove(key_of(record)))  # one that is not there is no error
    assert run(engine.add(record)) == record.modules

    assert run(outcome(engine, job_of(key_of(record)))).tokens == before.tokens


def test_a_version_lives_on_without_its_files_until_it_is_removed(engine, run, tiny_model, tmp_path):
    directory = tmp_path / "moved"
    record = make_version(tiny_model, directory, adapter="ad-dora", rank=2, seed=20)
    run(engine.add(record))
    before = run(outcome(engine, job_of(key_of(record))))
    for file in directory.iterdir():
        file.unlink()

    assert run(engine.add(record)) == record.modules
    assert run(outcome(engine, job_of(key_of(record)))).tokens == before.tokens

    run(engine.remove(key_of(record)))
    with pytest.raises(PublishFailed):
        run(engine.add(record))


@pytest.mark.parametrize("fault", ["no directory", "half a file", "no config"])
def test_a_bad_version_is_refused_and_the_engine_goes_on(engine, run, records, keys, peft, tmp_path, fault):
    bad = replace(records["bob-1"], adapter="ad-eve", directory=str(tmp_path / "eve"))
    if fault != "no directory":
        damaged(records["bob-1"], tmp_path / "eve")
    if fault == "no config":
        (tmp_path / "eve" / "adapter_config.json").unlink()

    async def add_beside_a_stream() -> Outcome:
        stream = asyncio.create_task(outcome(engine, job_of(keys["alice-1"], max_tokens=30)))
        with pytest.raises(PublishFailed):
            await engine.add(bad)
        return await stream

    got = run(add_beside_a_stream())

    assert got.tokens == peft.greedy(keys["alice-1"], prompt_of(9), 30)
    assert run(engine.healthy())


# --- the crowd -----------------------------------------------------------------------------------


def test_many_jobs_join_and_leave_and_each_is_right(engine, run, keys, peft):
    choices = [None, *keys.values()]
    dice = np.random.default_rng(1)
    jobs = [
        job_of(
            choices[i % len(choices)],
            prompt_of(int(dice.integers(1, 90)), seed=i),
            max_tokens=int(dice.integers(1, 40)),
            temperature=float(dice.choice([0.0, 0.7, 1.0])),
            seed=i,
        )
        for i in range(60)
    ]

    got = run(outcomes(engine, jobs, at_once=16))

    for job, one in zip(jobs, got, strict=True):
        assert len(one.tokens) == job.max_tokens
        assert_logprobs_are_the_references(peft, job, one)


def test_seeded_prompts_that_one_step_cannot_hold_are_answered(engine, run, keys, peft):
    """vLLM on a CPU dies of a seeded prompt that it cuts in two: "CPU Generator does not use offset"."""
    jobs = [
        job_of(keys["alice-1"], prompt_of(200, seed=i), max_tokens=4, temperature=1.0, seed=i)
        for i in range(5)
    ]

    for job, got in zip(jobs, run(outcomes(engine, jobs)), strict=True):
        assert_logprobs_are_the_references(peft, job, got)


def test_more_versions_at_once_than_a_step_may_mix_are_all_served(engine, run, keys, peft):
    jobs = [job_of(v, prompt_of(6, seed=i)) for i in range(4) for v in keys.values()]

    got = run(outcomes(engine, jobs, at_once=16))

    for job, one in zip(jobs, got, strict=True):
        assert one.tokens == peft.greedy(job.version, job.prompt, 12)


def test_closing_ends_streams_with_abort(engine, run):
    """The last test here: it closes the engine that the others share."""

    async def close_in_the_middle() -> Outcome:
        stream = asyncio.create_task(outcome(engine, job_of(max_tokens=240)))
        await outcome(engine, job_of(max_tokens=1))
        await engine.close()
        await engine.close()
        return await stream

    assert run(close_in_the_middle()).finished == "abort"
    assert not run(engine.healthy())
