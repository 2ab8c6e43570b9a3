"""What Lightning is spared when it is imported: torchmetrics would import other libraries, for metrics that no test has."""

from lightning_utilities.core import imports
from lightning_utilities.core.imports import RequirementCache

_OTHERS = ("matplotlib", "scipy", "transformers")
_is_there, _is_met = imports.package_available, RequirementCache.__bool__


def _is_there_and_wanted(name: str) -> bool:
    return name not in _OTHERS and _is_there(name)


def _is_met_and_wanted(cache: RequirementCache) -> bool:
    return not str(cache.requirement).startswith(_OTHERS) and _is_met(cache)


imports.package_available = _is_there_and_wanted  # type: ignore[assignment]
RequirementCache.__bool__ = _is_met_and_wanted  # type: ignore[method-assign]
