"""One page of a listing: read a few rows at once, of which the caller may see some."""

from collections.abc import Callable, Iterator, Sequence

from common.errors import CallerGoneError, OverloadedError
from nexus.keys.floor import Floor
from nexus.store.protocol import ListedSecret, Store

_MOST_HIDDEN = 20_000  # secrets that are read for one page and not shown
_FEWEST_ROWS, _MOST_ROWS = 16, 256  # read at once


class Page:
    """A page of a listing, as it fills."""

    def __init__(self, limit: int, *, include_deleted: bool = False) -> None:
        self.limit = limit
        self.include_deleted = include_deleted
        self.shown: list[ListedSecret] = []  # one more than *limit* tells whether there is another page
        self._hidden = 0

    @property
    def lacking(self) -> int:
        """How many secrets are still to come; 0: the page is full."""
        return self.limit + 1 - len(self.shown)

    @property
    def next_token(self) -> str:
        """The path after which the next page begins, empty at the end."""
        return "" if self.lacking else self.shown[self.limit - 1].path

    def take(self, rows: Sequence[ListedSecret], is_shown: Callable[[ListedSecret], bool]) -> None:
        """Take what the caller may see of *rows*."""
        found = [row for row in rows if is_shown(row)]
        self.shown += found[: self.lacking]
        self._hidden += len(rows) - len(found)

    def check(self, is_wanted: Callable[[], bool]) -> None:
        """See that it is worth while to read on.

        Raises:
            CallerGoneError: Nobody waits any more.
            OverloadedError: Too much was read that the caller may not see.
        """
        if not is_wanted():
            raise CallerGoneError("the caller has left, or its deadline has passed")
        if self._hidden > _MOST_HIDDEN:
            raise OverloadedError(
                f"more than {_MOST_HIDDEN} secrets below this prefix are not yours: name a longer one"
            )


def read_range(
    store: Store, floor: Floor, prefix: str, begin: str, end: str, page: Page, is_wanted: Callable[[], bool]
) -> Iterator[list[ListedSecret]]:
    """Read the secrets at *prefix* after *begin* and before *end*, until *page* is full; raises as `Page.check`."""
    while begin < end and page.lacking:
        page.check(is_wanted)
        count = min(max(page.lacking, _FEWEST_ROWS), _MOST_ROWS)
        left = floor.position
        with store.read() as reader:
            rows = reader.list_secrets(
                prefix, after=begin, before=end, limit=count, include_deleted=page.include_deleted
            )
            floor.check_read(left, reader.load_position())
        yield rows
        begin = rows[-1].path if len(rows) == count else end
