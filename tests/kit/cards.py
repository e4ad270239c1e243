"""Share cards for tests."""

from datetime import date

from pilot.custody.card import Card

CLUSTER_ID = bytes(16)
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
