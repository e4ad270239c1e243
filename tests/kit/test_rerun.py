"""What `tests.kit.rerun` lets go on, by real runs of pytest in a repository of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit.flakes import read_flakes
from tests.kit.patience import at_most

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow
GIT = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org"]
INI = "[pytest]\nmarkers = final: as it says\naddopts = --import-mode=importlib -p no:cacheprovider\n"
LUCK = '''
import os
from pathlib import Path

import pytest


def fail(name, times):
    """Fail the first *times* times; how many there were is in a file, for each process is a new one."""
    tries = Path(__file__).with_name(f"{name}.tries")
    tries.write_text(tries.read_text() + "x" if tries.exists() else "x")
    assert len(tries.read_text()) > times, f"by chance, {name}"
'''
ONCE = "def test_once():\n    fail('once', 1)\n"


class Repository:
    """A repository with one test file and two commits, of which the second does not touch it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.file = root / "tests" / "test_luck.py"
        self.flakes = root / "tests" / "flakes.toml"
        self.environ = {key: value for key, value in os.environ.items() if key not in ("CI", "PYTEST_ADDOPTS")}
        self.environ["PYTHONPATH"] = str(ROOT)

    def write(self, tests: str) -> None:
        self.file.parent.mkdir()
        self.file.write_text(LUCK + tests)
        self.flakes.write_text("")
        (self.root / "pytest.ini").write_text(INI)
        (self.root / ".gitignore").write_text("*.tries\n__pycache__/\n")
        self.git("init", "--quiet", "--initial-branch", "main")
        self.commit()
        (self.root / "other").write_text("")
        self.commit()

    def commit(self) -> None:
        self.git("add", ".")
        self.git("commit", "--quiet", "--message", "c")

    def git(self, *arguments: str) -> None:
        subprocess.run([*GIT, *arguments], cwd=self.root, check=True, timeout=at_most(10))

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tests.kit.rerun", "--", "-q", *arguments]
        return subprocess.run(
            command,
            cwd=self.root,
            env=self.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=at_most(60),
            check=False,
        )

    def count_tries(self, name: str) -> int:
        return len(self.file.with_name(f"{name}.tries").read_text())


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path)


def test_what_failed_once_goes_on(repository: Repository) -> None:
    """It runs three times more, is printed as FLAKY, and stands in the list with the date and the error."""
    repository.write(ONCE + "def test_good(): fail('good', 0)\n")
    done = repository.run()
    assert done.returncode == 0, done.stdout
    assert done.stdout.splitlines().count("FLAKY tests/test_luck.py::test_once") == 1
    (flake,) = read_flakes(repository.flakes.read_text())
    assert flake.to_toml() in done.stdout
    assert flake.test == "tests/test_luck.py::test_once"
    assert "by chance, once" in flake.error
    assert (repository.count_tries("once"), repository.count_tries("good")) == (4, 1)


def test_ci_only_prints_the_entry(repository: Repository) -> None:
    """The list of a checkout that is thrown away is left as it was."""
    repository.write(ONCE)
    repository.environ["CI"] = "1"
    done = repository.run()
    assert done.returncode == 0, done.stdout
    assert "\n[[flake]]\n" in done.stdout
    assert repository.flakes.read_text() == ""


def test_two_may_fail(repository: Repository) -> None:
    """Each runs again for itself, whatever its parameter is spelled like."""
    repository.write("@pytest.mark.parametrize('name', ['a b[', 'ü::-k'])\ndef test_x(name): fail(len(name), 1)\n")
    done = repository.run()
    assert done.returncode == 0, done.stdout
    assert len(read_flakes(repository.flakes.read_text())) == 2


@pytest.mark.parametrize(
    ("tests", "said", "tries"),
    [
        pytest.param("def test_once(): fail('once', 9)\n", "test_once failed again", 2, id="fails always"),
        pytest.param("def test_once(): fail('once', 2)\n", "test_once failed again", 2, id="fails twice"),
        pytest.param(
            ONCE + "    assert Path(__file__).with_name('once.tries').stat().st_size != 4\n",
            "test_once failed again",
            4,
            id="fails at the third",
        ),
        pytest.param(
            ONCE + "    pytest.skip('gone')\n",
            "test_once failed again",
            2,
            id="skipped",
        ),
        pytest.param("@pytest.mark.final\n" + ONCE, "test_once is final", 1, id="final"),
        pytest.param(
            ONCE + "def test_b(): fail('b', 1)\ndef test_c(): fail('c', 1)\n", "3 tests failed", 1, id="three"
        ),
        pytest.param(
            ONCE + "@pytest.mark.final\ndef test_b(): fail('b', 1)\n", "test_b is final", 1, id="one of two is final"
        ),
    ],
)
def test_what_goes_no_further(repository: Repository, tests: str, said: str, tries: int) -> None:
    """The exit code stays what pytest gave, and nothing is written down."""
    repository.write(tests)
    done = repository.run()
    assert done.returncode == 1, done.stdout
    assert said in done.stdout
    assert "FLAKY" not in done.stdout
    assert repository.flakes.read_text() == ""
    assert repository.count_tries("once") == tries


def edit(repository: Repository) -> None:
    repository.file.write_text(repository.file.read_text() + "\n")


def commit(repository: Repository) -> None:
    edit(repository)
    repository.commit()


def commit_since_main(repository: Repository) -> None:
    repository.git("update-ref", "refs/remotes/origin/main", "HEAD")
    commit(repository)
    (repository.root / "other").write_text("more")
    repository.commit()


def forget_history(repository: Repository) -> None:
    repository.git("checkout", "--quiet", "--orphan", "alone")
    repository.commit()


@pytest.mark.parametrize("change", [edit, commit, commit_since_main, forget_history])
def test_a_file_that_the_change_touches_is_not_run_again(repository: Repository, change: object) -> None:
    """Not committed, in the last commit, in one since origin/main, or when nobody knows."""
    assert callable(change)
    repository.write(ONCE)
    change(repository)
    done = repository.run()
    assert done.returncode == 1, done.stdout
    assert "may be what the change broke" in done.stdout


def test_on_main_the_change_is_the_last_commit(repository: Repository) -> None:
    """There nothing is newer than origin/main."""
    repository.write(ONCE)
    repository.git("update-ref", "refs/remotes/origin/main", "HEAD")
    assert repository.run().returncode == 0


@pytest.mark.parametrize(
    ("tests", "arguments", "code"),
    [
        pytest.param("def test_good(): pass\n", [], 0, id="all passed"),
        pytest.param("import nothing_like_this\n", [], 2, id="not collected"),
        pytest.param(ONCE, ["--continue-on-collection-errors", "tests/test_luck.py", "tests/none.py"], 4, id="no file"),
        pytest.param("", [], 5, id="no tests"),
    ],
)
def test_other_ends_are_those_of_pytest(repository: Repository, tests: str, arguments: list[str], code: int) -> None:
    """Exit codes but that of failed tests are passed on."""
    repository.write(tests)
    done = repository.run(*arguments)
    assert done.returncode == code, done.stdout
    assert "FLAKY" not in done.stdout
