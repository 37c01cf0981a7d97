"""One live TCP connection after its handshake: batches out, frames in.

A frame that comes alone leaves at once, from within the push: one system call, and nobody is woken
for it. As soon as a second one follows closely, with nothing received between, the link gathers:
what is pushed during one pass of the scheduler leaves with one system call of the writer, which
runs when everybody else had their turn, until it finds a single frame again. Replies made while
incoming frames are handled leave right after the last of them, without the writer.

Invariants: after `kill` no frame is handed over any more, although tasks may still be unwinding;
the outbox is only a queue to the socket: its session keeps whatever has to survive this connection.
"""

from collections.abc import Callable
from time import perf_counter
from typing import Final

import trio

from dlm.net.errors import Malformed
from dlm.net.framing import Buffer, Decoder, Frame
from dlm.net.tls import Channel, TlsSocket

_VECTOR = 512  # buffers per sendmsg; the kernel takes 1024
_READS_IN_A_ROW = 4
_JOIN_BYTES = 16 << 10
_ALONE_S = 0.0001  # a frame that comes so long after the one before it is alone
_LONG_AGO = float("-inf")


class Link:
    """A connection that is up; `run` serves it until it is dead."""

    def __init__(
        self, sock: Channel, decoder: Decoder, deliver: Callable[[list[Frame]], None]
    ) -> None:
        self.alive = True
        self.reason = ""  # why it died
        self.heard = True  # something came in, went out; the keepalive clears and looks at these
        self.wrote = True
        self.silent_ticks = 0
        self.idle_ticks = 0
        self.age_ticks = 0
        self.received_bytes = 0
        self.sent_bytes = 0
        self._socket: Final = sock
        self._pending = sock.pending if isinstance(sock, TlsSocket) else None
        self._decoder = decoder
        self._deliver = deliver
        self._outbox: list[Buffer] = []
        self._batch: list[Buffer] = []  # what the socket has not taken yet of the current batch
        self._writer: trio.lowlevel.Task | None = None  # while it waits for work
        self._delivering = False
        self._pushes = 0  # since the writer last looked
        self._gathering = False
        self._pushed_s = _LONG_AGO

    def push(self, buffers: tuple[Buffer, ...] | list[Buffer]) -> None:
        """Send a frame, now or at the end of this pass of the scheduler."""
        self._outbox += buffers
        self._pushes += 1
        if self._writer is None or self._delivering:
            return
        if not self._gathering:
            now_s = perf_counter()
            self._gathering = now_s - self._pushed_s < _ALONE_S
            self._pushed_s = now_s
            if not self._gathering and self.flush_nowait():
                return
        if self._writer is not None:
            self._wake_writer()

    @property
    def idle(self) -> bool:
        """Whether nothing waits for the socket."""
        return not self._outbox and not self._batch

    def kill(self, reason: str) -> None:
        """Close at once; idempotent."""
        if not self.alive:
            return
        self.alive = False
        self.reason = reason
        self._outbox.clear()
        self._batch.clear()
        trio.lowlevel.notify_closing(self._socket)
        self._socket.close()
        if self._writer is not None:
            self._wake_writer()

    async def run(self) -> None:
        """Serve until killed, cancelled or broken; raises nothing for what the peer or net did."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write)
                await self._read()
        finally:
            self.kill("closed")

    def flush_nowait(self) -> bool:
        """Write what the socket takes; tell whether that was everything."""
        try:
            while self._batch or self._outbox:
                if not self._batch:
                    self._batch, self._outbox = _gather(self._outbox), []
                if len(self._batch) == 1:
                    sent = self._socket.send(self._batch[0])
                else:
                    sent = self._socket.sendmsg(self._batch[:_VECTOR])
                self.sent_bytes += sent
                self.wrote = True
                _advance(self._batch, sent)
        except BlockingIOError:
            return False
        except OSError as error:
            self.kill(f"write: {error.strerror}")
        return True

    async def _read(self) -> None:
        try:
            self._hand_over()  # what came with the end of the handshake
            while self.alive:
                if self._pending is None or not self._pending():
                    await trio.lowlevel.wait_readable(self._socket)
                for _ in range(_READS_IN_A_ROW):
                    if not self.alive or not self._receive():
                        break
        except trio.ClosedResourceError:
            assert not self.alive
        except Malformed as error:
            self.kill(f"malformed: {error}")

    def _receive(self) -> bool:
        """Receive once and hand over; tell whether there is probably more."""
        room = self._decoder.room()
        try:
            count = self._socket.recv_into(room)
        except BlockingIOError:
            return False
        except OSError as error:
            self.kill(f"read: {error.strerror}")
            return False
        if count == 0:
            self.kill("closed by the peer")
            return False
        self.heard = True
        self._pushed_s = _LONG_AGO  # what is pushed next answers, or comes after an answer
        self.received_bytes += count
        self._decoder.received(count)
        self._hand_over()
        return count == len(room)

    def _hand_over(self) -> None:
        frames = self._decoder.frames()
        if not frames:
            return
        self._delivering = True
        try:
            self._deliver(frames)
        finally:
            self._delivering = False
        if self._outbox and self.alive and not self.flush_nowait() and self._writer is not None:
            self._wake_writer()

    async def _write(self) -> None:
        while self.alive:
            if self.idle:
                self._pushes = 0
                self._writer = trio.lowlevel.current_task()
                await trio.lowlevel.wait_task_rescheduled(self._abandon_wait)
                self._gathering = self._pushes > 1
            while self.alive and not self.flush_nowait():
                try:
                    await trio.lowlevel.wait_writable(self._socket)
                except trio.ClosedResourceError:
                    return

    def _wake_writer(self) -> None:
        writer, self._writer = self._writer, None
        assert writer is not None
        trio.lowlevel.reschedule(writer)

    def _abandon_wait(self, _: object) -> trio.lowlevel.Abort:
        self._writer = None
        return trio.lowlevel.Abort.SUCCEEDED


def _gather(buffers: list[Buffer]) -> list[Buffer]:
    """Join runs of small buffers; leave the bulky ones where they are."""
    if len(buffers) == 1:
        return buffers
    gathered: list[Buffer] = []
    run: list[Buffer] = []
    for buffer in buffers:
        if len(buffer) < _JOIN_BYTES:
            run.append(buffer)
            continue
        if run:
            gathered.append(b"".join(run))
            run.clear()
        gathered.append(buffer)
    if run:
        gathered.append(b"".join(run))
    return gathered


def _advance(batch: list[Buffer], sent: int) -> None:
    """Remove the first `sent` bytes of a batch."""
    whole = 0
    for buffer in batch:
        if sent < len(buffer):
            break
        sent -= len(buffer)
        whole += 1
    del batch[:whole]
    if sent:
        batch[0] = memoryview(batch[0])[sent:]
