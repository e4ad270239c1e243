"""A secret served from memory and refreshed in the background."""

import logging
import threading
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

from shardhold._errors import Error
from shardhold._last_good import INTERVAL_S, START_TIMEOUT_S, LastGood, Start, read_clock
from shardhold._public import public
from shardhold._results import Secret

if TYPE_CHECKING:
    from shardhold._client import Client

_logger = logging.getLogger(__name__)


@public
class Cached:
    """The secret at *path*, served from memory and kept fresh by a thread. Thread-safe.

        with Client() as client, Cached(client, "team/app/db") as database:
            connect(password=database.current.fields["password"])

    It is ready when it exists: creating it waits for the first value, through outages and a sealed nexus, for at most
    *start_timeout* seconds. A denial, a secret that does not exist and the like are raised at once.

    After that `current` never waits and never fails because the nexus cannot be reached, is sealed, denies or no longer
    has the secret: the last good value stays, `error` says why it is not renewed, and `age` how old it is. A program
    that must not go on with a value that may have been revoked sets *max_age*.

    Each refresh is a read of the secret, and so an entry in the audit. One object serves one secret; several share a
    client. A child that was forked has the last value and no thread: create `Client` and `Cached` after the fork.

    Args:
        client: Makes the calls; close it after this.
        path: Path of the secret.
        interval: Seconds between two refreshes at most, while they succeed; from 0.1 to a day.
        max_age: Seconds after which `current` raises if the value was not confirmed; None: never. More than *interval*.
        start_timeout: Seconds that the first value may take.
        on_change: Called with the new secret, in the thread that refreshes, once it is current. No refresh happens
            while it runs. What it raises is logged and changes nothing, `SystemExit` too: it is not the main thread.

    Raises:
        InvalidArgumentError: The path or a number of seconds is not usable.
        DeniedError: No policy allows it.
        NotFoundError: There is no such secret.
        Error: See `shardhold.Error` for the others; one that passes by itself lasted for *start_timeout*.
    """

    def __init__(
        self,
        client: "Client",
        path: str,
        *,
        interval: float = INTERVAL_S,
        max_age: float | None = None,
        start_timeout: float = START_TIMEOUT_S,
        on_change: Callable[[Secret], object] | None = None,
    ) -> None:
        self._client = client
        self._last_good = LastGood(path, interval=interval, max_age=max_age, start_timeout=start_timeout)
        self._on_change = on_change
        self._closed = threading.Event()
        self._start(Start(self._last_good))
        self._refresher = threading.Thread(target=self._keep_fresh, name="shardhold-cached", daemon=True)
        self._refresher.start()

    def __repr__(self) -> str:
        return f"Cached({self.path!r})"

    def __enter__(self) -> "Cached":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def path(self) -> str:
        """Path of the secret."""
        return self._last_good.path

    @property
    def current(self) -> Secret:
        """The last good value, without waiting; keep the secret rather than ask twice for two fields that belong.

        Raises:
            UnavailableError: It is older than *max_age*; the cause is what the last refresh met.
        """
        return self._last_good.current

    @property
    def age(self) -> float:
        """Seconds since the nexus was asked for the current value, the time of a suspended machine included."""
        return self._last_good.age

    @property
    def error(self) -> Error | None:
        """Why the last refresh failed; None after one that did not."""
        return self._last_good.error

    def close(self, *, wait: bool = True) -> None:
        """Stop refreshing; the last value stays, and ages. Idempotent.

        It waits for a refresh in progress, which takes at most the client's time-out. Without *wait* that goes on for
        as long, with no one to tell of how it ended.
        """
        self._closed.set()
        if wait and self._refresher is not threading.current_thread():
            self._refresher.join()

    def _start(self, start: Start) -> None:
        while True:
            try:
                return self._fetch(timeout=start.left())
            except Error as exc:
                self._closed.wait(start.choose_pause(exc))

    def _fetch(self, *, timeout: float | None = None) -> None:
        asked_at = read_clock()
        secret = self._client.get(self.path, timeout=timeout)
        if self._last_good.take(secret, asked_at=asked_at) and self._on_change is not None:
            try:
                self._on_change(secret)
            except (Exception, SystemExit):  # which would end this thread alone, and without a word
                _logger.exception("%s: on_change raised", self.path)

    def _keep_fresh(self) -> None:
        while not self._closed.wait(self._last_good.choose_pause()):
            try:
                self._fetch()
            except Exception as exc:  # noqa: BLE001 — whatever it was, the next refresh is due
                if not self._closed.is_set():
                    self._last_good.fail(exc)
