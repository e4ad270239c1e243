"""The command line as transcripts: what is typed, the output and the exit code. None of these need a nexus."""

import json
import os
import subprocess
import sys
from pathlib import Path

import grpc
import pytest

from pilot.__main__ import run
from pilot.errors import PilotError, UsageError, describe, described
from pilot.options import complete_address
from shardhold import _errors as sdk
from tests.kit.patience import at_most
from tests.kit.transcript import run_pilot

NO_IDENTITY = """\
pilot: error: no identity: SPIFFE_ENDPOINT_SOCKET is not set
pilot: hint: set it to the Workload API's socket, or use SVID files
pilot: hint: SVID files are named with --svid-dir; a cluster of 'pilot dev' with: eval "$(pilot dev env)"
"""


@pytest.fixture(autouse=True)
def _outside_of_any_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("SPIFFE_ENDPOINT_SOCKET", "SHARDHOLD_ADDRESS"):
        monkeypatch.delenv(variable, raising=False)


@pytest.mark.parametrize(
    ("typed", "exit_code", "out", "err"),
    [
        pytest.param("version", 0, "pilot 0.1.0\n", "", id="version"),
        pytest.param("version -o json", 0, '{\n  "version": "0.1.0"\n}\n', "", id="option behind the command"),
        pytest.param("-o json version", 0, '{\n  "version": "0.1.0"\n}\n', "", id="option before the command"),
        pytest.param("-o json version -o table", 0, "pilot 0.1.0\n", "", id="behind wins"),
        pytest.param("status", 5, "", NO_IDENTITY, id="no identity"),
        pytest.param("whoami", 5, "", NO_IDENTITY, id="no identity to show"),
        pytest.param(
            "nope",
            2,
            "",
            "pilot: error: no such command 'nope'\npilot: hint: 'pilot --help' shows its usage\n",
            id="unknown command",
        ),
        pytest.param(
            "secrte list",
            2,
            "",
            "pilot: error: no such command 'secrte'\npilot: hint: did you mean 'secret'?\n",
            id="typo in a command",
        ),
        pytest.param(
            "root quarantine lits",
            2,
            "",
            "pilot: error: no such command 'lits'\npilot: hint: did you mean 'list'?\n",
            id="typo in a command of a group",
        ),
        pytest.param(
            "unseal sumbit",
            2,
            "",
            "pilot: error: no such command of 'pilot unseal'\npilot: hint: did you mean 'submit'?\n",
            id="typo that may be a word of a share",
        ),
        pytest.param(
            "secret get a --vesrion 1",
            2,
            "",
            "pilot: error: no such option: --vesrion\npilot: hint: did you mean '--version'?\n",
            id="typo in an option",
        ),
        pytest.param(
            "status --address localhost:0 --svid-dir SVID",
            2,
            "",
            "pilot: error: address: got 'localhost:0', want HOST or HOST:PORT, such as 127.0.0.1:8553\n",
            id="address with an impossible port",
        ),
        pytest.param("--version", 0, "pilot 0.1.0\n", "", id="version as an option"),
        pytest.param(
            "secret get",
            2,
            "",
            "pilot: error: missing argument 'PATH'\npilot: hint: 'pilot secret get --help' shows its usage\n",
            id="missing argument",
        ),
        pytest.param(
            "keeper list --output xml",
            2,
            "",
            "pilot: error: invalid value for '-o' / '--output': 'xml' is not one of 'table', 'json', 'toml'\n"
            "pilot: hint: 'pilot keeper list --help' shows its usage\n",
            id="wrong option",
        ),
        pytest.param(
            "secret put team/app password=hunter2",
            2,
            "",
            "pilot: error: value 1: a value on the command line would stay in the shell's history and in the "
            "list of processes\n"
            "pilot: hint: use FIELD=@FILE or FIELD=- (standard input), or FIELD alone to be asked\n",
            id="value on the command line",
        ),
        pytest.param(
            "secret put team/app",
            2,
            "",
            "pilot: error: there is no terminal to ask on\n"
            "pilot: hint: name a file (FIELD=@FILE) or standard input (FIELD=-)\n",
            id="nobody to ask for a value",
        ),
        pytest.param(
            "secret delete a --expected-version 1 --expected-incarnation 00ff",
            2,
            "",
            "pilot: error: --expected-incarnation has 2 bytes, want 16\n",
            id="short incarnation",
        ),
        pytest.param(
            "secret get a --version 18446744073709551616",
            2,
            "",
            "pilot: error: invalid value for '--version': Input should be less than or equal to 18446744073709551615\n"
            "pilot: hint: 'pilot secret get --help' shows its usage\n",
            id="version that no message can hold",
        ),
        pytest.param(
            "status --timeout inf",
            2,
            "",
            "pilot: error: invalid value for '--timeout': Input should be less than or equal to 86400\n"
            "pilot: hint: 'pilot status --help' shows its usage\n",
            id="endless time-out",
        ),
        pytest.param(
            "whoami --svid-dir SVID --role king",
            2,
            "",
            "pilot: error: --role: got 'king', want superuser, operator, recover or auditor\n",
            id="unknown role",
        ),
        pytest.param(
            "init --recovery 1/3",
            2,
            "",
            "pilot: error: --recovery: recovery shares: got 1 of 3, want 1 of 1, or 2 to 16 of 2 to 16\n",
            id="one of three shares",
        ),
        pytest.param(
            "init --recovery three",
            2,
            "",
            "pilot: error: --recovery: got 'three', want K/N, such as 3/5\n",
            id="no K/N",
        ),
        pytest.param(
            "init --keeper-threshold 1",
            2,
            "",
            "pilot: error: --keeper-threshold: got 1, want at least 2\n"
            "pilot: hint: with 1 each keeper alone would hold the root key\n",
            id="threshold 1",
        ),
        pytest.param(
            "policy apply /nonexistent",
            2,
            "",
            "pilot: error: /nonexistent: No such file or directory\n",
            id="no such file",
        ),
        pytest.param(
            "--svid-dir /nonexistent status",
            5,
            "",
            "pilot: error: no usable SVID in /nonexistent: [Errno 2] No such file or directory: "
            "'/nonexistent/svid_key.pem'\n" + NO_IDENTITY.splitlines(keepends=True)[2],
            id="no SVID files",
        ),
    ],
)
def test_transcript(
    typed: str, exit_code: int, out: str, err: str, capsys: pytest.CaptureFixture[str], svid_dir: Path
) -> None:
    """What is typed gives this output and this exit code; SVID stands for a custodian's files."""
    assert run(typed.replace("SVID", str(svid_dir)).split()) == exit_code
    assert capsys.readouterr() == (out, err)


