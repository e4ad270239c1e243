"""The configuration of a nexus: what is wrong is named, before anything else happens."""

import os
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from common.errors import ConfigError
from nexus.config import NexusConfig, load_config
from nexus.keys.operation.schedule import Terms
from nexus.keys.operation.windows import DAY, parse_window
from nexus.policy.keeping import Keeping
from tests.kit.patience import at_most

RECIPIENT = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p"  # the example of age's README
GOOD = """
name = "n1"
[identity]
trust_domain = "example.test"
[[keepers]]
name = "keeper-1"
address = "127.0.0.1:8443"
[[keepers]]
name = "keeper-2"
address = "127.0.0.1:8444"
"""


def load(folder: Path, text: str) -> NexusConfig:
    file = folder / "nexus.toml"
    file.write_text(text)
    return load_config(file, {})


def test_defaults(tmp_path: Path) -> None:
    """A file with only the options that have no default gives the documented rest."""
    config = load(tmp_path, GOOD)
    assert (config.listen.address, config.listen.http) == ("127.0.0.1:8553", "127.0.0.1:9553")
    assert [keeper.name for keeper in config.keepers] == ["keeper-1", "keeper-2"]
    assert (config.memory.lowest_level, config.memory.highest_level, config.dev) == (2, 3, False)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        pytest.param('name = "n1"\n', "", "^name: got nothing", id="no name"),
        pytest.param('"n1"', '"n/1"', "^name: got 'n/1', want 1 to 64", id="a name that is no file name"),
        pytest.param('"n1"\n', '"n1"\ngenesis = "00ff"\n', "^genesis: got '00ff', want 64 digits", id="half a genesis"),
        pytest.param("[identity]", "[identities]", "^identities: no such option", id="unknown table"),
        pytest.param(
            "[identity]", "[listen]\nport = 1\n[identity]", "^listen.port: no such option", id="unknown option"
        ),
        pytest.param("[identity]", '[listen]\naddress = "x"\n[identity]', "^listen.address: got", id="no port"),
        pytest.param(
            "[identity]", '[listen]\nadmin_address = "x"\n[identity]', "^listen.admin_address: got", id="no admin port"
        ),
        pytest.param(
            "[identity]",
            '[listen]\nadmin_address = "127.0.0.1:8553"\n[identity]',
            "^listen.admin_address: got .*, want a port of its own",
            id="the port for workloads again",
        ),
        pytest.param("[identity]", '[listen]\nhttp = "a:70000"\n[identity]', "^listen.http: got", id="port too large"),
        pytest.param("[identity]", '[listen]\nworkers = "8"\n[identity]', "^listen.workers: got", id="wrong type"),
        pytest.param(
            "[identity]", "[shutdown]\ndrain_s = -1\n[identity]", "^shutdown.drain_s: got", id="negative time"
        ),
        pytest.param(
            "[identity]", '[roles]\npattern = "/x"\n[identity]', "^roles.pattern: ", id="pattern without words"
        ),
        pytest.param("[identity]", "[memory]\nlowest_level = 1\n[identity]", "^memory.lowest_level: got 1", id="plain"),
        pytest.param(
            "[identity]", '[backup]\ndirectory = "/b"\n[identity]', "^backup.recipients: got nothing", id="no recipient"
        ),
        pytest.param(
            "[identity]",
            f'[backup]\nrecipients = ["{RECIPIENT}"]\n[identity]',
            "^backup.directory: got nothing",
            id="no folder of backups",
        ),
        pytest.param(
            "[identity]",
            f'[backup]\ndirectory = "/b"\nrecipients = ["{RECIPIENT}", "age1x"]\n[identity]',
            r"^backup.recipients\[1\]: got 'age1x', want one of age",
            id="no recipient of age",
        ),
        pytest.param(
            "[identity]",
            f'[backup]\ndirectory = "/b"\nrecipients = ["{RECIPIENT}", "{RECIPIENT}"]\n[identity]',
            "^backup.recipients: one stands twice",
            id="recipient twice",
        ),
        pytest.param(
            "[identity]",
            f'[backup]\ndirectory = "/var/lib/shardhold/data/b"\nrecipients = ["{RECIPIENT}"]\n[identity]',
            "^backup.directory: got the folder .*, want one that is not in .*, storage.path's",
            id="backups in data",
        ),
        pytest.param(
            "[identity]",
            "[secrets]\nmax_versions = 1000001\n[identity]",
            "^secrets.max_versions: got 1000001, want an integer of at least 0 and at most 1000000",
            id="too many versions",
        ),
        pytest.param(
            "[identity]",
            '[secrets]\nmax_versions_below = {"team/app" = -1}\n[identity]',
            '^secrets.max_versions_below."team/app": got -1, want an integer of at least 0',
            id="fewer versions than none",
        ),
        pytest.param(
            "[identity]",
            '[secrets]\nmax_versions_below = {"team/" = 1}\n[identity]',
            "^secrets.max_versions_below.\"team/\": got a '/' at an end, want none",
            id="a prefix that ends with a slash",
        ),
        pytest.param(
            "[identity]",
            "[secrets]\nmax_versions_below = 7\n[identity]",
            "^secrets.max_versions_below: got 7, want a table, each an integer",
            id="no table of prefixes",
        ),
        pytest.param('"keeper-2"', '"Keeper 2"', r"^keepers\[1\].name: got", id="keeper that has no DNS name"),
        pytest.param('"keeper-2"', '"keeper-1"', "^keepers: name 'keeper-1' stands twice", id="keeper twice"),
        pytest.param("127.0.0.1:8444", "127.0.0.1:", r"^keepers\[1\].address: got", id="keeper without a port"),
        pytest.param(
            "[identity]",
            '[rotation]\nwindows = ["daily 01:00-05:00 UTC", "Sat 1-5"]\n[identity]',
            r'^rotation.windows\[1\]: got "Sat 1-5", want "Sat 01:00-05:00 UTC" or "daily',
            id="window of another form",
        ),
        pytest.param(
            "[identity]",
            '[rotation]\nwindows = ["Sat 01:00-01:00 UTC"]\n[identity]',
            r"^rotation.windows\[0\]: got .*, want",
            id="empty window",
        ),
        pytest.param(
            "[identity]",
            '[rotation]\nwindows = "Sat 01:00-05:00 UTC"\n[identity]',
            "^rotation.windows: got .*, want a list, each a string",
            id="a window that is no list",
        ),
        pytest.param(
            "[identity]",
            "[rotation]\ninterval_days = 29\n[identity]",
            r"^rotation.interval_days: got 29, want 0, or at least minimum_age_days \(30\)",
            id="interval below the minimum age",
        ),
        pytest.param(
            "[identity]",
            "[rotation]\nbackup_max_age_days = 0\n[identity]",
            r"^rotation.backup_max_age_days: got 0, want an integer of at least 1 .* \(days\)",
            id="a backup that is never young enough",
        ),
        pytest.param(
            "[identity]",
            "[rotation]\nreshare_interval_days = -1\n[identity]",
            "^rotation.reshare_interval_days: got -1, want an integer of at least 0",
            id="negative interval",
        ),
        pytest.param(
            "[identity]",
            "[rotation]\nrewrap_rows_per_second = 0.5\n[identity]",
            "^rotation.rewrap_rows_per_second: got 0.5",
            id="half a row",
        ),
        pytest.param(GOOD[GOOD.rindex("[[") :], "", "^keepers: got 1, want 2 to 255", id="one keeper"),
    ],
)
def test_a_wrong_option_is_named(tmp_path: Path, old: str, new: str, words: str) -> None:
    """First, with what it was and what is wanted."""
    assert old in GOOD
    with pytest.raises(ConfigError, match=words):
        load(tmp_path, GOOD.replace(old, new))


