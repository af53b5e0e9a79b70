"""What megatron-core says of libraries that we do without, once per module as it is imported."""

import warnings


def silence_absent_libraries() -> None:
    """Drop it: it would push a start's real trouble out of the last lines of output that the daemon shows."""
    for absent in ("Transformer Engine and Apex are", "Apex is"):
        warnings.filterwarnings(
            "ignore",
            rf"{absent} not installed\. Falling back to ",
            category=UserWarning,
            module=r"megatron\.core\.",
        )
