"""Which versions of the `tinker` SDK this server is tested with, and what others are told."""

OLDEST = (0, 6, 0)
NEWEST = (0, 38, 0)


def version_warning(sdk_version: str) -> str | None:
    """What a client of another version is told when its session begins; None for a tested one."""
    found = _parsed(sdk_version)
    if found is None or OLDEST <= found <= NEWEST:
        return None
    tested = f"{_text(OLDEST)} to {_text(NEWEST)}"
    return f"this server is tested with tinker {tested}, and you have {sdk_version}: some calls may fail"


def _parsed(version: str) -> tuple[int, ...] | None:
    numbers = version.split(".")[:3]
    return tuple(map(int, numbers)) if all(each.isdecimal() for each in numbers) else None


def _text(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
