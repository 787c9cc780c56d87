"""Signals that end a training: heard at once, but never in the middle of an update of the weights."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.optim.optimizer import register_optimizer_step_pre_hook

# Ctrl-C, what `kill` and schedulers send, and a terminal that goes away.
ENDINGS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Interrupted(KeyboardInterrupt):
    """A signal has ended a training.

    Attributes:
        number: of the signal.
        saved: what was saved, for a message.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.number, self.saved = number, ""


class Interrupts:
    """Raises :class:`Interrupted` where a signal arrives, or after the step whose update has begun by then.

    Between the first update of a step and :meth:`step_is_done` the weights belong to no step that could be resumed.
    """

    def __init__(self) -> None:
        self._is_updating, self._pending = False, 0

    def step_is_done(self) -> None:
        """The weights, the optimisers and the number of the step belong together again."""
        self._is_updating = False
        if self._pending:
            raise Interrupted(self._pending)

    def _begin_update(self, *_: Any) -> None:
        self._is_updating = True

    def _hear(self, number: int, frame: object) -> None:
        self._pending = number
        if not self._is_updating:
            raise Interrupted(number)


@contextmanager
def hearing_signals() -> Iterator[Interrupts]:
    """Handle the signals that end a training; outside of the main thread, where Python hears none, change nothing."""
    interrupts = Interrupts()
    hook = register_optimizer_step_pre_hook(interrupts._begin_update)
    is_main = threading.current_thread() is threading.main_thread()
    # What the caller ignores (nohup ignores SIGHUP) stays ignored.
    heard = [each for each in ENDINGS if is_main and signal.getsignal(each) is not signal.SIG_IGN]
    before = {number: signal.signal(number, interrupts._hear) for number in heard}
    try:
        yield interrupts
    finally:
        hook.remove()
        for number, handler in before.items():
            signal.signal(number, handler)
