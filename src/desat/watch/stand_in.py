"""A function of somebody else's that we stand in for, and that is there again afterwards, in whatever order."""

import functools
from collections.abc import Callable
from typing import Any

_standing: list["StandIn"] = []


class StandIn:
    """Has `around(original, *args, **kwargs)` called in place of `owner.name`, from `install` to `uninstall`.

    Several may stand at one place and leave it in any order. A patch of the user's that came later stays where it is;
    what lies under it hands calls on to the original from then on.
    """

    def __init__(self, owner: Any, name: str, around: Callable[..., Any]) -> None:
        self._owner = owner
        self._name = name
        self._around = around
        self._original: Callable[..., Any] = getattr(owner, name)
        self._method: Callable[..., Any] | None = None

    def install(self) -> None:
        around, original = self._around, getattr(self._owner, self._name)

        @functools.wraps(original)
        def method(*args: Any, **kwargs: Any) -> Any:
            if self._method is None:
                return self._original(*args, **kwargs)
            return around(self._original, *args, **kwargs)

        self._original, self._method = original, method
        setattr(self._owner, self._name, method)
        _standing.append(self)

    def decorate(self, decorator: Callable[[Any], Any]) -> None:
        """What stands there becomes `decorator` of it; nothing where it does not stand."""
        plain = self._method
        if plain is not None:
            self._method = decorator(plain)
            self._hand_over(plain, self._method)

    def uninstall(self) -> None:
        """Nothing where it does not stand."""
        method, self._method = self._method, None
        if method is None:
            return
        _standing.remove(self)
        self._hand_over(method, self._original)

    def _hand_over(self, method: Callable[..., Any], other: Any) -> None:
        """Have `other` in the place of a method that is ours, or under what came later."""
        if getattr(self._owner, self._name) is method:
            setattr(self._owner, self._name, other)
        for later in _standing:
            if later._original is method:
                later._original = other