@pytest.mark.parametrize("command", ["", "secret", "policy", "keeper", "dev"])
def test_without_a_command_there_is_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A group without a command shows its commands and exits with 2."""
    assert run(command.split()) == 2
    shown = capsys.readouterr()
    assert "Commands" in shown.out + shown.err


@pytest.mark.parametrize(
    ("given", "dialled"),
    [
        pytest.param("localhost", "localhost:8553", id="name"),
        pytest.param("nexus.example.org", "nexus.example.org:8553", id="domain"),
        pytest.param("10.0.0.7", "10.0.0.7:8553", id="IPv4"),
        pytest.param("[::1]", "[::1]:8553", id="IPv6"),
        pytest.param("::1", "[::1]:8553", id="IPv6 without brackets"),
        pytest.param("[fe80::1%eth0]", "[fe80::1%eth0]:8553", id="IPv6 with its interface"),
        pytest.param("localhost:443", "localhost:443", id="name and port"),
        pytest.param("[::1]:443", "[::1]:443", id="IPv6 and port"),
    ],
)
def test_an_address_without_a_port(given: str, dialled: str) -> None:
    """A host alone is dialled on the port of a nexus; host and port are taken as they are."""
    assert complete_address(given) == dialled


@pytest.mark.parametrize(
    "given", ["", "a b", ":8553", "host:", "host:x", "host:70000", "https://host", "[::1", "a:1:z", "[::1]x"]
)
def test_what_is_no_address(given: str) -> None:
    """It is refused, before anything is dialled."""
    with pytest.raises(UsageError, match=r"^address: got "):
        complete_address(given)


def test_the_variable_names_an_address_like_the_option(svid_dir: Path) -> None:
    """What is wrong in it is said as well."""
    told = run_pilot("status", "--svid-dir", svid_dir, environ={"SHARDHOLD_ADDRESS": "https://nexus"})
    assert (told.code, told.err.startswith("pilot: error: address: got 'https://nexus'")) == (2, True)


@pytest.mark.parametrize(
    "command",
    [
        "status",
        "whoami",
        "init",
        "seal",
        "unseal start",
        "unseal submit",
        "unseal status",
        "unseal reset",
        "unseal lead",
        "accept-older-store",
        "version",
        "keeper list",
        "secret put",
        "secret get",
        "secret list",
        "secret delete",
        "secret patch",
        "secret versions",
        "secret undelete",
        "secret destroy",
        "secret metadata get",
        "secret metadata set",
        "policy apply",
        "policy get",
        "policy list",
        "policy delete",
        "policy explain",
        "audit tail",
        "audit verify",
        "audit accept-new-chain",
    ],
)
def test_every_command_takes_the_global_options(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each command exists and its help names the global options."""
    assert run([*command.split(), "--help"]) == 0
    shown = capsys.readouterr().out
    for option in ("--output", "--address", "--svid-dir", "--timeout", "--role"):
        assert option in shown


