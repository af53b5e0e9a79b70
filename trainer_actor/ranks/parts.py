"""Members of a pass, cut into parts, and put together again from what became of these.

Legend: t = positions of one run, N = elements of a row.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from ..compositions import RunShape
from ..members import Member, split_rows
from ..model_pass import RowsResult


def parts_of(member: Member, counts: Sequence[int], chunk: int) -> list[Member]:
    """So many datums in each. They gather where the member does. chunk: of the output layer's positions."""
    if len(counts) == 1:
        return [member]
    pieces = split_rows(member.rows, counts)
    if member.filler is None:
        return [replace(member, rows=rows) for rows in pieces]
    fillers = _filler_parts(member.filler, [rows.lengths for rows in pieces], chunk)
    return [replace(member, rows=rows, filler=filler) for rows, filler in zip(pieces, fillers, strict=True)]


def joined(results: Sequence[RowsResult]) -> RowsResult:
    """Of all parts, in their order."""
    if len(results) == 1:
        return results[0]
    return RowsResult(
        logprobs_t=torch.cat([result.logprobs_t for result in results]),
        terms_t=torch.cat([result.terms_t for result in results]),
        finite=all(result.finite for result in results),
        kept=tuple(count for result in results for count in result.kept),
    )


def _filler_parts(shape: RunShape, lengths: Sequence[list[int]], chunk: int) -> list[RunShape]:
    """What was noted of a run that was cut just so is noted part by part."""
    parts, start = [], 0
    for mine in lengths:
        stop = start + (1 if shape.whole else -(-sum(mine) // chunk))
        parts.append(
            RunShape(
                lengths=tuple(mine),
                group=shape.group,
                targets=shape.targets,
                backward=shape.backward,
                whole=shape.whole,
                kept=shape.kept[start:stop],
            )
        )
        start = stop
    return parts
