"""What the server remembers of each person, in memory, and for how long."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

State = TypeVar("State")


class Sessions(Generic[State]):
    """Session id -> state. A person silent for `idle` seconds is forgotten, and the one silent longest if there are
    more than `most`. The states themselves are used by one event of one person at a time."""

    def __init__(
        self,
        make: Callable[[], State],
        idle: float = 3600.0,
        most: int = 200,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._make, self._idle, self._most, self._clock = make, idle, most, clock
        self._states: OrderedDict[str, tuple[float, State]] = OrderedDict()  # longest silent first
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._states)

    def of(self, person: str) -> State:
        """This person's state, a new one if there is none or it has expired."""
        with self._lock:
            now = self._clock()
            while self._states and now - next(iter(self._states.values()))[0] > self._idle:
                self._states.popitem(last=False)
            _, state = self._states.pop(person, (now, None))
            state = self._make() if state is None else state
            self._states[person] = now, state
            while len(self._states) > self._most:
                self._states.popitem(last=False)
            return state

    def forget(self, person: str) -> None:
        with self._lock:
            self._states.pop(person, None)