def test_a_command_imports_only_what_it_needs() -> None:
    """`pilot version` starts without grpc, spiffe or cryptography."""
    code = (
        "import sys; from pilot.__main__ import run; run(['version']); "
        "print([name for name in ('grpc', 'spiffe', 'cryptography', 'rich.table', 'pilot.dev') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["pilot 0.1.0", "[]"]


def test_an_argument_that_is_not_utf_8(svid_dir: Path) -> None:
    """An argument that is not UTF-8 is a usage error, and is not repeated."""
    done = run_pilot("secret", "get", "te\udcffam", "--svid-dir", svid_dir)
    assert (done.code, done.err) == (
        2,
        "pilot: error: what was typed, or given as an argument, is not UTF-8\n",
    )


def test_an_output_that_has_no_letter_for_it() -> None:
    """When the output's encoding cannot show the result, pilot says so and does not repeat the text."""
    with pytest.raises(PilotError, match="the output encoding ascii cannot show") as caught, described():
        "hünter2".encode("ascii")
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        pytest.param("policy apply", "[[policy]] tables", id="brackets that are no markup"),
        pytest.param("secret put", "[FIELD | FIELD=@FILE | FIELD=- | @FILE | -]...", id="values, once in brackets"),
        pytest.param("unseal submit", "[@FILE|-]...", id="a share, once in brackets"),
    ],
)
def test_help_shows(command: str, shown: str) -> None:
    """Help shows brackets where they are meant, and only there."""
    help_ = " ".join(run_pilot(*command.split(), "--help").out.split())
    assert shown in help_
    assert f"[{shown}" not in help_


@pytest.mark.parametrize(
    ("typed", "is_unbuffered"),
    [
        pytest.param("version -o json", False, id="command: shows when the output is flushed"),
        pytest.param("version -o json", True, id="command: shows when it prints"),
        pytest.param("--help", True, id="help"),
    ],
)
def test_a_reader_that_leaves_is_no_traceback(typed: str, is_unbuffered: bool) -> None:
    """When its output is closed, pilot ends quietly, as after SIGPIPE."""
    leaves, writes = os.pipe()
    os.close(leaves)
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [sys.executable, *(["-u"] if is_unbuffered else []), "-m", "pilot", *typed.split()]
    try:
        done = subprocess.run(
            command, stdout=writes, stderr=subprocess.PIPE, text=True, check=False, timeout=at_most(30), env=environ
        )
    finally:
        os.close(writes)
    assert (done.returncode, done.stderr) == (141, "")


