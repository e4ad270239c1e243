"""The identity of a server: the source that its configuration names, once it has a first SVID."""

import logging
from datetime import UTC, datetime
from typing import Protocol

import structlog
from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_random_exponential

from common import errors
from common.config.config import IdentityOptions
from shardhold.identity import IdentitySource as IdentitySource  # the keeper reaches the SDK only through here
from shardhold.identity import IdentityUnavailableError, SvidFiles, WorkloadAPI

_TRY_S = 2.0  # seconds that one try may wait for the Workload API, and so the longest that a stop may take
_LONGEST_PAUSE_S = 2.0
_USUAL = 3  # tries that may fail, in the first second, because the provider was started together with this server
_SAID_EVERY = 10  # tries; the tenth comes after some five seconds

log = structlog.get_logger()


class Stop(Protocol):
    """Whether to give up; `common.server.termination.Termination` or a `threading.Event`."""

    def is_set(self) -> bool: ...

    def wait(self, timeout: float | None = None) -> bool: ...


def wait_for_identity(options: IdentityOptions, stop: Stop) -> IdentitySource:
    """Open the source of SVIDs that *options* name, and try again until it has one or *stop* is set.

    Raises:
        IdentityUnavailableError: *stop* was set before there was an SVID.
        ConfigError: The SVID is of another trust domain than configured.
    """

    def pause(seconds: float) -> None:
        stop.wait(seconds)

    retrying = Retrying(
        retry=retry_if_exception_type(IdentityUnavailableError),
        wait=wait_random_exponential(multiplier=0.1, max=_LONGEST_PAUSE_S),
        stop=lambda _: stop.is_set(),
        sleep=pause,
        before_sleep=_report,
        reraise=True,
    )
    try:
        source = retrying(open_identity, options)
        svid = source.current()
    except IdentityUnavailableError as exc:
        raise errors.IdentityUnavailableError(str(exc)) from exc
    log.info("identity found", spiffe_id=svid.spiffe_id, expires_at=svid.expires_at)
    if svid.not_before > datetime.now(UTC):
        log.warning("svid is not valid yet: check the clock of this machine", valid_from=svid.not_before)
    return source


def open_identity(options: IdentityOptions) -> IdentitySource:
    """Open the source of SVIDs that *options* name; it has an SVID now.

    Raises:
        IdentityUnavailableError: It has none (the SDK's error).
        ConfigError: The SVID is of another trust domain than configured.
    """
    source: IdentitySource
    if options.source == "files":
        source = SvidFiles(options.svid_dir, unnamed_authorities=options.unnamed_authorities)
    else:
        source = WorkloadAPI(options.socket or None, timeout=_TRY_S)
    try:
        _check_trust_domain(source, options.trust_domain)
    except (IdentityUnavailableError, errors.ConfigError):
        source.close()  # it has a thread, and each try opens a new one
        raise
    return source


def _check_trust_domain(source: IdentitySource, trust_domain: str) -> None:
    svid = source.current()
    if svid.trust_domain != trust_domain:
        raise errors.ConfigError(f"identity.trust_domain: got {trust_domain!r}, but the SVID is {svid.spiffe_id}")


def list_obstacles(identity: IdentitySource) -> list[str]:
    """Return the reasons why this server can serve nobody, for its readiness; none while its SVID is good."""
    try:
        identity.current()
    except IdentityUnavailableError as exc:
        return [str(exc)]
    return []


def _report(state: RetryCallState) -> None:
    outcome = state.outcome
    if outcome is not None and (state.attempt_number <= _USUAL or state.attempt_number % _SAID_EVERY == 0):
        level = logging.INFO if state.attempt_number <= _USUAL else logging.WARNING
        log.log(level, "no svid yet, trying again", attempt=state.attempt_number, error=str(outcome.exception()))
