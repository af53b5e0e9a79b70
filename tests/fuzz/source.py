"""Where a case's choices come from: a stream of random numbers that its name alone decides.

Besides numbers it makes what readers stumble over: odd values, damaged bytes, damaged trees of JSON, text
that claims more than there is. What a subject's valid input looks like is the subject's business.
"""

import json
import random
from collections.abc import Sequence
from typing import Any, TypeVar

T = TypeVar("T")

# What `json.dumps` cannot write, or not without making it whole first: put into the text afterwards.
_MARKS = "\N{SECTION SIGN}"
ODD_TEXTS = (
    "",
    " ",
    "..",
    "../../outside",
    "/",
    "\x00",
    "a\nb",
    "\ud800",
    "\N{ZERO WIDTH JOINER}" * 3,
    "\u0663",  # a decimal digit, but none of ASCII's
    "ad-" + "0" * 32,
    "NaN",
    "x" * 5000,
    "\U0010ffff",
)
ODD_NUMBERS = (
    0, -1, 1, 2, 127, 128, 255, 256, 2**15, 2**16, 2**31 - 1, 2**31, -(2**31) - 1, 2**32, 2**53 + 1, 2**63 - 1,
    2**63, -(2**63) - 1, 2**64, 10**30, 0.0, -0.0, 0.5, 1e-320, 1e38, 3.5e38, 1e308,
)  # fmt: skip


class Source(random.Random):
    """The choices of one case."""

    def one_in(self, count: int) -> bool:
        return self.randrange(count) == 0

    def some(self, items: Sequence[T], most: int) -> list[T]:
        return [self.choice(items) for _ in range(self.randint(1, most))]

    # --- bytes -----------------------------------------------------------------------------------

    def damaged(self, data: bytes, spice: Sequence[bytes] = (), others: Sequence[bytes] = ()) -> bytes:
        """The bytes after one to four accidents. spice: what means something to their reader; others: bytes of
        the same kind, of which a piece may be spliced in."""
        for _ in range(self.randint(1, 4)):
            data = self._accident(data, spice, others)
        return data

    def _accident(self, data: bytes, spice: Sequence[bytes], others: Sequence[bytes]) -> bytes:
        at = self.randrange(len(data) + 1)
        match self.randrange(9):
            case 0 if data:
                at = min(at, len(data) - 1)
                return data[:at] + bytes([data[at] ^ 1 << self.randrange(8)]) + data[at + 1 :]
            case 1:
                return data[:at]
            case 2:
                return data[at:]
            case 3:
                return data[:at] + self.randbytes(self.randint(1, 9)) + data[at:]
            case 4:
                return data[:at] + data[at + self.randint(1, 9) :]
            case 5:  # a number that lies about a size
                width = self.choice((1, 2, 4, 8))
                number = self.choice((0, 1, 2 ** (8 * width) - 1, 2 ** (8 * width - 1), len(data)))
                lie = (number % 2 ** (8 * width)).to_bytes(width, self.choice(("little", "big")))
                return data[:at] + lie + data[at + width :]
            case 6 if spice:
                return data[:at] + self.choice(spice) + data[at + self.choice((0, 0, 1, 4)) :]
            case 7 if others:
                other = self.choice(others)
                start = self.randrange(len(other) + 1)
                return data[:at] + other[start : start + self.randint(1, 200)] + data[at:]
            case _:
                piece = data[at : at + self.randint(1, 40)]
                return data[:at] + piece * self.choice((2, 3, 50)) + data[at:]

    # --- values ----------------------------------------------------------------------------------

    def odd(self) -> Any:
        """A value that is unlikely to be the one that belongs here."""
        match self.randrange(10):
            case 0:
                return None
            case 1:
                return self.one_in(2)
            case 2 | 3:
                return self.choice(ODD_NUMBERS)
            case 4 | 5:
                return self.choice(ODD_TEXTS)
            case 6:
                return [self.odd() for _ in range(self.randrange(4))]
            case 7:
                return {str(self.choice(ODD_TEXTS)): self.odd() for _ in range(self.randrange(4))}
            case 8:
                return self.mark()
            case _:
                return self.randint(-300, 300)

    def mark(self) -> str:
        """Becomes, in `json_text`, what no tree can hold: see there."""
        return f"{_MARKS}{self.choice(('arrays', 'objects', 'digits', 'nan', 'inf', 'raw', 'huge'))}"

    def changed(self, tree: Any) -> Any:
        """A copy of a tree of dicts, lists and plain values with one to three things wrong in it."""
        tree = json.loads(json.dumps(tree))
        for _ in range(self.randint(1, 3)):
            tree = self._changed_once(tree)
        return tree

    def _changed_once(self, tree: Any) -> Any:
        if not isinstance(tree, dict | list) or not tree or self.one_in(8):
            return self.odd()
        place = self.choice([*tree]) if isinstance(tree, dict) else self.randrange(len(tree))
        if isinstance(tree[place], dict | list) and not self.one_in(4):
            tree[place] = self._changed_once(tree[place])
            return tree
        match self.randrange(6):
            case 0:
                del tree[place]
            case 1 if isinstance(tree, dict):
                tree[self.choice(ODD_TEXTS)] = self.odd()
            case 1 if isinstance(tree, list):
                tree += tree[: self.randint(1, 50)] * self.randint(1, 3)
            case 2 if isinstance(tree, dict):
                tree[place] = tree[self.choice([*tree])]
            case 3 if isinstance(tree[place], int | float) and not isinstance(tree[place], bool):
                tree[place] = (
                    -tree[place] if self.one_in(2) else tree[place] * self.choice((2, 1e9, 0.5, 2**40))
                )
            case _:
                tree[place] = self.odd()
        return tree

    def json_text(self, tree: Any, *, deepest: int = 3000) -> bytes:
        """A tree as JSON, with what only text can hold where `mark` left its places."""
        text = json.dumps(tree, ensure_ascii=self.one_in(2))
        if _MARKS in text or json.dumps(_MARKS)[1:-1] in text:
            for name, written in self._written(deepest).items():
                text = text.replace(json.dumps(_MARKS + name), written).replace(f'"{_MARKS}{name}"', written)
        return text.encode("utf-8", "surrogatepass")

    def _written(self, deepest: int) -> dict[str, str]:
        levels = self.choice((3, 40, 900, deepest))
        return {
            "arrays": "[" * levels + "]" * self.choice((levels, 0)),
            "objects": '{"a":' * levels + "1" + "}" * self.choice((levels, 1)),
            "digits": "9" * self.choice((20, 400, 5000)),
            "nan": "NaN",
            "inf": self.choice(("Infinity", "-Infinity", "1e999")),
            "raw": self.choice(("", "tru", "'a'", '"\\ud800"', '"\\u12"', "01", "-", "[,]", '"\t"')),
            "huge": json.dumps("y" * self.choice((1000, 200_000))),
        }
