"""Settings that hold a number for each of some tenants, written as "alice=2, bob=0.5"."""

import math
from collections.abc import Mapping

from .errors import InvalidConfig
from .ids import TenantId


def tenant_numbers(
    text: str, *, what: str, least: float = -math.inf, most: float = math.inf
) -> Mapping[TenantId, float]:
    """The number of each tenant that the text names.

    Raises:
        InvalidConfig: what cannot be read, a tenant named twice, a number below `least` or above `most`.
    """
    numbers: dict[TenantId, float] = {}
    for item in filter(None, (piece.strip() for piece in text.split(","))):
        name, equals, written = (piece.strip() for piece in item.partition("="))
        number = _number(written)
        if not (name and equals) or number is None:
            raise InvalidConfig(f'{what}: {item!r} is not NAME=NUMBER; write "alice=2, bob=0.5"')
        if not least <= number <= most:
            raise InvalidConfig(f"{what}: {name} has {written}; it must lie from {least:g} to {most:g}")
        if name in numbers:
            raise InvalidConfig(f"{what}: {name} is named twice")
        numbers[TenantId(name)] = number
    return numbers


def _number(written: str) -> float | None:
    try:
        number = float(written)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
