"""What tests of `common` share: servers of the edge."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.common.server.edge_bench import Answer, Bench, answer_caller


@pytest.fixture
def serve() -> Iterator[Callable[..., Bench]]:
    """Start servers with an answer of the test's own; eight workers each, unless it says otherwise."""
    benches: list[Bench] = []

    def start(answer: Answer = answer_caller, **options: Any) -> Bench:
        benches.append(Bench(answer, **options))
        return benches[-1]

    yield start
    for bench in benches:
        bench.close()
