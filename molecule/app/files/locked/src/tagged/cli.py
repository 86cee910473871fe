"""A command of the app's own."""

from importlib.metadata import version


def main() -> None:
    """Say what is there."""
    print(*(f"{name}=={version(name)}" for name in ("tagged", "house", "lib")))
