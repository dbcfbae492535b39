"""Bytes that all requests together may hold, and pictures that a model may owe: both are refused at once when spent."""

import contextlib
from collections.abc import Callable, Iterator

from van.serve.refusals import Refused


class Budget:
    """So many units, to be taken and given back.

    Args:
        units: there are.
        code, what: how a refusal is counted, and what it says is spent.
        on_change: told how many are taken.
    """

    def __init__(self, units: int, *, code: str, what: str, on_change: Callable[[int], None]) -> None:
        self._units = units
        self._taken = 0
        self._code = code
        self._what = what
        self._on_change = on_change

    def has(self, units: int) -> bool:
        """Whether so many are left."""
        return self._taken + units <= self._units

    def take(self, units: int) -> None:
        """Take some.

        Raises:
            Refused: so many are not left.
        """
        if not self.has(units):
            told = f"{self._what}: {self._taken:,} of {self._units:,} are taken and {units:,} more are needed"
            raise Refused(429, self._code, f"{told}; come again later", retry_after_s=1)
        self._taken += units
        self._on_change(self._taken)

    def give_back(self, units: int) -> None:
        """Give some back."""
        self._taken -= units
        self._on_change(self._taken)

    @contextlib.contextmanager
    def taken(self, units: int) -> Iterator[None]:
        """Some, for as long as the block runs.

        Raises:
            Refused: so many are not left.
        """
        self.take(units)
        try:
            yield
        finally:
            self.give_back(units)