def test_how_many_versions_are_kept(tmp_path: Path) -> None:
    """100, unless the file says otherwise, for all secrets or below a prefix."""
    assert load(tmp_path, GOOD).secrets.keeping == Keeping(100, {})
    options = '[secrets]\nmax_versions = 0\nmax_versions_below = {"team/app" = 20, team = 3}\n'
    assert load(tmp_path, GOOD + options).secrets.keeping == Keeping(0, {"team/app": 20, "team": 3})


def test_rotation_goes_by_its_options(tmp_path: Path) -> None:
    """Days become microseconds, windows are read, and 0 days are no interval."""
    assert load(tmp_path, GOOD).rotation.terms == Terms()
    options = """[rotation]
enabled = false
interval_days = 0
minimum_age_days = 2
windows = ["Sat 01:00-05:00 UTC", "daily 23:00-01:00 UTC"]
reshare_interval_days = 7
backup_max_age_days = 1
"""
    assert load(tmp_path, GOOD + options).rotation.terms == Terms(
        is_enabled=False,
        interval=0,
        minimum_age=2 * DAY,
        windows=(parse_window("Sat 01:00-05:00 UTC"), parse_window("daily 23:00-01:00 UTC")),
        reshare_interval=7 * DAY,
        backup_max_age=DAY,
    )


