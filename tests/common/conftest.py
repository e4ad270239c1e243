"""What tests of `common` share: servers with a real edge."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.common.server.edge_bench import Answer, Bench, answer_caller


@pytest.fixture
def serve() -> Iterator[Callable[..., Bench]]:
    """Start servers that answer with the test's own method; eight workers each, unless it says otherwise."""
    benches: list[Bench] = []

    def start(answer: Answer = answer_caller, **options: Any) -> Bench:
        benches.append(Bench(answer, **options))
        return benches[-1]

    yield start
    for bench in benches:
        bench.close()
