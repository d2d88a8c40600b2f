"""Names of networks, to be looked up and not to be built."""


def __getattr__(name: str) -> None:
    if name.startswith("__"):
        raise AttributeError(name)
