"""What the package raises when the user can do something about it."""


class LightningLanceError(Exception):
    """Base of all errors of this package; its message is one sentence: what, got, expected, and the cure."""


class ConfigError(LightningLanceError, ValueError):
    """A value given by the user cannot be used."""


class SourceError(LightningLanceError):
    """The documents cannot be read: nothing there, no access, not the expected columns."""


class StoreError(LightningLanceError):
    """The token store is missing, unfinished, or not the one that was asked for."""
