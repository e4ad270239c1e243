"""Recovery shares and their cards, for tests of what is done with them."""

from datetime import date

from common.recovery_key import hash_share
from common.words import encode_share, split
from pilot.card import Card
from pilot.ceremony import Plan
from pilot.custodians import ShareCheck

CLUSTER_ID = bytes(16)
PLAN = Plan(keeper_threshold=0, recovery_threshold=2, recovery_shares=3)
TODAY = date(2026, 2, 3)


def make_cards(shares: list[str], threshold: int = 2) -> list[Card]:
    return [
        Card(
            number=number,
            count=len(shares),
            threshold=threshold,
            words=words,
            cluster_id=CLUSTER_ID,
            genesis=bytes(range(32)),
            attempt=4,
            made_on=TODAY,
        )
        for number, words in enumerate(shares, start=1)
    ]


SHARES = split(bytes(32), 2, 3)
CHECK = ShareCheck([hash_share(encode_share(share)) for share in SHARES], threshold=2)
