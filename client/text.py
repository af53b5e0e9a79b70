"""Text to tokens, as the served base model has them: prompts for sampling, rows for training.

The tokenizer is read from the model's own directory, which the daemon names; no hub is asked.
"""

from collections.abc import Sequence
from pathlib import Path

from ..bus.chat import ChatTokenizer, Rendered, render_chat, render_completion, render_prompt
from ..bus.errors import InvalidConfig, InvalidData
from ..bus.messages import ModelDetails
from .datums import Datum, cut_datum, sampled_datum, supervised_datum
from .rows import BadRow, ChatRow, Row, SampledRow, check_text

_ANY_LENGTH = 10**30  # what transformers itself writes for "no limit"


class ModelText:
    def __init__(self, model: ModelDetails, tokenizer: ChatTokenizer) -> None:
        self._model = model
        self._tokenizer = tokenizer

    def prompt(self, text: str, *, raw: bool = False) -> tuple[int, ...]:
        """As `prompt_tokens`."""
        return prompt_tokens(self._tokenizer, text, raw=raw)

    def datums(self, rows: Sequence[Row], max_length: int | None) -> tuple[list[Datum], list[BadRow], int]:
        """Rows as datums, the rows that cannot be used, and how many were cut to `max_length` tokens."""
        datums: list[Datum] = []
        bad: list[BadRow] = []
        cut = 0
        for row in rows:
            try:
                datum = self._datum(row)
                shortened = self._shortened(datum, max_length)
            except InvalidData as error:
                bad.append(BadRow(row.line, error.message))
            else:
                cut += shortened is not datum
                datums.append(shortened)
        return datums, bad, cut

    def _datum(self, row: Row) -> Datum:
        match row:
            case ChatRow():
                rendered = self._rendered(row)
                return supervised_datum(rendered.tokens, [weight > 0 for weight in rendered.weights])
            case SampledRow():
                return self._sampled(row)

    def _rendered(self, row: ChatRow) -> Rendered:
        if row.is_completion and not self._tokenizer.chat_template:
            prompt, completion = row.turns
            return render_completion(self._tokenizer, prompt.content, completion.content)
        return render_chat(
            self._tokenizer, [{"role": turn.role, "content": turn.content} for turn in row.turns]
        )

    def _sampled(self, row: SampledRow) -> Datum:
        largest = max(*row.prompt_tokens, *row.tokens)
        if largest >= self._model.vocab_size:
            raise InvalidData(
                f"token {largest} is not in the vocabulary, which ends at {self._model.vocab_size - 1}"
            )
        return sampled_datum(row.prompt_tokens, row.tokens, row.logprobs, row.advantages)

    def _shortened(self, datum: Datum, max_length: int | None) -> Datum:
        limit = self._model.max_sequence_tokens
        length = len(datum.tokens)
        if max_length is None and length > limit:
            raise InvalidData(
                f"{length} tokens, and this daemon takes at most {limit} (model.max_sequence_tokens): "
                "shorten it, or cut long rows with --max-length"
            )
        if max_length is None or length <= max_length:
            return datum
        return cut_datum(datum, max_length)


def prompt_tokens(tokenizer: ChatTokenizer, text: str, *, raw: bool = False) -> tuple[int, ...]:
    """A prompt as one user turn that the assistant answers, or the bare text.

    Raises:
        InvalidData: no text, no Unicode text, or the model has no chat template.
    """
    if not text:
        raise InvalidData("the prompt is empty")
    check_text(text, "the prompt")
    if raw:
        return tuple(tokenizer.encode(text, add_special_tokens=True))
    return render_prompt(tokenizer, [{"role": "user", "content": text}])


def load_tokenizer(name: str, path: str) -> ChatTokenizer:
    """Read the tokenizer of a model directory. Takes a second or two, for the import of its library.

    path: of the model's directory on the daemon's machine.

    Raises:
        InvalidConfig: it cannot be read here.
    """
    try:
        # On another machine than the daemon's, the name leads to what `loractl tokenizer-cache` put there.
        source = path if Path(path).is_dir() else name
        if (Path(source) / "tokenizer.json").is_file():
            # Everything that a tokenizer does is in that file; `AutoTokenizer` would import torch.
            from transformers import PreTrainedTokenizerFast as Tokenizer
        else:
            from transformers import AutoTokenizer as Tokenizer
        # Lengths are judged here, by the daemon's limit; transformers would warn of its own beside it.
        tokenizer: ChatTokenizer = Tokenizer.from_pretrained(
            source, local_files_only=True, model_max_length=_ANY_LENGTH
        )
    except ImportError as error:
        raise InvalidConfig("text needs the transformers package: pip install 'loractl[train]'") from error
    except (OSError, ValueError) as error:
        raise InvalidConfig(
            f"cannot read the tokenizer in {path}: {error}; for a daemon elsewhere, "
            f"`loractl tokenizer-cache {name} DIR` puts it in reach here"
        ) from error
    return tokenizer
