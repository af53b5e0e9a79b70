"""Sampled text for a terminal, a pipe, or a program that reads JSON."""

import time
from collections.abc import Iterator, Sequence
from typing import IO

import numpy as np
from rich.text import Text

from ..bus.messages import Floats, Sample, SampleChunk, SampleResult
from .terminal import data_console, show_json, talk_console


def show_answer(
    parts: Iterator[SampleChunk | SampleResult], request: Sample, adapter: str | None, *, as_json: bool
) -> None:
    """Show an answer as it comes: text on stdout and a line about it on stderr, or one JSON object."""
    begun = time.monotonic()
    out = data_console()
    if request.stream:
        result = write_stream(out.file, parts)
    else:
        result = [part for part in parts if isinstance(part, SampleResult)][-1]
        if as_json:
            show_json(out, result_data(result, adapter=adapter, prompt=request.prompt.tolist()))
        else:
            write_all(out.file, result)
    if not as_json:
        seconds = time.monotonic() - begun
        talk_console().print(Text(result_text(result, adapter=adapter, seconds=seconds), "dim"))


def write_stream(out: IO[str], parts: Iterator[SampleChunk | SampleResult]) -> SampleResult:
    """Write the one sampled text as it comes; returns the whole answer."""
    written = ""
    for part in parts:
        if isinstance(part, SampleResult):
            # What was held back to the end, such as half a character.
            _write(out, part.texts[0].removeprefix(written) if part.texts[0].startswith(written) else "")
            _write(out, "\n")
            return part
        written += part.text
        _write(out, part.text)
    raise AssertionError("a stream ends with its result or raises")


def write_all(out: IO[str], result: SampleResult) -> None:
    """Write several sampled texts, an empty line between two."""
    _write(out, "\n\n".join(result.texts) + "\n")


def result_data(result: SampleResult, *, adapter: str | None, prompt: Sequence[int]) -> object:
    """The answer as JSON can say it. `prompt_tokens`, `tokens` and `logprobs` are what a training row
    of sampled tokens needs, beside its advantages."""
    ends = np.cumsum(result.lengths)[:-1]
    samples = zip(
        result.texts,
        np.split(result.tokens, ends),
        np.split(result.logprobs, ends),
        result.stop_reasons,
        strict=True,
    )
    return {
        "adapter": adapter,
        "version": result.version,
        "engine": result.engine,
        "prompt_tokens": list(prompt),
        "samples": [
            {"text": text, "tokens": tokens.tolist(), "logprobs": _finite(logprobs), "stop_reason": reason}
            for text, tokens, logprobs, reason in samples
        ],
    }


def result_text(result: SampleResult, *, adapter: str | None, seconds: float) -> str:
    """One line about an answer: who gave it, how much, how fast."""
    who = f"{adapter} version {result.version}" if adapter else "base model"
    count = len(result.tokens)
    reasons = ", ".join(sorted(set(result.stop_reasons)))
    return f"[{who}, {result.engine}: {count} tokens in {seconds:.1f} s, {reasons}]"


def _finite(logprobs: Floats) -> list[float | None]:
    """JSON has no infinity; a token that could not be sampled has none to give."""
    return [float(value) if np.isfinite(value) else None for value in logprobs]


def _write(out: IO[str], text: str) -> None:
    """A model may say anything: on a terminal, what would steer it is shown as a harmless mark."""
    if out.isatty():
        text = "".join(c if c in "\n\t" or c.isprintable() else "�" for c in text)
    out.write(text)
    out.flush()
