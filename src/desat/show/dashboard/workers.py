"""Threads that read, apart from the one that answers; they end with the process, whatever they are at."""

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

Given = ParamSpec("Given")
Made = TypeVar("Made")

NUMBER = 2
"""So many looks are taken, and pages made, at once."""


class Workers:
    """Daemon threads. The executors of asyncio and of Starlette wait at the end for what is still running."""

    def __init__(self, number: int = NUMBER) -> None:
        self._queue: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        for index in range(number):
            threading.Thread(target=self._work, name=f"desat-dashboard-{index}", daemon=True).start()

    async def run(self, function: Callable[Given, Made], *given: Given.args, **named: Given.kwargs) -> Made:
        """What the function returns, or raises, in one of the threads."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Made] = loop.create_future()

        def answer(settle: Callable[[Any], None], value: Any) -> None:
            def settled() -> None:
                if not future.done():  # nobody waits any more where the page has gone
                    settle(value)

            with contextlib.suppress(RuntimeError):  # the server has ended
                loop.call_soon_threadsafe(settled)

        def work() -> None:
            try:
                made = function(*given, **named)
            except Exception as error:
                answer(future.set_exception, error)
            else:
                answer(future.set_result, made)

        self._queue.put(work)
        return await future

    def _work(self) -> None:
        while True:
            self._queue.get()()


class Pace:
    """When what is shown may be made anew: at most once a second, and for at most a share of one core's time."""

    LEAST = 1.0
    """Seconds from one time to the next."""

    def __init__(self, share: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._share = share
        self._clock = clock
        self._lock = threading.Lock()
        self._ready = clock()

    def spend(self, seconds: float) -> None:
        """So much of the processor's time was taken."""
        with self._lock:
            self._ready = max(self._ready, self._clock()) + seconds / self._share

    def begin(self) -> None:
        """It is made anew, at the earliest once more after LEAST."""
        self.spend(self.LEAST * self._share)

    def is_ready(self) -> bool:
        with self._lock:
            return self._clock() >= self._ready

    @contextlib.contextmanager
    def measured(self) -> Any:
        """Spends what the thread takes inside."""
        began = time.thread_time()
        try:
            yield
        finally:
            self.spend(time.thread_time() - began)
