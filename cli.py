"""The `loractl` command."""


def main() -> None:
    raise SystemExit(0)
