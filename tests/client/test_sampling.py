"""Sampled text: streamed whole, harmless on a terminal, complete as JSON."""

import io
import json

import numpy as np
from loractl.bus.messages import SampleChunk, SampleResult
from loractl.client.sampling import result_data, result_text, write_all, write_stream


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def chunk(text: str) -> SampleChunk:
    return SampleChunk(index=0, tokens=np.asarray([1]), text=text)


def result(*texts: str) -> SampleResult:
    count = len(texts)
    return SampleResult(
        version=3,
        engine="torch",
        lengths=np.full(count, 2),
        tokens=np.arange(2 * count),
        logprobs=np.asarray([-0.5, -np.inf] * count, np.float32),
        texts=texts,
        stop_reasons=("stop",) * count,
        prompt_logprobs=np.empty(0, np.float32),
    )


def test_a_stream_is_written_as_it_comes_with_what_was_held_back():
    out = io.StringIO()

    last = write_stream(out, iter([chunk("Ah"), chunk("oy"), result("Ahoy ☠")]))

    assert out.getvalue() == "Ahoy ☠\n"
    assert last.version == 3


def test_a_terminal_is_never_steered_by_a_model():
    terminal, pipe = Terminal(), io.StringIO()

    write_all(terminal, result("a\x1b[2Jb\tc\nd"))
    write_all(pipe, result("a\x1b[2Jb"))

    assert terminal.getvalue() == "a�[2Jb\tc\nd\n"
    assert pipe.getvalue() == "a\x1b[2Jb\n"


def test_the_json_of_several_samples_keeps_each_ones_tokens():
    data = json.loads(json.dumps(result_data(result("a", "b"), adapter="pirate", prompt=(7, 8))))

    assert data["prompt_tokens"] == [7, 8]
    assert [s["tokens"] for s in data["samples"]] == [[0, 1], [2, 3]]
    assert data["samples"][1] == {
        "text": "b",
        "tokens": [2, 3],
        "logprobs": [-0.5, None],
        "stop_reason": "stop",
    }


def test_one_line_tells_who_answered():
    assert result_text(result("a"), adapter="pirate", seconds=1.25) == (
        "[pirate version 3, torch: 2 tokens in 1.2 s, stop]"
    )
    assert result_text(result("a"), adapter=None, seconds=1.0).startswith("[base model, torch:")
