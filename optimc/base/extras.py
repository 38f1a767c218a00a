"""The advice to install what an optional part of optimc needs."""


def advice(extra: str) -> str:
    """Returns the command that installs an extra, from PyPI and in a checkout of a version that is not there."""
    return f"pip install 'optimc[{extra}]' (in a checkout: pip install -e '.[{extra}]')"
