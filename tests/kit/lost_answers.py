"""Answers that a client never hears of, although the server made the call."""

from collections.abc import Callable
from typing import Any

import grpc

from shardhold import Client


class LostAnswerError(grpc.RpcError):
    """What a client sees of a call whose connection broke after the server made it."""

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.UNAVAILABLE

    def details(self) -> str:
        return "Socket closed"

    def trailing_metadata(self) -> tuple[()]:
        return ()


def lose_answers(client: Client, rpc: str, is_lost: Callable[[], bool]) -> None:
    """Have *client* hear nothing of the answers to *rpc* for which *is_lost*, asked after each answer, says so.

    The SDK then does what it does about a broken connection.
    """
    methods: Any = client._methods
    call = methods[rpc]

    def ask(message: Any, **options: Any) -> Any:
        answer = call(message, **options)
        if is_lost():
            raise LostAnswerError
        return answer

    methods[rpc] = ask
