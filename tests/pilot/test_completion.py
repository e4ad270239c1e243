"""Shell completion: commands, their commands and their options, without importing or asking more than needed."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pilot.__main__ import run
from tests.kit.transcript import ROOT, run_pilot
from tests.kit.waiting import wait_until
from tests.pilot.served_nexus import ALICE, ServedNexus


def complete(typed: str) -> list[str]:
    """Return what bash is offered after *typed*."""
    told = run_pilot(
        environ={
            "_PILOT_COMPLETE": "complete_bash",
            "COMP_WORDS": f"pilot {typed}",
            "COMP_CWORD": str(typed.count(" ") + 1),
        }
    )
    assert (told.code, told.err) == (0, "")
    return told.out.split()


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        pytest.param("uns", ["unseal"], id="a command"),
        pytest.param("se", ["seal", "secret"], id="commands that begin alike"),
        pytest.param("unseal ", ["start", "submit", "status", "exclude", "reset"], id="commands of unseal"),
        pytest.param("unseal su", ["submit"], id="a command of unseal"),
        pytest.param("unseal submit --nex", ["--nexus-id"], id="an option of its own"),
        pytest.param("accept-older-store --t", ["--timeline", "--timeout"], id="own and global options"),
        pytest.param("dev r", ["restart"], id="a command of dev"),
        pytest.param("status --output ", ["table", "json", "toml"], id="a choice"),
    ],
)
def test_completion(typed: str, offered: list[str]) -> None:
    """What is typed is completed to the existing commands; the hidden command of `unseal` is not offered."""
    assert sorted(complete(typed)) == sorted(offered)


def complete_before(
    nexus: ServedNexus, typed: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], who: str = ALICE
) -> list[str]:
    """Return what bash is offered after *typed*, in this process, which has imported everything already."""
    words = f"pilot {' '.join(nexus.reach(who))} {typed}"
    monkeypatch.setenv("_PILOT_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(words.count(" ")))
    with pytest.raises(SystemExit):
        run([])
    told = capfd.readouterr()
    assert told.err == ""
    return told.out.split()


@pytest.mark.parametrize(
    ("typed", "who", "offered"),
    [
        pytest.param("secret get ", ALICE, ["other", "team/app/db", "team/app/web", "team/x"], id="every path"),
        pytest.param("secret get team/app/", ALICE, ["team/app/db", "team/app/web"], id="paths below a prefix"),
        pytest.param("secret delete team/ap", ALICE, ["team/app/db", "team/app/web"], id="part of a segment"),
        pytest.param("secret put team/app/db", ALICE, ["team/app/db"], id="a whole path"),
        pytest.param("secret metadata get o", ALICE, ["other"], id="a command of metadata"),
        pytest.param("secret get ", "/team/app", ["team/app/db"], id="what a policy allows to list"),
        pytest.param("secret get ", "/nobody", [], id="nothing that the caller may not list"),
        pytest.param("secret get ../", ALICE, [], id="what is no path"),
        pytest.param("policy get ", ALICE, ["app", "superusers"], id="policies"),
        pytest.param("policy delete s", ALICE, ["superusers"], id="policies that begin so"),
        pytest.param("policy get ", "/team/app", [], id="policies that the caller may not list"),
        pytest.param("policy explain --as x read te", ALICE, ["team/app/db", "team/app/web", "team/x"], id="explain"),
        pytest.param("policy explain --as x ", ALICE, ["read", "write", "delete", "list"], id="actions"),
        pytest.param("keeper remove ", ALICE, ["keeper-1", "keeper-2", "keeper-3"], id="keepers"),
        pytest.param("keeper add ", ALICE, [], id="no keeper that is there already"),
        pytest.param("keeper replace keeper-2", ALICE, ["keeper-2"], id="the keeper that leaves"),
        pytest.param("root continue --lost ", ALICE, ["keeper-1", "keeper-2", "keeper-3"], id="a lost keeper"),
    ],
)
def test_names_that_only_the_nexus_knows(
    served: ServedNexus,
    typed: str,
    who: str,
    offered: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Policies, keepers, and paths that the caller may list; options that are typed before count."""
    for path in ("team/app/db", "team/app/web", "team/x", "other"):
        assert served.pilot("secret", "put", path, "-", stdin=b"x").code == 0
    policy = (
        '[[policy]]\nname="app"\nspiffe_ids=["spiffe://example.org/team/app"]\npaths=["**/db"]\npermissions=["list"]'
    )
    assert served.pilot("policy", "apply", "-", stdin=policy.encode()).code == 0
    # Again, where a busy machine takes longer than a person waits.
    wait_until(lambda: sorted(complete_before(served, typed, monkeypatch, capfd, who)) == sorted(offered))


@pytest.mark.parametrize("typed", ["secret get t", "policy get p", "keeper remove k"])
def test_without_a_nexus_nothing_is_offered_and_nothing_said(typed: str, svid_dir: Path) -> None:
    """Whether nobody listens, nobody answers, or there is no SVID: no traceback stands in the line that is typed."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        assert complete(f"--address {address} --svid-dir {svid_dir} {typed}") == []
    assert complete(f"--address {address} --svid-dir {svid_dir} {typed}") == []
    assert complete(f"--svid-dir /nonexistent {typed}") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_show_completion(shell: str) -> None:
    """The script for a shell names pilot and its variable."""
    told = run_pilot("--show-completion", shell, environ={"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"})
    assert told.code == 0
    assert "_PILOT_COMPLETE" in told.out


def test_install_completion_in_a_real_shell(tmp_path: Path) -> None:
    """Completion installs itself into bash, and a new bash has it."""
    environ = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    # Not the last command: else bash would become pilot, and there would be no shell left to find.
    install = f"cd {ROOT}; {sys.executable} -m pilot --install-completion; exit $?"
    done = subprocess.run(["bash", "-c", install], env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "bash completion installed" in done.stdout
    seen = subprocess.run(
        ["bash", "-c", "source ~/.bashrc; complete -p pilot"], env=environ, capture_output=True, text=True, check=True
    )
    assert seen.stdout.split()[-1] == "pilot"
