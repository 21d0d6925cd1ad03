"""Connections between the workers of a run, and how they meet: JSON in lines, of bounded length."""

import contextlib
import json
import logging
import queue
import select
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from trainer.runtime import Cluster
from trainer.values import TrainerError, UsageError

_log = logging.getLogger("trainer")
MOST_BYTES = 2**20
"""Of a line."""
SAY_EVERY_SECS = 10.0
MOST_TOLD = 5
# What connects and says nothing of a worker is somebody else.
_HELLO_SECS = 5.0
_GREETING = "hub-trainer worker 1"


class Broken(Exception):
    """The other side has gone, or does not speak as a worker does."""


class Link:
    """A connection to another worker. Any thread may send; one receives."""

    def __init__(self, connection: socket.socket, name: str = ""):
        connection.settimeout(None)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.name, self.index = name, -1
        self.heard_at = time.monotonic()
        self.inbox: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._socket, self._sending, self._rest = connection, threading.Lock(), b""

    def send(self, **message: Any) -> None:
        """Sends a message.

        Raises:
          Broken: the other side has gone.
        """
        line = json.dumps(message).encode() + b"\n"
        if len(line) > MOST_BYTES:
            raise TrainerError(f"a message of {len(line):,} bytes between workers is too long")
        try:
            with self._sending:
                self._socket.sendall(line)
        except OSError as error:
            raise Broken(error.strerror or str(error)) from None

    def receive(self, secs: float) -> dict[str, Any] | None:
        """Returns the next message; None where none came in that time.

        Raises:
          Broken: the other side has gone, or sends something else.
        """
        until = time.monotonic() + secs
        while b"\n" not in self._rest:
            if len(self._rest) > MOST_BYTES:
                raise Broken("it sends what no worker sends")
            # Not a timeout of the socket, which would hold for what another thread sends.
            if not readable(self._socket, until - time.monotonic()):
                return None
            try:
                part = self._socket.recv(2**16)
            except OSError as error:
                raise Broken(error.strerror or str(error)) from None
            if not part:
                raise Broken("its process died, or the network did")
            self._rest += part
            self.heard_at = time.monotonic()
        line, self._rest = self._rest.split(b"\n", 1)
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict):
            raise Broken("it sends what no worker sends")
        return message

    def close(self) -> None:
        """Ends the connection; what was sent still arrives."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
        self._socket.close()


def readable(connection: socket.socket, secs: float) -> bool:
    """Returns whether something has come, or comes within that time."""
    # Unlike select, it takes files of any number.
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(max(secs, 0.0) * 1000))


def meet(cluster: Cluster, *, facts: Mapping[str, Any], limit_secs: float) -> list[Link]:
    """Waits until all workers are there, can reach one another, and are about to do the same.

    The chief is at its address in the cluster until then; TensorFlow takes it afterwards.

    Args:
      cluster: all workers.
      facts: {what, for people: value, as JSON takes it} that must be the same for all.
      limit_secs: how long to wait.

    Returns:
      For the chief a link to each other worker, in order; for any other one that to the chief.

    Raises:
      UsageError: a worker does something else; the message names worker and fact.
      TrainerError: one has not come in time, or cannot be reached; the message names it.
    """
    until = time.monotonic() + limit_secs
    with _listening(cluster) as listener:
        if cluster.index:
            return [_come(cluster, facts=facts, until=until, limit_secs=limit_secs)]
        links = _gather(cluster, listener, until=until, limit_secs=limit_secs)
        _compare(cluster, links, facts)
        _check_ways(cluster, links)
    for link in links:
        link.send(go=True)
    return links


@contextlib.contextmanager
def _listening(cluster: Cluster) -> Iterator[socket.socket]:
    """Takes the port of this worker for a while."""
    host, _, port = cluster.addresses[cluster.index].rpartition(":")
    try:
        family = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise UsageError(f"{cluster.named_by}: the address of {_me(cluster)} is not known: {error}") from None
    with listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            # Where a service stands before the machine, its address is none of the machine's own.
            with contextlib.suppress(OSError):
                listener.bind((host.strip("[]"), int(port)))
            if not listener.getsockname()[1]:
                listener.bind(("", int(port)))
            listener.listen(len(cluster.addresses) * 2)
        except OSError as error:
            raise TrainerError(
                f"port {port} of {_me(cluster)} cannot be used: {error.strerror}. Another process has it, or "
                f"{cluster.named_by} gives two workers the same place"
            ) from None
        yield listener


def _me(cluster: Cluster) -> str:
    return f"this worker, {cluster.told(cluster.index)},"


class _Waiting:
    """Says every 10 s whom a worker waits for, until its time is over."""

    def __init__(self, *, until: float, limit_secs: float):
        self._until, self._limit_secs = until, limit_secs
        self._next = time.monotonic() + SAY_EVERY_SECS

    def on(self, names: str) -> None:
        """To be called again and again while these workers are not there.

        Raises:
          TrainerError: the time is over.
        """
        now = time.monotonic()
        if now >= self._until:
            raise TrainerError(
                f"{names} did not come within {self._limit_secs:g} s: start the same command there, or look "
                "whether a firewall is between. --wait_for_workers_secs waits longer"
            )
        if now >= self._next:
            self._next += SAY_EVERY_SECS
            waited = self._limit_secs - (self._until - now)
            _log.info("waiting:     for %s, %.0f of at most %g s", names, waited, self._limit_secs)


def _gather(cluster: Cluster, listener: socket.socket, *, until: float, limit_secs: float) -> list[Link]:
    """Returns links to all other workers; the chief's part of `meet`."""
    found: dict[int, Link] = {}
    waiting = _Waiting(until=until, limit_secs=limit_secs)
    greeted: dict[int, dict[str, Any]] = {}
    while True:
        # Who was there may have been ended since, and is started again.
        found = {at: link for at, link in found.items() if not _has_left(link)}
        missing = [at for at in range(1, len(cluster.addresses)) if at not in found]
        if not missing:
            break
        names = ", ".join(map(cluster.told, missing))
        try:
            waiting.on(names)
        except TrainerError as error:
            tell_all(found.values(), refuse=str(error), status=error.exit_status)
            raise
        if not readable(listener, 0.5):
            tell_all(found.values(), waiting=names)
            continue
        link = Link(listener.accept()[0])
        hello = _hello_of(link)
        if hello is None:
            link.close()
            continue
        again = hello["index"] in found and not _has_left(found[hello["index"]])
        if again or not 0 < hello["index"] < len(cluster.addresses):
            what = "is there already" if again else f"is none of {len(cluster.addresses)}"
            told = f"worker {hello['index']} {what}: see which index each has in {cluster.named_by}"
            with contextlib.suppress(Broken):
                link.send(refuse=told, status=UsageError.exit_status)
            link.close()
        else:
            link.index, link.name = hello["index"], cluster.told(hello["index"])
            found[link.index], greeted[link.index] = link, hello
    for at, link in found.items():
        link.inbox.put(greeted[at])
    return [found[at] for at in sorted(found)]


