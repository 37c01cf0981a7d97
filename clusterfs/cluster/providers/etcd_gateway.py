"""etcd's v3 JSON gateway over HTTP(S): ranges, transactions, watches, with several endpoints.

Only what the etcd provider needs. A request goes to one endpoint; if that one is away, too slow, or
has lost its quorum, to the next, each once, and later requests begin there. Reads are linearizable.
Keys and values are bytes here and base64 on the wire; 64-bit numbers are decimal strings there.

When every endpoint is too slow, as on disks that take long to sync, it is no use to ask them all
again and again: the next attempts wait twice as long, up to a limit, until answers are quick again.

Source: etcd's api/etcdserverpb/rpc.proto and its gateway, as of 3.4 (paths /v3/...).

Invariants:
  * a call raises ProviderAway after at most `_SLOWEST * attempt_s` for each endpoint; whether its
    effect took place is then unknown;
  * a token that etcd no longer accepts is replaced once for each call.
"""

import base64
import json
import ssl
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import httpx
import trio

from clusterfs.errors import ProviderAway, SetupError

_SLOWEST = 3  # times the attempt of quick endpoints
_UNAUTHENTICATED = 16  # gRPC's status code
_PERMISSION_DENIED = 7
_INVALID_ARGUMENT = 3
_NOT_FOUND = 5


class Login(NamedTuple):
    """How to reach an etcd cluster."""

    endpoints: tuple[str, ...]  # https://host:port, or http://
    user: str = ""
    password: str = ""
    ca: Path | None = None  # whom to trust; None: the machine's store
    certificate: Path | None = None  # our own, where etcd wants one
    key: Path | None = None


class Pair(NamedTuple):
    """One key as it is stored."""

    key: bytes
    value: bytes
    version: int  # writes since it was created, from 1
    revision: int  # of the store at the last write


class Found(NamedTuple):
    """The answer of a range at one revision of the store."""

    revision: int
    pairs: tuple[Pair, ...]


class RefusedByEtcd(ProviderAway):
    """The endpoint does not let us in: user, password, or permission."""


class TooSlow(ProviderAway):
    """The endpoint did not answer in time."""


class Compacted(Exception):
    """The history that a watch asked for is gone: read anew."""


