"""What can be set about a loss, and what it is when nothing is said. Pure: no torch.

Thresholds bound the ratio itself (0.8 and 1.2, not an epsilon). Where the defaults come from:
ppo, cispo and dro, what users of the Tinker API know; gspo, 3e-4 below and 4e-4 above 1, the paper's
own (arXiv 2507.18071, 5.1), as ratios of whole sequences stay close to 1.
"""

import difflib
import math
from collections.abc import Mapping

from ..bus.errors import InvalidRequest
from ..bus.messages import LossName

DEFAULTS: Mapping[LossName, Mapping[str, float]] = {
    "cross_entropy": {},
    "importance_sampling": {},
    "ppo": {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2},
    "cispo": {"clip_low_threshold": 0.0, "clip_high_threshold": 4.0},
    "dro": {"beta": 0.05},
    "gspo": {"clip_low_threshold": 1 - 3e-4, "clip_high_threshold": 1 + 4e-4},
    "stable_reinforce": {"kl_coeff": 0.01},
}


def checked_settings(loss: LossName, config: Mapping[str, float]) -> dict[str, float]:
    """The loss's settings with defaults filled in.

    Raises:
        InvalidRequest: a setting that this loss does not have, thresholds that make no range, or a
            penalty below 0.
    """
    defaults = DEFAULTS[loss]
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
