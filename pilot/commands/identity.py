"""`pilot backup identity`: an identity that opens backups, in a file that a passphrase protects."""

import contextlib
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from common.forms.bech32 import KEY_SIZE, encode_identity, encode_recipient
from pilot.errors import PilotError, UsageError
from pilot.options import Settings, with_globals
from pilot.terminal.output import Output, print_facts, print_json
from pilot.terminal.signals import signals_as_interrupt
from pilot.terminal.terminal import Terminal

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Identities that open backups, protected by a passphrase."
)

FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="The identity file.", show_default=False)]


@app.command()
@with_globals
def new(
    settings: Settings,
    file: FileArgument,
    generate: Annotated[
        bool, typer.Option("--generate", help="Draw a passphrase of eight words, and show it once.")
    ] = False,
) -> None:
    """Make an identity on this machine, and protect its file with a passphrase that you are asked for.

    The programs of age open it too: 'age -d -i FILE BACKUP'. No role, no nexus.
    """
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    from common.keys.hardening import harden_process
    from common.keys.identity_file import encode_passphrase
    from common.keys.protected_file import protect
    from pilot.custody.passphrase import choose_passphrase, hand_out_passphrase

    if file.exists():
        raise UsageError(f"{file}: is there already, and an identity may open backups that nothing else opens")
    terminal = Terminal()
    terminal.check("a passphrase is typed by a person; age-keygen makes identities without one")
    harden_process()  # passphrase and identity are about to be in this process's memory
    with signals_as_interrupt():
        passphrase = hand_out_passphrase(terminal) if generate else choose_passphrase(terminal)
    secret = os.urandom(KEY_SIZE)
    recipient = encode_recipient(X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw())
    content = f"# public key: {recipient}\n{encode_identity(secret)}\n"
    _write(file, protect(content.encode(), encode_passphrase(passphrase)))
    _show(settings, file, recipient)
    print(
        "pilot: hint: the recipient goes into backup.recipients of the nexus; 'pilot backup identity check' asks for "
        "the passphrase again, now and then",
        file=sys.stderr,
    )


@app.command()
@with_globals
def check(settings: Settings, file: FileArgument) -> None:
    """Ask for the passphrase of an identity file, and say whether it opens. No role, no nexus."""
    from common.keys.hardening import harden_process

    harden_process()  # as in `new`
    content = open_identity(file)
    from common.keys.age import find_recipient

    _show(settings, file, find_recipient(content))


def open_identity(path: Path) -> bytes:
    """Return what an identity file holds; asks for the passphrase where one protects it.

    Raises:
        UsageError: A passphrase protects it, and there is no terminal.
        BackupUnavailableError, InvalidArgumentError, BackupError: As `common.keys.identity_file.load_identity`.
    """
    from common.keys.identity_file import load_identity

    def ask(prompt: str) -> str:
        terminal = Terminal()
        terminal.check(f"a passphrase protects {path}: type it at a terminal, or open it first with age -d")
        with signals_as_interrupt():
            return terminal.ask_hidden(prompt)

    return load_identity(path, ask)


def _write(path: Path, content: bytes) -> None:
    """Write a new file, durably, for its owner alone; one that is there stays as it is."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise PilotError(f"{path}: {exc.strerror}") from exc
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(fd)
    except OSError as exc:
        with contextlib.suppress(OSError):
            path.unlink()
        raise PilotError(f"{path}: {exc.strerror}") from exc


def _show(settings: Settings, file: Path, recipient: str) -> None:
    document = {"file": str(file), "recipient": recipient}
    if settings.output is Output.JSON:
        print_json(document)
    else:
        print_facts(document)