def _has_left(link: Link) -> bool:
    try:
        link.receive(0.0)
    except Broken:
        return True
    return False


def _hello_of(link: Link) -> dict[str, Any] | None:
    with contextlib.suppress(Broken):
        hello = link.receive(_HELLO_SECS)
        if hello and hello.get("greeting") == _GREETING and type(hello.get("index")) is int:
            return hello if isinstance(hello.get("facts"), dict) else None
    return None


def tell_all(links: Iterable[Link], **message: Any) -> None:
    """Sends a message to all that are there."""
    for link in links:
        with contextlib.suppress(Broken):
            link.send(**message)


def _refuse(links: list[Link], error: TrainerError) -> TrainerError:
    tell_all(links, refuse=str(error), status=error.exit_status)
    return error


def _compare(cluster: Cluster, links: list[Link], facts: Mapping[str, Any]) -> None:
    # Through JSON and back, so that both sides have the same types.
    ours = json.loads(json.dumps(dict(facts)))
    for link in links:
        theirs = link.inbox.get()["facts"]
        other = [name for name in sorted({*ours, *theirs}) if ours.get(name) != theirs.get(name)]
        if other:
            told = "; ".join(
                f"{name} is {_shown(theirs.get(name))} at {link.name}, {_shown(ours.get(name))} at worker 0"
                for name in other[:MOST_TOLD]
            )
            more = f" and {len(other) - MOST_TOLD} more" if len(other) > MOST_TOLD else ""
            raise _refuse(
                links,
                UsageError(
                    f"the workers are not about to do the same: {told}{more}. Start the same command with "
                    "the same code on all"
                ),
            )


def _shown(value: Any) -> str:
    text = json.dumps(value) if not isinstance(value, str) else value or "''"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _check_ways(cluster: Cluster, links: list[Link]) -> None:
    """Makes sure that every worker reaches every other one, at the ports that TensorFlow will have."""
    failed = _unreachable(cluster, [link.index for link in links])
    tell_all(links, reach=True)
    for link in links:
        answer = _awaited(link, "reached", secs=60.0)
        failed += [f"{link.name} does not reach {text}" for text in answer["reached"]]
    if failed:
        raise _refuse(links, TrainerError(f"{'; '.join(failed[:5])}: look whether a firewall is between"))


def _unreachable(cluster: Cluster, others: list[int]) -> list[str]:
    """Returns who does not answer at its port, and why."""
    failed = []
    for at in others:
        host, _, port = cluster.addresses[at].rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=10.0).close()
        except OSError as error:
            failed.append(f"{cluster.told(at)}: {error.strerror or error}")
    return failed


def _awaited(link: Link, name: str, *, secs: float) -> dict[str, Any]:
    until = time.monotonic() + secs
    try:
        while time.monotonic() < until:
            if (message := link.receive(0.5)) and name in message:
                return message
    except Broken as error:
        raise TrainerError(f"{link.name} has left before the run began: {error}") from None
    raise TrainerError(f"{link.name} has said nothing for {secs:g} s")


def _come(cluster: Cluster, *, facts: Mapping[str, Any], until: float, limit_secs: float) -> Link:
    """Returns the link to the chief; the part of any other worker in `meet`."""
    host, _, port = cluster.addresses[0].rpartition(":")
    waiting, names, link = _Waiting(until=until, limit_secs=limit_secs), cluster.told(0), None
    while True:
        waiting.on(names)
        if link is None:
            try:
                link = Link(socket.create_connection((host.strip("[]"), int(port)), timeout=2.0), names)
                link.send(greeting=_GREETING, index=cluster.index, facts=dict(facts))
            except (OSError, Broken):
                link, names = None, cluster.told(0)
                time.sleep(0.3)
                continue
        try:
            message = link.receive(0.5) or {}
        except Broken:
            # It may be started again, and have said why it ended where it did.
            link, names = None, cluster.told(0)
            continue
        if "refuse" in message:
            kind = UsageError if message.get("status") == UsageError.exit_status else TrainerError
            raise kind(str(message["refuse"]))
        if "reach" in message:
            later = range(cluster.index + 1, len(cluster.addresses))
            link.send(reached=_unreachable(cluster, list(later)))
        if "go" in message:
            return link
        names = str(message.get("waiting", names))
