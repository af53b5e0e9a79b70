"""Checks what is set about a loss. Pure: no torch."""

import difflib
import math
from collections.abc import Mapping

from ..bus.errors import InvalidRequest
from ..bus.loss_settings import LOSS_SETTINGS
from ..bus.messages import LossName


def checked_settings(loss: LossName, config: Mapping[str, float]) -> dict[str, float]:
    """The loss's settings with defaults filled in.

    Raises:
        InvalidRequest: a setting that this loss does not have, thresholds that make no range, or a
            penalty below 0.
    """
    defaults = LOSS_SETTINGS[loss]
    for key, value in config.items():
        if key not in defaults:
            near = difflib.get_close_matches(key, defaults, n=1, cutoff=0.0)
            known = f"the nearest is {near[0]!r}" if near else "it has none"
            raise InvalidRequest(f"{loss} has no setting {key!r}; {known}")
        if not math.isfinite(value):
            raise InvalidRequest(f"{key} is {value}; it must be a finite number")
    settings = {**defaults, **config}
    _check_thresholds(settings)
    for key in ("beta", "kl_coeff"):
        if settings.get(key, 0.0) < 0:
            raise InvalidRequest(f"{key} is {settings[key]}; a penalty must be 0 or more")
    return settings


def _check_thresholds(settings: Mapping[str, float]) -> None:
    if "clip_low_threshold" not in settings:
        return
    low, high = settings["clip_low_threshold"], settings["clip_high_threshold"]
    if not 0 <= low <= high:
        raise InvalidRequest(
            f"clip_low_threshold and clip_high_threshold bound the ratio: 0 <= low <= high, not {low} and {high}"
        )