class _Pool:
    """A pool of connections, and how many calls use it."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client = client
        self.users = 0


class Gateway:
    """One process's access to an etcd cluster."""

    def __init__(self, login: Login, attempt_s: float) -> None:
        self._login = login
        self._quick_s = attempt_s
        self._attempt_s = attempt_s
        self._preferred = 0  # index of the endpoint to ask first: none that failed last
        self._watching: tuple[int, trio.CancelScope] | None = None  # the endpoint that is watched
        self._token = ""
        self._verify = _trust(login)
        self._pool = _Pool(self._new_client())

    def _new_client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            verify=self._verify,
            timeout=httpx.Timeout(self._attempt_s),
            limits=httpx.Limits(max_connections=8, max_keepalive_connections=8),
            trust_env=False,  # a proxy of the environment's is not the way to the cluster's store
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._pool.client.aclose()

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[httpx.AsyncClient]:
        """Return a context in which calls can be made; after a timeout, others get new connections.

        A call that is cancelled while httpcore's pool (1.0.9) gives it a connection leaves that one
        in the pool, to be used by nobody; with a few of them no call gets any, for ever.
        """
        pool = self._pool
        pool.users += 1
        try:
            yield pool.client
        except (httpx.TimeoutException, trio.TooSlowError, trio.Cancelled):
            if self._pool is pool:
                self._pool = _Pool(self._new_client())
            raise
        finally:
            pool.users -= 1
            if pool is not self._pool and not pool.users:
                with trio.move_on_after(self._attempt_s, shield=True):
                    await pool.client.aclose()

    async def range(self, key: bytes, *, prefix: bool = False) -> Found:
        """Return the key, or all keys that begin with it. Raises ProviderAway."""
        answer = await self._call("/v3/kv/range", range_request(key, prefix=prefix))
        return range_answer(answer)

    async def transact(
        self, compares: Sequence[Mapping[str, Any]], operations: Sequence[Mapping[str, Any]]
    ) -> list[Mapping[str, Any]] | None:
        """Do all operations if all comparisons hold; None, and nothing done, if one does not.

        Raises ProviderAway: no answer; it may have been done.
        """
        request = {"compare": list(compares), "success": list(operations)}
        answer = await self._call("/v3/kv/txn", request)
        return answer.get("responses", []) if answer.get("succeeded") else None

    async def watch(
        self, prefix: bytes, after: int, silence_s: float, told: Callable[[int], None]
    ) -> NoReturn:
        """Watch a prefix: `told` is called with each revision after `after` that changed it.

        Also once when the watch stands, with the revision of then.

        Raises:
            ProviderAway: the stream cannot be opened, ended, or said nothing for `silence_s`.
            Compacted: the changes after `after` are not known any more.
        """
        request = {
            "key": _text(prefix),
            "range_end": _text(prefix_end(prefix)),
            "start_revision": str(after + 1),
        }
        await self._log_in()
        index = self._preferred
        url = self._login.endpoints[index] + "/v3/watch"
        try:
            with trio.CancelScope() as scope:
                self._watching = index, scope
                async with (
                    self._connected() as client,
                    client.stream(
                        "POST",
                        url,
                        content=json.dumps({"create_request": request}),
                        headers=self._headers(),
                        timeout=httpx.Timeout(self._attempt_s, read=silence_s),
                    ) as response,
                ):
                    await _tell_revisions(response, told)
        except (httpx.HTTPError, ssl.SSLError, ValueError) as failure:
            self._avoid(index)
            raise ProviderAway(f"etcd's watch at {url}: {_describe(failure)}") from failure
        finally:
            self._watching = None
        raise ProviderAway(f"etcd's watch at {url}: that endpoint does not answer calls")

    def _avoid(self, index: int) -> None:
        """Ask another endpoint first: this one has failed. A watch at it may be as dead."""
        if self._preferred == index:
            self._preferred = (index + 1) % len(self._login.endpoints)
        if self._watching is not None and self._watching[0] == index:
            self._watching[1].cancel()

    async def _call(self, path: str, request: Mapping[str, Any]) -> Mapping[str, Any]:
        body = json.dumps(request)
        reasons = []
        slow = False
        first = self._preferred  # other calls move it meanwhile
        for turn in range(len(self._login.endpoints)):
            index = (first + turn) % len(self._login.endpoints)
            begun_s = trio.current_time()
            try:
                answer = await self._ask(self._login.endpoints[index], path, body)
            except RefusedByEtcd:
                raise
            except ProviderAway as failure:
                slow |= isinstance(failure, TooSlow)
                reasons.append(str(failure))
                self._avoid(index)
            else:
                self._wait_for(2 * (trio.current_time() - begun_s))
                return answer
        if slow:
            self._wait_for(2 * self._attempt_s)
        raise ProviderAway("; ".join(reasons))

    def _wait_for(self, attempt_s: float) -> None:
        """Let the next attempts last so long, within what is sensible."""
        self._attempt_s = max(self._quick_s, min(attempt_s, _SLOWEST * self._quick_s))

    async def _ask(self, endpoint: str, path: str, body: str) -> Mapping[str, Any]:
        """Ask one endpoint; logs in anew if the token is not accepted."""
        for renewed in (False, True):
            if not self._token and self._login.user:
                await self._log_in_at(endpoint)
            answer, code = await self._post(endpoint, path, body)
            if not code:
                return answer
            message = str(answer.get("message") or answer.get("error") or code)
            if _is_stale_token(code, message) and self._login.user and not renewed:
                self._token = ""
                continue
            if code == _PERMISSION_DENIED or _is_stale_token(code, message):
                raise RefusedByEtcd(f"etcd at {endpoint} refuses: {message}")
            raise ProviderAway(f"etcd at {endpoint}: {message}")
        raise AssertionError("the second turn returns or raises")

    async def _post(self, endpoint: str, path: str, body: str) -> tuple[Mapping[str, Any], int]:
        """Return the answer and gRPC's status, 0 for success."""
        try:
            async with self._connected() as client:
                with trio.fail_after(self._attempt_s):
                    response = await client.post(
                        endpoint + path,
                        content=body,
                        headers=self._headers(),
                        timeout=httpx.Timeout(self._attempt_s),
                    )
            answer = response.json()
        except (httpx.TimeoutException, trio.TooSlowError) as failure:
            raise TooSlow(f"etcd at {endpoint}: {_describe(failure)}") from failure
        except (httpx.HTTPError, ssl.SSLError, ValueError) as failure:
            raise ProviderAway(f"etcd at {endpoint}: {_describe(failure)}") from failure
        if not isinstance(answer, dict):
            raise ProviderAway(f"etcd at {endpoint}: the answer is no object")
        return answer, 0 if response.status_code == httpx.codes.OK else int(answer.get("code", -1))

    async def _log_in(self) -> None:
        if self._login.user and not self._token:
            await self._call("/v3/kv/range", range_request(b"\0", prefix=False))

    async def _log_in_at(self, endpoint: str) -> None:
        request = {"name": self._login.user, "password": self._login.password}
        answer, code = await self._post(endpoint, "/v3/auth/authenticate", json.dumps(request))
        if code in {_INVALID_ARGUMENT, _PERMISSION_DENIED, _UNAUTHENTICATED, _NOT_FOUND}:
            message = answer.get("message") or answer.get("error")
            raise RefusedByEtcd(f"etcd at {endpoint} refuses {self._login.user!r}: {message}")
        if code or "token" not in answer:
            raise ProviderAway(f"etcd at {endpoint}: no token, status {code}")
        self._token = str(answer["token"])

    def _headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json"}
        if self._token:
            headers["Authorization"] = self._token
        return headers