def test_interrupted_before_it_has_begun() -> None:
    """Ctrl-C while modules are still imported is one line as well."""
    code = (
        "import sys\n"
        "class Interrupts:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'typer':\n"
        "            raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupts())\n"
        "from pilot.__main__ import run\n"
        "sys.exit(run(['version']))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "pilot: error: interrupted\n")


EXIT_CODES: dict[type[sdk.Error], int] = {
    sdk.UnavailableError: 5,
    sdk.SealedError: 5,
    sdk.RecoveringError: 5,
    sdk.OverloadedError: 5,
    sdk.DeadlineError: 5,
    sdk.ClientClosedError: 1,
    sdk.IdentityUnavailableError: 5,
    sdk.UnauthenticatedError: 4,
    sdk.DeniedError: 4,
    sdk.NotFoundError: 3,
    sdk.ConflictError: 1,
    sdk.InvalidArgumentError: 2,
    sdk.WrongStateError: 1,
    sdk.UnsupportedError: 1,
    sdk.IntegrityError: 1,
    sdk.InternalError: 1,
    sdk.NoSuchFieldError: 1,
    sdk.NotTextError: 1,
}


def test_every_error_of_the_sdk_has_an_exit_code() -> None:
    """The table is total over the SDK's errors, and the server's own hint comes before pilot's."""
    errors = {kind for kind in vars(sdk).values() if isinstance(kind, type) and issubclass(kind, sdk.Error)} - {
        sdk.Error
    }
    assert errors == EXIT_CODES.keys()
    for kind, exit_code in EXIT_CODES.items():
        error = describe(kind("what", grpc.StatusCode.UNKNOWN, "WHY", "its own hint"))
        assert (str(error), error.hints[0], error.exit_code) == ("what", "its own hint", exit_code)
        assert error.reason == "WHY"


def test_faults_of_pilot_are_not_dressed_up() -> None:
    """An error that is neither ours nor the SDK's passes through unchanged."""
    with pytest.raises(ZeroDivisionError), described():
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("typed", "hint", "exit_code"),
    [
        pytest.param("status", "set it to", 5, id="command"),
        pytest.param("secret get", "'pilot secret get --help' shows its usage", 2, id="usage"),
        pytest.param("secrte", "did you mean 'secret'?", 2, id="typo"),
        pytest.param("secret", "'pilot secret --help' lists them", 2, id="no command"),
        pytest.param("init --recovery 1/3", None, 2, id="no hint"),
    ],
)
def test_programs_get_errors_as_json(
    typed: str, hint: str | None, exit_code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line on stderr, whatever went wrong, and nothing on stdout."""
    assert run(["-o", "json", *typed.split()]) == exit_code
    shown = capsys.readouterr()
    assert (shown.out, shown.err.count("\n")) == ("", 1)
    error = json.loads(shown.err)["error"]
    assert list(error) == ["message", "hint", "reason", "exit_code"]
    assert (error["reason"], error["exit_code"]) == (None, exit_code)
    assert (error["hint"] or "").startswith(hint or "")
    assert (error["hint"] is None) == (hint is None)


def test_json_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    """JSON output parses."""
    assert run(["version", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"version": "0.1.0"}


def run_in_shell(command: str) -> subprocess.CompletedProcess[str]:
    """Run pilot, as "$@" in a line of sh that says what becomes of its streams."""
    line = ["sh", "-c", command, "sh", sys.executable, "-m", "pilot"]
    return subprocess.run(line, capture_output=True, text=True, timeout=at_most(30), check=False)


@pytest.mark.parametrize(
    ("command", "exit_code", "err"),
    [
        pytest.param('"$@" version > /dev/full', 1, "cannot write the output: No space", id="stdout full"),
        pytest.param('"$@" --help > /dev/full', 1, "cannot write the output: No space", id="help, stdout full"),
        pytest.param('"$@" status --help > /dev/full', 1, "cannot write the output: No space", id="its help as well"),
        pytest.param('"$@" --version > /dev/full', 1, "cannot write the output: No space", id="version, stdout full"),
        pytest.param('"$@" version >&-', 1, "cannot write the output: Bad file descriptor", id="stdout closed"),
        pytest.param('"$@" secret put a/b v=- <&-', 2, "standard input: Bad file descriptor", id="stdin closed"),
        pytest.param('"$@" policy apply - <&-', 2, "-: Bad file descriptor", id="policies, stdin closed"),
        pytest.param('"$@" secret put a/b <&-', 2, "there is no terminal to ask on", id="nobody to ask"),
        pytest.param('"$@" policy apply /dev/zero', 2, "/dev/zero: got more than 4194304 bytes", id="file without end"),
    ],
)
def test_streams_that_are_closed_or_full(command: str, exit_code: int, err: str) -> None:
    """A result that nobody gets is a failure, and closed input is no empty value; neither is a traceback."""
    done = run_in_shell(command)
    assert (done.returncode, done.stdout) == (exit_code, "")
    assert done.stderr.startswith(f"pilot: error: {err}")


def test_a_full_disk_for_programs() -> None:
    """It is an error in JSON as any other."""
    done = run_in_shell('"$@" version -o json > /dev/full')
    error = json.loads(done.stderr)["error"]
    assert (done.returncode, error["message"].startswith("cannot write the output: No space")) == (1, True)


@pytest.mark.parametrize("stderr", ["2> /dev/full", "2>&-"])
def test_an_error_that_nobody_hears(stderr: str) -> None:
    """The exit code says it all the same, and standard output stays clean."""
    done = run_in_shell(f'"$@" status {stderr}')
    assert (done.returncode, done.stdout) == (5, "")
