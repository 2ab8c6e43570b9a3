"""What constructors say that they take, so that a value of another kind is named where they fail with words of their own."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Union, get_args, get_origin, get_type_hints

# Kind of an annotation: what it takes, and in words. A bool is a number in Python, and a number may be meant as text: the
# command line makes one of a commit that has digits only.
_KINDS: dict[Any, tuple[tuple[type, ...], str]] = {
    bool: ((bool,), "true or false"),
    int: ((int,), "a whole number"),
    float: ((int, float), "a number"),
    str: ((str, int, float), "text"),
    Sequence: ((list, tuple), "a list, such as [{value}]"),
    Mapping: ((Mapping,), "a mapping, such as {{NAME: {value}}}"),
    type(None): ((type(None),), "null"),
}
_SAME = {list: Sequence, tuple: Sequence, Iterable: Sequence, dict: Mapping}


def expected_instead(target: Callable[..., Any], name: str, value: Any) -> str | None:
    """Tell in words what an argument takes, if its annotation leaves no doubt that `value` is none of it.

    Args:
        target: A class or function.
        name: Of its argument.
        value: A plain value, as a configuration holds it.

    Returns:
        Such as `a whole number or null`; None if the value may be right, or nobody can tell.
    """
    try:
        annotation = get_type_hints(target.__init__ if inspect.isclass(target) else target)[name]
        default = inspect.signature(target).parameters[name].default
    # No such name; or an annotation that is for type checkers only, or for readers.
    except (KeyError, NameError, TypeError, AttributeError, SyntaxError, ValueError):
        return None
    if value is None and default is None:  # many leave it out of the annotation
        return None
    union = get_origin(annotation) in (Union, types.UnionType)
    kinds = [get_origin(kind) or kind for kind in (get_args(annotation) if union else (annotation,))]
    kinds = list(dict.fromkeys(_SAME.get(kind, kind) for kind in kinds))
    if any(kind not in _KINDS or isinstance(value, _KINDS[kind][0]) for kind in kinds):
        return None
    # As 1e3, which is a float, is read.
    if int in kinds and isinstance(value, float) and value.is_integer():
        return None
    return " or ".join(_KINDS[kind][1].format(value=value) for kind in kinds)
