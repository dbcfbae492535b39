"""Counted resources that requests share: bytes of memory and places in a queue."""

import contextlib
from collections.abc import Callable, Iterator

from van.serving.api_error import ApiError


class Quota:
    """A fixed number of units that requests acquire and release; an acquisition that does not fit fails at once.

    Args:
        units: total number of units.
        code: error code of an acquisition that does not fit.
        resource: name of the resource for the error message.
        on_change: called with the number of acquired units after every change.
    """

    def __init__(self, units: int, *, code: str, resource: str, on_change: Callable[[int], None]) -> None:
        self._units = units
        self._acquired = 0
        self._code = code
        self._resource = resource
        self._on_change = on_change

    def has(self, units: int) -> bool:
        """Return whether ``units`` are free."""
        return self._acquired + units <= self._units

    def acquire(self, units: int) -> None:
        """Acquire units until ``release``.

        Raises:
            ApiError: 429, as many are not free.
        """
        if not self.has(units):
            message = (
                f"{self._resource}: {self._acquired:,} of {self._units:,} in use, {units:,} more needed; retry later"
            )
            raise ApiError(429, self._code, message, retry_after_s=1)
        self._acquired += units
        self._on_change(self._acquired)

    def release(self, units: int) -> None:
        """Release acquired units."""
        self._acquired -= units
        self._on_change(self._acquired)

    @contextlib.contextmanager
    def reserve(self, units: int) -> Iterator[None]:
        """Acquire units for the duration of a ``with`` block.

        Raises:
            ApiError: 429, as many are not free.
        """
        self.acquire(units)
        try:
            yield
        finally:
            self.release(units)
