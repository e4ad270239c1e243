"""A process that uses one primitive of `common` in many ways and then stands still for `test_primitives` to inspect.

Secrets go over the pipe masked, so that sending them leaves no copy. Arguments: the scenario, and "main" or "worker".
"""

import os
import sys
import threading
from collections.abc import Callable

from common.keys import derive, shamir
from common.keys.hardening import harden_process
from common.keys.protected import Level, ProtectedBuffer, ProtectedMemory
from common.keys.sealing import OVERHEAD, OneShotKey, seal

MASK = 0x5A
ROUNDS = 3

memory = ProtectedMemory(highest=Level.LOCKED)  # root can read these pages, and can tell that they are protected
held: list[object] = []


def tell(kind: str, content: bytes | memoryview, *, secret: bool) -> None:
    masked = bytes(byte ^ MASK for byte in content) if secret else bytes(content)
    os.write(1, f"{kind} {masked.hex()}\n".encode())


def hear() -> bytes:
    line = bytearray()
    while not line.endswith(b"\n"):
        line += os.read(0, 1)
    return bytes.fromhex(line.decode())


def random_buffer(size: int) -> ProtectedBuffer:
    buffer = memory.allocate(size)
    buffer.fill_random()
    tell("key", buffer.view, secret=True)
    return buffer


def use_derive() -> Callable[[], None]:
    key, message = random_buffer(32), random_buffer(48)
    outputs = [memory.allocate(32), memory.allocate(32), memory.allocate(16)]

    def run() -> None:
        derive.hmac_sha256(key.view, b"public")
        derive.hmac_into(key.view, message.view, outputs[0].view)
        derive.expand(key.view, b"sixteen", outputs[2].view)
        derive.expand(key.view, b"thirty-two", outputs[1].view)

    run()
    for output in outputs:
        tell("key", output.view, secret=True)
    return run


def use_shamir() -> Callable[[], None]:
    secret, coefficients = random_buffer(32), random_buffer(64)
    shards = [memory.allocate(shamir.SHARD_SIZE) for _ in range(5)]
    key, refill = memory.allocate(32), memory.allocate(shamir.SHARD_SIZE)
    views = [shard.view for shard in shards]

    def randomise(view: memoryview) -> None:
        view[:] = coefficients.view

    def run() -> None:
        shamir.split(secret.view, threshold=3, xs=range(1, 6), into=views, randomise=randomise)
        shamir.combine(views, threshold=3, into=key.view)
        shamir.interpolate(views[:3], threshold=3, x=5, into=refill.view)
        shamir.commitment(refill.view, cluster_id=bytes(16), set_id=bytes(16))

    run()
    for view in views:
        tell("key", view[:-1], secret=True)
    return run


def use_open() -> Callable[[], None]:
    one_shot = [OneShotKey()]  # popped, as the desk does: nothing else holds it
    tell("public", one_shot[0].public_bytes, secret=False)
    sealed = hear()
    into = memory.allocate(len(sealed) - OVERHEAD)
    return lambda: one_shot.pop().open(sealed, info=b"info", aad=b"aad", into=into.view)


def use_seal() -> Callable[[], None]:
    plaintext, recipient = random_buffer(shamir.SHARD_SIZE), hear()
    return lambda: tell("sealed", seal(plaintext.view, recipient=recipient, info=b"info", aad=b"aad"), secret=False)


def wait() -> Callable[[], None]:
    one_shot = OneShotKey()
    tell("public", one_shot.public_bytes, secret=False)
    hear()
    return lambda: held.append(one_shot)


def plant() -> Callable[[], None]:
    key = random_buffer(32)
    return lambda: held.append(bytes(key.view))


SCENARIOS = {
    "derive": use_derive,
    "shamir": use_shamir,
    "open": use_open,
    "seal": use_seal,
    "plant": plant,
    "wait": wait,
}


def work(done: threading.Event) -> None:
    prepare = SCENARIOS[sys.argv[1]]
    for run in [prepare() for _ in range(ROUNDS)]:
        run()
    tell("done", b"", secret=False)
    done.wait()


def main() -> None:
    harden_process()
    done = threading.Event()
    if sys.argv[2] == "worker":
        threading.Thread(target=work, args=(done,), daemon=True).start()
        done.wait()
    work(done)


if __name__ == "__main__":
    main()
