"""The processes of a cluster: started, killed, frozen, and replaced by others."""

import signal
from collections.abc import Callable, Sequence

from pilot.dev.cluster import DevCluster, clean_environ
from pilot.dev.configuration import write_config


class ClusterProcesses:
    """What a test does to the processes of *dev*, each known by its name there."""

    def __init__(self, dev: DevCluster) -> None:
        self._dev = dev
        self._replaced: set[str] = set()
        self._frozen: set[str] = set()

    def kill(self, *names: str) -> None:
        """Kill processes with SIGKILL; each must have run."""
        for name in names:
            assert self._dev.kill(name), f"{name} did not run"

    def stop(self, *names: str) -> None:
        """End processes as an operator does, with SIGTERM; each must end in time."""
        killed = self._dev.stop(names)
        assert not killed, f"{killed} did not end after SIGTERM"

    def run(self, *names: str) -> None:
        """Start processes that do not run, and wait until each answers."""
        self._dev.start(names)

    def rerun(self, *names: str) -> None:
        """Kill processes with -9 and start them, without waiting for more than their answers."""
        self.kill(*names)
        self.run(*names)

    def run_by(self, command: Callable[[str], Sequence[str]]) -> None:
        """Start everything, each server by what *command* gives for its name, without waiting for the servers."""
        self._dev.start(())  # the identity provider alone
        for name in reversed(self._dev.state.plan.servers):
            self.start_instead(name, command(name))

    def start_instead(self, name: str, command: Sequence[str]) -> None:
        """Start *command* as the server *name*, without waiting; identity and ports come by the configuration file."""
        dev = self._dev
        write_config(dev.directory, dev.state, name)
        dev.state.processes[name] = dev.processes.start(
            command, log=dev.directory.log(name), environ=clean_environ(), directory=dev.directory.root
        )
        dev.directory.save(dev.state)

    def replace(self, name: str, command: Sequence[str]) -> None:
        """Do the same until `make_true`, in the place of a process that may run."""
        if self._dev.is_alive(name):
            self.kill(name)
        self.start_instead(name, command)
        self._replaced.add(name)

    def freeze(self, *names: str) -> None:
        """Stop processes with SIGSTOP: their ports stay open and nobody answers."""
        self._send(names, signal.SIGSTOP)
        self._frozen.update(names)

    def thaw(self, *names: str) -> None:
        """Let frozen processes go on."""
        self._send(names, signal.SIGCONT)

    def make_true(self) -> None:
        """Have all processes run, none frozen and none replaced, and wait until each answers."""
        for name in self._replaced:
            self._dev.kill(name)
        self._replaced.clear()
        self.thaw(*(name for name in self._dev.names if self._dev.is_alive(name)))
        self._dev.start(self._dev.names)

    def close(self) -> None:
        """End them all."""
        self.thaw(*(name for name in self._frozen if self._dev.is_alive(name)))
        self._dev.stop()

    def _send(self, names: Sequence[str], signum: signal.Signals) -> None:
        for name in names:
            assert self._dev.processes.send_signal(self._dev.state.processes[name], signum), f"{name} does not run"