@pytest.mark.parametrize(
    ("data", "audit", "words"),
    [
        pytest.param("data", "data", "^storage.path: got .*/data, want .* not in .*/data, audit.directory's", id="one"),
        pytest.param(
            "data", "data/audit", "^audit.directory: got .* not in .*/data, storage.path's", id="audit in data"
        ),
        pytest.param(
            "audit/data", "audit", "^storage.path: got .* not in .*/audit, audit.directory's", id="data in audit"
        ),
        pytest.param("etc", "audit", "^storage.path: got .*/etc, .*, --config's", id="data is configuration"),
        pytest.param("data", "etc/audit", "^audit.directory: got .*, --config's", id="audit in configuration"),
        pytest.param(".", "../audit", "^--config: got .*/etc, want .*, storage.path's", id="configuration in data"),
        pytest.param("link", "audit", "^storage.path: got .*/etc, .*, --config's", id="by a link"),
        pytest.param("data/../audit", "audit", "^storage.path: got .*/audit, ", id="by dots"),
    ],
)
def test_folders_that_overlap_are_named(tmp_path: Path, data: str, audit: str, words: str) -> None:
    """Configuration, data and audit stand apart: none is another, or inside it."""
    folder = tmp_path / "etc"
    folder.mkdir()
    (tmp_path / "link").symlink_to(folder)
    folders = f"[storage]\npath = '{tmp_path / data}/nexus.db'\n[audit]\ndirectory = '{tmp_path / audit}'\n[identity]"
    with pytest.raises(ConfigError, match=words):
        load(folder, GOOD.replace("[identity]", folders))


def test_folders_side_by_side(tmp_path: Path) -> None:
    """Folders whose names begin alike do not overlap."""
    folder = tmp_path / "data-etc"
    folder.mkdir()
    folders = f"[storage]\npath = '{tmp_path}/data/db'\n[audit]\ndirectory = '{tmp_path}/data-audit'\n[identity]"
    assert load(folder, GOOD.replace("[identity]", folders)).storage.path.endswith("/data/db")


def test_plain_memory_is_for_development(tmp_path: Path) -> None:
    """dev = true allows level 1."""
    text = GOOD.replace("[identity]", "dev = true\n[memory]\nlowest_level = 1\n[identity]")
    assert load(tmp_path, text).memory.lowest_level == 1


def test_a_wrong_option_ends_the_process_before_it_opens_a_port(tmp_path: Path) -> None:
    """The process complains of the option, not of its two taken ports, and exits with 2."""
    file = tmp_path / "nexus.toml"
    with (
        closing(socket.create_server(("127.0.0.1", 0))) as grpc,
        closing(socket.create_server(("127.0.0.1", 0))) as http,
    ):
        addresses = [f"127.0.0.1:{taken.getsockname()[1]}" for taken in (grpc, http)]
        listen = '[listen]\naddress = "{}"\nhttp = "{}"\nworker = 3\n[identity]'.format(*addresses)
        file.write_text(GOOD.replace("[identity]", listen))
        for arguments in (["--config", str(file)], ["--config", str(file), "--check-config"]):
            ended = subprocess.run(
                [sys.executable, "-m", "nexus", *arguments],
                env={name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ},
                capture_output=True,
                text=True,
                timeout=at_most(30),
                check=False,
            )
            assert (ended.returncode, ended.stdout) == (2, "")
            assert ended.stderr.startswith("nexus: error: listen.worker: no such option")
