"""The rollback marks that go between this nexus and one keeper.

The keeper is asked for its mark once for each of its boots, and when it has seen a higher epoch than that of this
nexus. A mark that does not verify is a lie. A keeper that is given an older mark than it holds answers with its own, or
refuses it, and is then asked: the store of this nexus is behind.
"""

import structlog

from common.errors import MarkError, WrongStateError
from common.forms.epoch import NO_EPOCH, StoreEpoch
from common.forms.mark import SignedMark
from nexus.keepers.conduct import Conduct
from nexus.keepers.link import CALL_TIMEOUT, KeeperLink, KeeperReport
from nexus.keepers.marks import MarkBook

log = structlog.get_logger("keepers")


class MarkExchange:
    """Used by one thread. Every *epoch* is the store's."""

    def __init__(self, link: KeeperLink, conduct: Conduct) -> None:
        self._link = link
        self._conduct = conduct
        self._asked = (b"", NO_EPOCH)  # boot and epoch in which it was asked
        # The last mark that it was given, in which boot, at which epoch, and whether it held no newer one.
        self._given: tuple[SignedMark, bytes, StoreEpoch, bool] | None = None

    def ask(self, report: KeeperReport, book: MarkBook, epoch: StoreEpoch) -> None:
        """Enter the keeper's mark into *book*, if it is to be asked for it.

        Raises:
            MarkError: The keeper lies.
        """
        asked = report.boot_id, max(report.epoch, epoch)
        if asked == self._asked:
            return
        mark = self._link.fetch_mark(book.cluster_id, timeout=CALL_TIMEOUT)
        self._asked = asked
        self._take(mark, report, book)

    def give(self, mark: SignedMark | None, report: KeeperReport, book: MarkBook, epoch: StoreEpoch) -> None:
        """Give the keeper a mark, if there is one that it was not given yet.

        Raises:
            WrongStateError, InvalidArgumentError: It refuses the mark.
            MarkError: It answers with a newer one, which is a lie.
        """
        if mark is None or (self._given is not None and self._given[:3] == (mark, report.boot_id, epoch)):
            return
        try:
            newer = self._link.put_mark(mark, epoch=epoch, timeout=CALL_TIMEOUT, known=report.chain_digest)
        except WrongStateError as exc:
            log.warning("keeper refuses the mark of this store", keeper=self._link.name, why=str(exc))
            self._asked = (b"", NO_EPOCH)  # it may know better: asked at the next step
            raise
        self._given = mark, report.boot_id, epoch, newer is None
        if newer is not None:
            log.warning("keeper remembers a newer mark", keeper=self._link.name)
            self._take(newer, report, book)

    def is_followed(self, mark: SignedMark | None, report: KeeperReport, epoch: StoreEpoch) -> bool:
        """Whether the keeper took *mark* and held no newer one, or there is none to take."""
        return mark is None or self._given == (mark, report.boot_id, epoch, True)

    def find_taken(self, boot_id: bytes) -> bytes:
        """Return the last mark that the keeper took in this boot, encoded; empty: none, or it held a newer one."""
        if self._given is None:
            return b""
        mark, boot, _, is_followed = self._given
        return mark.mark if is_followed and boot == boot_id else b""

    def _take(self, mark: SignedMark | None, report: KeeperReport, book: MarkBook) -> None:
        try:
            book.take(self._link.name, mark)
        except MarkError as exc:
            accusation = f"lies: {exc}"
            self._conduct.accuse(report.boot_id, accusation)
            raise MarkError(accusation) from exc
