"""What one keeper did since it started, as far as it tells whether the keeper lies.

A keeper is accused of a report that no true one gives, of a shard that does not match its commitment, and of a rollback
mark that does not verify. It stays accused until it starts anew, whatever it says later.
"""

from collections import deque

from common.errors import IntegrityError
from common.forms.delivery import SetLabel
from nexus.keepers.link import KeeperReport

MAX_SETS = 2  # that a keeper can hold
MAX_DROPPED = 64  # sets in one boot that it never showed a true shard of; a keeper may invent any number


class Conduct:
    """Used by one thread."""

    def __init__(self) -> None:
        self._accused_boot = b""
        self._accusation = ""
        self._dropped_boot = b""
        self._dropped: set[bytes] = set()  # ids of the sets that it dropped in that boot; bounded
        self._shown: deque[bytes] = deque(maxlen=MAX_DROPPED)  # the last that it dropped and had shown a shard of

    def accuse(self, boot_id: bytes, accusation: str) -> None:
        """Hold a lie against the keeper for as long as this boot lasts."""
        self._accused_boot, self._accusation = boot_id, accusation

    def find_accusation(self, report: KeeperReport) -> str:
        """Return what it is accused of; empty: nothing."""
        return self._accusation if report.boot_id == self._accused_boot else ""

    def note_drop(self, label: SetLabel, report: KeeperReport, *, was_shown: bool) -> bool:
        """Remember that it dropped a set; return whether that is worth an entry in the audit.

        *was_shown*: it had a true shard of it, so the set is not invented, and there may be any number.
        """
        if self._dropped_boot != report.boot_id:
            self._dropped_boot, self._dropped = report.boot_id, set()
            self._shown.clear()
        if was_shown:
            self._shown.append(label.set_id)
            return True
        if label.set_id in self._dropped or len(self._dropped) > MAX_DROPPED:  # one more than that is the lie
            return False
        self._dropped.add(label.set_id)
        return True

    def check_report(self, report: KeeperReport) -> None:
        """Accuse the keeper of a report that no true one gives.

        Raises:
            IntegrityError: It is one.
        """
        dropped = self._dropped if report.boot_id == self._dropped_boot else set()
        shown = self._shown if report.boot_id == self._dropped_boot else ()
        kept = [held.label for held in report.sets if held.label.set_id in dropped or held.label.set_id in shown]
        if len(report.sets) > MAX_SETS:
            lie = f"lies: it says that it holds {len(report.sets)} sets, and can hold {MAX_SETS}"
        elif kept:
            lie = f"lies: it says that it holds set {kept[0].set_number}, which it has dropped"
        elif len(dropped) > MAX_DROPPED:
            lie = f"lies: it says that it holds ever new sets, and has dropped more than {MAX_DROPPED} since it started"
        else:
            return
        self.accuse(report.boot_id, lie)
        raise IntegrityError(lie)
