"""What can be set about each loss, and what it is when nothing is said.

Thresholds bound the ratio itself (0.8 and 1.2, not an epsilon). Where the defaults come from:
ppo, cispo and dro, what users of the Tinker API know; gspo, 3e-4 below and 4e-4 above 1, the paper's
own (arXiv 2507.18071, 5.1), as ratios of whole sequences stay close to 1.
"""

from collections.abc import Mapping

from .messages import LossName

LOSS_SETTINGS: Mapping[LossName, Mapping[str, float]] = {
    "cross_entropy": {},
    "importance_sampling": {},
    "ppo": {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2},
    "cispo": {"clip_low_threshold": 0.0, "clip_high_threshold": 4.0},
    "dro": {"beta": 0.05},
    "gspo": {"clip_low_threshold": 1 - 3e-4, "clip_high_threshold": 1 + 4e-4},
    "stable_reinforce": {"kl_coeff": 0.01},
}
