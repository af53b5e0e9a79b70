"""A small Qwen3-shaped model made from nothing but this package: what demo and tests run on.

Its weights are trained for a few seconds to answer the questions of `tiny_text` in plain words, so
that adapters have something to bend. The same seed on the same machine and the same libraries gives
the same bytes. torch, transformers and tokenizers are imported only when a model is made.

Legend: B = rows, T = positions of the longest row, V = vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..bus.errors import InvalidRequest, NotSupported
from .tiny_text import plain_pairs

if TYPE_CHECKING:
    from torch import Generator, Tensor
    from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

VOCABULARY = 1024
CONTEXT = 2048
TRAINING_STEPS = 220
_PAD, _START, _END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

_ROWS_PER_STEP = 16
_LEARNING_RATE = 3e-3
_WARM_UP_STEPS = 20
# A part of the tokens read is replaced by random ones, less and less of them until this share of the
# steps. Without that the model knows its few texts so sharply that, with an adapter, questions that the
# adapter was not trained on lead to broken words; without the last steps it mixes up its own answers.
_CORRUPTED_AT_FIRST = 0.4
_CORRUPTION_ENDS = 0.625
_IGNORED = -100

OnStep = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyModel:
    """What was made. loss: mean over the positions of the last step; NaN when nothing was trained."""

    directory: Path
    parameters: int
    vocab_size: int
    loss: float


def make_tiny_model(
    directory: str | Path,
    *,
    seed: int = 0,
    steps: int = TRAINING_STEPS,
    on_step: OnStep | None = None,
) -> TinyModel:
    """Write a model, its tokenizer and its chat template in Hugging Face format.

    steps: of training; 0 leaves the weights random and takes no time. on_step: is told how many of
    the steps are done.

    Raises:
        InvalidRequest: the directory holds something already, or cannot be written.
        NotSupported: torch or transformers are not installed.
    """
    if seed < 0 or steps < 0:
        raise InvalidRequest(f"seed and steps must not be negative, not {seed} and {steps}")
    target = _empty_directory(Path(directory))
    _require_libraries()
    tokenizer = _tokenizer()
    with _one_thread():
        model = _random_model(seed, tokenizer)
        loss = _train(model, _rows(tokenizer), seed, steps, on_step)
    with _no_progress_bar():
        model.save_pretrained(target)
    tokenizer.save_pretrained(target, save_jinja_files=False)
    parameters = sum(weights.numel() for weights in model.parameters())
    return TinyModel(directory=target, parameters=parameters, vocab_size=VOCABULARY, loss=loss)


def _empty_directory(directory: Path) -> Path:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise InvalidRequest(f"{directory} is not empty: name a new directory for the model")
    except (FileExistsError, NotADirectoryError) as error:
        raise InvalidRequest(f"{directory} is not a directory: name a new one for the model") from error
    except OSError as error:
        raise InvalidRequest(f"cannot write {directory}: {error.strerror}") from error
    return directory.absolute()


def _require_libraries() -> None:
    from importlib.util import find_spec

    if missing := [name for name in ("torch", "transformers") if find_spec(name) is None]:
        raise NotSupported(f"making a model needs {' and '.join(missing)}: pip install 'loractl[train]'")


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums come out the same only when they are always cut into the same parts."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """transformers draws one for every file it writes."""
    from transformers.utils import logging

    was_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            logging.enable_progress_bar()


def _tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE: every text has tokens, and the words of the plain text have few."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[_PAD, _START, _END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = [text for pair in plain_pairs() for text in pair]
    bpe.train_from_iterator([*texts, "system", "user", "assistant"], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=_END,
        pad_token=_PAD,
        additional_special_tokens=[_START],
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT,
    )


def _random_model(seed: int, tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """head_dim 32 is one that vLLM has kernels for; heads and groups can be split over two ranks."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        initializer_range=0.05,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen3ForCausalLM(config)


def _rows(tokenizer: PreTrainedTokenizerFast) -> list[list[int]]:
    rows = []
    for question, answer in plain_pairs():
        chat = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        text = tokenizer.apply_chat_template(chat, tokenize=False)
        rows.append(tokenizer.encode(text, add_special_tokens=False))
    return rows


def _train(
    model: Qwen3ForCausalLM, rows: Sequence[list[int]], seed: int, steps: int, on_step: OnStep | None
) -> float:
    """Next-token training on whole rows, the rate rising at first and then falling to zero."""
    import torch
    from torch.nn import functional as F

    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.01)
    batches = _batches(rows, generator)
    last = float("nan")
    for step in range(steps):
        done = step / steps
        for group in optimizer.param_groups:
            group["lr"] = _LEARNING_RATE * min(1.0, (step + 1) / _WARM_UP_STEPS) * (1 - done)
        corrupted = _CORRUPTED_AT_FIRST * max(0.0, 1 - done / _CORRUPTION_ENDS)
        tokens_BT, targets_BT = _batch(next(batches), corrupted, generator)
        logits_BTV = model(input_ids=tokens_BT, use_cache=False).logits
        loss = F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten(), ignore_index=_IGNORED)
        optimizer.zero_grad()
        torch.autograd.backward([loss])
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        last = float(loss.detach())
        if on_step is not None:
            on_step(step + 1, steps)
    return last


def _batches(rows: Sequence[list[int]], generator: Generator) -> Iterator[list[list[int]]]:
    """Every row once in each round, in batches of about equal length, so that little is padding."""
    import torch

    lengths = torch.tensor([len(row) for row in rows], dtype=torch.float32)
    while True:
        mixed = lengths + 10 * torch.rand(len(rows), generator=generator)
        order = torch.argsort(mixed).tolist()
        starts = list(range(0, len(order), _ROWS_PER_STEP))
        for place in torch.randperm(len(starts), generator=generator).tolist():
            start = starts[place]
            yield [rows[index] for index in order[start : start + _ROWS_PER_STEP]]


def _batch(rows: Sequence[list[int]], corrupted: float, generator: Generator) -> tuple[Tensor, Tensor]:
    """tokens [B, T], a part of them corrupted, and targets [B, T], which never are. Padding is at the
    end, where no position that counts can see it."""
    import torch

    longest = max(len(row) for row in rows) - 1
    tokens_BT = torch.zeros(len(rows), longest, dtype=torch.int64)
    targets_BT = torch.full_like(tokens_BT, _IGNORED)
    for index, row in enumerate(rows):
        tokens_BT[index, : len(row) - 1] = torch.tensor(row[:-1])
        targets_BT[index, : len(row) - 1] = torch.tensor(row[1:])
    hit_BT = torch.rand(tokens_BT.shape, generator=generator) < corrupted
    noise_BT = torch.randint(3, VOCABULARY, tokens_BT.shape, generator=generator)
    # The first three ids are the special tokens, which give a chat its form.
    return torch.where(hit_BT & (tokens_BT > 2), noise_BT, tokens_BT), targets_BT
