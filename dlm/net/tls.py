"""Mutual TLS under a connection of the mesh: a socket's face, so that links need not know of it.

Both sides show a certificate that the cluster's own authority signed, in the node's name (a DNS
name of the certificate is the node's name in the view, whatever its address). TLS 1.3 only: there
is nothing older to speak to. The handshake of the mesh, with its proof of the cluster's secret,
follows inside.

Invariants: no byte of a peer is read before its certificate was verified; a node's number is
believed only if the certificate is that node's.
"""

import ssl
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from socket import socket
from typing import Final, Protocol

import trio

from dlm.net.errors import Rejected
from dlm.net.framing import Buffer

_GATHER_BYTES = 64 << 10  # joined for one call: a TLS record takes 16 KiB


class Channel(Protocol):
    """What links and greetings need of a connection: a non-blocking socket, or TLS on one."""

    def fileno(self) -> int:
        """Return the descriptor to wait for."""

    def recv_into(self, buffer: memoryview, /) -> int:
        """Receive some bytes; 0: the end. Raises BlockingIOError, OSError."""

    def send(self, data: Buffer, /) -> int:
        """Send some of it. Raises BlockingIOError, OSError."""

    def sendmsg(self, buffers: Sequence[Buffer], /) -> int:
        """Send some of it. Raises BlockingIOError, OSError."""

    def close(self) -> None:
        """Close it."""


class TlsSocket:
    """A channel inside TLS. Made by `Tls`."""

    def __init__(self, secured: ssl.SSLSocket) -> None:
        self._secured: Final = secured

    def fileno(self) -> int:
        """Return the descriptor to wait for."""
        return self._secured.fileno()

    def recv_into(self, buffer: memoryview) -> int:
        """Receive decrypted bytes; 0: the end."""
        try:
            return self._secured.recv_into(buffer)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError) as nothing:
            raise BlockingIOError from nothing
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return 0

    def send(self, data: Buffer) -> int:
        """Send some of it."""
        try:
            return self._secured.send(data)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError) as full:
            raise BlockingIOError from full

    def sendmsg(self, buffers: Sequence[Buffer]) -> int:
        """Send some of it: small buffers together, a bulky one alone."""
        if len(buffers) == 1 or len(buffers[0]) >= _GATHER_BYTES:
            return self.send(buffers[0])
        taken, size = [], 0
        for buffer in buffers:
            if size + len(buffer) > _GATHER_BYTES:
                break
            taken.append(buffer)
            size += len(buffer)
        return self.send(b"".join(taken))

    def pending(self) -> int:
        """Return how many decrypted bytes wait: the descriptor will not tell."""
        return self._secured.pending()

    def names(self) -> set[str]:
        """Return the names in the peer's certificate."""
        certificate = self._secured.getpeercert() or {}
        found = certificate.get("subjectAltName", ())
        return {str(entry[1]) for entry in found if entry[0] == "DNS"}

    def begins_s(self) -> float:
        """Return since when the peer's certificate is valid, seconds since 1970."""
        certificate = self._secured.getpeercert() or {}
        return ssl.cert_time_to_seconds(str(certificate["notBefore"]))

    def close(self) -> None:
        """Close at once, without a goodbye: whoever is left notices."""
        self._secured.close()


class Tls:
    """This node's certificate and whom it trusts."""

    def __init__(
        self,
        ca: Path,
        certificate: Path,
        key: Path,
        name_of: Callable[[int], str | None],
        crl: Path | None = None,
        refusal: Callable[[set[str], float], str | None] = lambda _names, _begins_s: None,
    ) -> None:
        """Read the PEM files. `name_of(node)` is the name in the view, None if it is not listed.

        `refusal(names, begins_s)` says why a certificate does not count though it is genuine; it
        is asked at every handshake with the certificate's names and the begin of its validity.

        Raises:
            OSError, ssl.SSLError: a file is missing, or is not what it should be.
        """
        self._refusal = refusal
        self._name_of = name_of
        self._contexts = [
            _context(kind, ca, certificate, key, crl)
            for kind in (ssl.PROTOCOL_TLS_CLIENT, ssl.PROTOCOL_TLS_SERVER)
        ]

    async def connect(self, sock: socket) -> TlsSocket:
        """Do the dialer's side. Raises ssl.SSLError, OSError: the socket is closed then."""
        return await _handshake(self._contexts[0], sock, server_side=False)

    async def accept(self, sock: socket) -> TlsSocket:
        """Do the listener's side. Raises ssl.SSLError, OSError: the socket is closed then."""
        return await _handshake(self._contexts[1], sock, server_side=True)

    def check(self, channel: Channel, node: int) -> None:
        """Raise Rejected unless the peer's certificate is that node's, and counts."""
        assert isinstance(channel, TlsSocket)
        name, names = self._name_of(node), channel.names()
        if name not in names:
            shown = ", ".join(sorted(names)) or "nobody"
            raise Rejected(f"node {node} is {name!r}, but the certificate is of {shown}")
        if why := self._refusal(names, channel.begins_s()):
            raise Rejected(why)


def _context(
    kind: ssl._SSLMethod, ca: Path, certificate: Path, key: Path, crl: Path | None
) -> ssl.SSLContext:
    context = ssl.SSLContext(kind)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # names of nodes, not of hosts: `Tls.check`
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(ca)
    context.load_cert_chain(certificate, key)
    if crl is not None:
        context.load_verify_locations(crl)
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    return context


async def _handshake(context: ssl.SSLContext, sock: socket, *, server_side: bool) -> TlsSocket:
    secured = context.wrap_socket(sock, server_side=server_side, do_handshake_on_connect=False)
    wait: Callable[[int], Awaitable[None]]
    try:
        while True:
            try:
                secured.do_handshake()
            except ssl.SSLWantReadError:
                wait = trio.lowlevel.wait_readable
            except ssl.SSLWantWriteError:
                wait = trio.lowlevel.wait_writable
            else:
                return TlsSocket(secured)
            await wait(secured.fileno())
    except BaseException:
        secured.close()
        raise