def range_request(key: bytes, *, prefix: bool) -> dict[str, str]:
    """Return a RangeRequest."""
    request = {"key": _text(key)}
    if prefix:
        request["range_end"] = _text(prefix_end(key))
    return request


def range_answer(answer: Mapping[str, Any]) -> Found:
    """Return a RangeResponse, decoded."""
    pairs = tuple(
        Pair(
            _bytes(pair["key"]),
            _bytes(pair.get("value", "")),
            int(pair["version"]),
            int(pair["mod_revision"]),
        )
        for pair in answer.get("kvs", [])
    )
    return Found(int(answer.get("header", {}).get("revision", 0)), pairs)


def same_revision(key: bytes, revision: int) -> dict[str, str]:
    """Compare: the key was last written at that revision; 0: it does not exist."""
    return {"key": _text(key), "target": "MOD", "result": "EQUAL", "mod_revision": str(revision)}


def same_version(key: bytes, version: int) -> dict[str, str]:
    """Compare: the key was written that often since it was created; 0: it does not exist."""
    return {"key": _text(key), "target": "VERSION", "result": "EQUAL", "version": str(version)}


def exists(key: bytes) -> dict[str, str]:
    """Compare: the key exists."""
    return {"key": _text(key), "target": "VERSION", "result": "GREATER", "version": "0"}


def put(key: bytes, value: bytes) -> dict[str, Any]:
    """Operation: write a key."""
    return {"request_put": {"key": _text(key), "value": _text(value)}}


def delete(key: bytes) -> dict[str, Any]:
    """Operation: delete a key."""
    return {"request_delete_range": {"key": _text(key)}}


def get(key: bytes) -> dict[str, Any]:
    """Operation: read a key, as of this transaction."""
    return {"request_range": range_request(key, prefix=False)}


def prefix_end(prefix: bytes) -> bytes:
    """Return the first key after all that begin with `prefix`, which does not end in 0xff."""
    assert prefix
    assert prefix[-1] != 0xFF  # noqa: PLR2004
    return prefix[:-1] + bytes([prefix[-1] + 1])


async def _tell_revisions(response: httpx.Response, told: Callable[[int], None]) -> NoReturn:
    """Read a watch stream, one JSON object a line, until it ends or fails. Raises ValueError."""
    if response.status_code != httpx.codes.OK:
        raise ValueError(f"status {response.status_code}")
    failure: Exception = ValueError("the stream has ended")
    # The stream's generators end only by an error from within: so by a cancellation.
    with trio.CancelScope() as ending:
        async for line in response.aiter_lines():
            try:
                told(_revision(line))
            except (ValueError, Compacted) as error:
                failure = error
                ending.cancel()
    raise failure


def _revision(line: str) -> int:
    message = json.loads(line)
    result = message.get("result") if isinstance(message, dict) else None
    if not isinstance(result, dict):
        raise ValueError(f"the stream says {line[:200]!r}")  # noqa: TRY004  (nor is it JSON of ours)
    if int(result.get("compact_revision", 0)):
        raise Compacted
    if result.get("canceled"):
        raise ValueError(f"the watch was cancelled: {result.get('cancel_reason', '')!r}")
    return int(result.get("header", {}).get("revision", 0))


def _trust(login: Login) -> ssl.SSLContext | bool:
    if not any(endpoint.startswith("https:") for endpoint in login.endpoints):
        return False
    try:
        context = ssl.create_default_context(cafile=login.ca)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if login.certificate:
            context.load_cert_chain(login.certificate, login.key)
    except (OSError, ssl.SSLError) as failure:
        raise SetupError(f"etcd's TLS files: {_describe(failure)}") from failure
    return context


def _is_stale_token(code: int, message: str) -> bool:
    return code == _UNAUTHENTICATED or (
        code == _INVALID_ARGUMENT and ("auth token" in message or "user name is empty" in message)
    )


def _describe(failure: BaseException) -> str:
    """Return the first text along the chain of causes, which httpx often leaves without."""
    cause: BaseException | None = failure
    while cause is not None and not str(cause):
        cause = cause.__cause__ or cause.__context__
    if cause is None:
        return f"no usable answer ({type(failure).__name__})"
    return str(cause)


def _text(value: bytes) -> str:
    return base64.b64encode(value).decode("ascii")


def _bytes(value: str) -> bytes:
    return base64.b64decode(value)
