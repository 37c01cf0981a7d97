"""Founding a cluster, inviting nodes and joining it: what writes a node's files.

Invariants:
  * what can be refused is refused before anything is written or a token is used up;
  * a key is never readable by others, not even for a moment.
"""

import contextlib
import datetime as dt
import json
import os
import secrets
import shutil
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import trio

from clusterfs import certificates, config
from clusterfs.certificates import Papers
from clusterfs.cli.mount import check_address
from clusterfs.cluster.enrolment import (
    ID_BYTES,
    NOTES,
    SECRET_BYTES,
    Invitation,
    Token,
    decode_token,
    encode_token,
    expired,
    seal,
    unseal,
)
from clusterfs.cluster.node import REMOVED, insist
from clusterfs.cluster.providers import Identity, Provider
from clusterfs.cluster.providers.opening import open_provider
from clusterfs.cluster.revocation import read as read_revoked
from clusterfs.config import Config
from clusterfs.errors import SetupError

T = TypeVar("T")

PATIENCE_S = 60.0
CONFIGS = Path("/etc/clusterfs")
_UNSPECIFIED = ("0.0.0.0", "[::]")  # noqa: S104  (compared with)


class Place(NamedTuple):
    """Where a node's things go, and how it is reached."""

    folder: Path  # of the config file; certificates go to tls/ in it
    brick: Path
    listen: str
    advertise: str | None = None
    storage: bool = True
    tls: bool | None = None  # None: unless `listen` is a loopback address

    def config(self, name: str) -> Path:
        """Return where the config file goes."""
        return self.folder / f"{name}.toml"

    @property
    def encrypted(self) -> bool:
        """Whether the node needs a certificate."""
        if self.tls is None:
            return not config.is_loopback(self.listen.rpartition(":")[0])
        return self.tls


class Provided(NamedTuple):
    """Who orders the views, and how to log in there."""

    provider: str
    volume: str = "default"
    etcd: Mapping[str, str] = {}  # further keys of the section etcd

    def values(self) -> dict[str, Any]:
        """Return them as they stand in a config file."""
        values: dict[str, Any] = {"provider": self.provider}
        if self.provider.startswith("etcd:"):
            values["etcd"] = {"volume": self.volume, **self.etcd}
        return values


def found(
    name: str, place: Place, provided: Provided, volume: Mapping[str, Any], now: dt.datetime
) -> Path:
    """Found a cluster with its first node; returns the config file. Raises SetupError.

    volume: the config keys that count when a volume is made.
    """
    values = _values(name, place, provided) | dict(volume)
    checked = _checked(place, name, values)
    _check_place(place, name)
    if checked.provider_path is not None:
        _make_folder(checked.provider_path.parent)
    _with_provider(checked, lambda provider: _refuse_founded(provider, checked))
    with contextlib.ExitStack() as taken_back:
        if place.encrypted:
            _certify(place, name, now, taken_back)
        path = _write(place, name, values)
        taken_back.callback(path.unlink)
        # Last, since nothing can take it back.
        _with_provider(checked, lambda provider: _found(provider, checked))
        taken_back.pop_all()
    return path


def _certify(place: Place, name: str, now: dt.datetime, taken_back: contextlib.ExitStack) -> None:
    """Make an authority, and the first node's certificate; both go when the stack is left."""
    authority, papers = place.folder / "authority", place.folder / "tls"
    for folder in (authority, papers):
        if not folder.exists():
            taken_back.callback(shutil.rmtree, folder, ignore_errors=True)
    certificates.make_authority(authority, now)
    certificates.install(papers, name, certificates.made(authority, name, now))


def invite(source: Path, name: str, authority: Path | None, valid_s: int, now: dt.datetime) -> str:
    """Return a token for a new node, as one word. Raises SetupError.

    source: the config file of a node; authority: where ca.key is, by default beside that file.
    """
    ours = config.load(source)
    config.check_name(name)
    if name == ours.name:
        raise SetupError(f"{source} is {name}'s own config file: choose another name")
    papers = Papers(b"", b"", b"")
    if ours.tls.ca is not None:
        folder = authority or source.parent / "authority"
        revoked = _with_provider(ours, read_revoked)
        papers = certificates.made(folder, name, now, after_s=revoked.get(name, 0))
        if papers.ca != Path(ours.tls.ca).read_bytes():
            raise SetupError(f"{folder} is not the authority of this cluster, {ours.tls.ca} is")
    invitation = Invitation(
        int(now.timestamp()) + valid_s,
        ours.replicas,
        ours.groups,
        ours.lease_s,
        *(part.decode() for part in papers),
    )

    async def leave(provider: Provider) -> Token:
        identity = await provider.identity(ours.lease_s, found=False)
        await _check_unused(provider, name)
        token = Token(
            name,
            ours.provider,
            ours.etcd.volume,
            identity.cluster,
            certificates.fingerprint(papers.ca) if papers.ca else "",
            secrets.token_bytes(ID_BYTES),
            secrets.token_bytes(SECRET_BYTES),
        )
        await _forget_expired(provider, now)
        await provider.set_note(token.note, seal(token, invitation), None)
        return token

    return encode_token(_with_provider(ours, leave))


def join(text: str, place: Place, etcd: Mapping[str, str], now: dt.datetime) -> Path:
    """Use up a token, and write the files of the new node; returns its config file.

    Raises SetupError; then the token is good still, unless it says something else.
    """
    token = decode_token(text)
    provided = Provided(token.provider, token.volume, etcd)
    if token.fingerprint and place.tls is False:
        raise SetupError("the nodes of this cluster talk inside TLS: leave --no-tls out")
    if not token.fingerprint and place.encrypted:
        raise SetupError(
            f"{place.listen} can be reached from other machines, but this cluster has no "
            "certificates: found it on such an address, or say --no-tls"
        )
    values = _values(token.name, place, provided, encrypted=bool(token.fingerprint))
    checked = _checked(place, token.name, values)
    _check_place(place, token.name)
    invitation = _with_provider(checked, lambda provider: _redeemed(provider, token, now))
    if token.fingerprint:
        papers = Papers(*(getattr(invitation, part).encode() for part in Papers._fields))
        if certificates.fingerprint(papers.ca) != token.fingerprint:
            raise SetupError("the authority's certificate is not the one that the token names")
        certificates.install(place.folder / "tls", token.name, papers)
    kept = {key: getattr(invitation, key) for key in ("replicas", "groups", "lease_s")}
    return _write(place, token.name, values | kept)


def config_of(target: str | None, folder: Path = CONFIGS) -> Path:
    """Return the config file that a user means: the one named, or the only one. Raises SetupError.

    folder: where to look if none is named.
    """
    if target is not None:
        return Path(target)
    known = sorted(folder.glob("*.toml"))
    if len(known) == 1:
        return known[0]
    names = ", ".join(map(str, known)) or f"none in {folder}"
    raise SetupError(f"which node's config file? There are: {names}")


def with_provider(source: Path, work: Callable[[Provider], Awaitable[T]]) -> T:
    """Do something with the provider that a config file names. Raises SetupError."""
    return _with_provider(config.load(source), work)


# -- with the provider --------------------------------------------------------------------------


def _with_provider(ours: Config, work: Callable[[Provider], Awaitable[T]]) -> T:
    async def run() -> T:
        provider = open_provider(ours)
        try:
            return await insist(lambda: work(provider), PATIENCE_S)
        finally:
            with trio.CancelScope(shield=True):
                await provider.close()

    return trio.run(run)


async def _found(provider: Provider, ours: Config) -> Identity:
    await _refuse_founded(provider, ours)
    return await provider.identity(ours.lease_s)


async def _refuse_founded(provider: Provider, ours: Config) -> None:
    try:
        there = await provider.identity(ours.lease_s, found=False)
    except SetupError:
        return
    raise SetupError(
        f"{ours.provider} has cluster {there.cluster} already: `clusterfs cluster token` on one of "
        "its nodes lets this one join, or choose another etcd volume or file"
    )


async def _check_unused(provider: Provider, name: str) -> None:
    view = (await provider.read()).view
    if view is not None and any(member.name == name for member in view.members):
        raise SetupError(f"the cluster has a node {name} already: choose another name")


async def _forget_expired(provider: Provider, now: dt.datetime) -> None:
    for note, value in (await provider.notes(NOTES)).items():
        if expired(value, now.timestamp()):
            await provider.set_note(note, None, value)


async def _redeemed(provider: Provider, token: Token, now: dt.datetime) -> Invitation:
    identity = await provider.identity(0.0, found=False)
    if identity.cluster != token.cluster:
        raise SetupError(
            f"the token is for cluster {token.cluster}, but {token.provider} has {identity.cluster}"
        )
    note = (await provider.notes(token.note)).get(token.note)
    if note is None:
        raise SetupError(
            f"the token for {token.name} was used already, or has expired: make another with "
            f"`clusterfs cluster token {token.name}`"
        )
    invitation = unseal(token, note, now.timestamp())
    if not await provider.set_note(token.note, None, note):
        raise SetupError(f"the token for {token.name} was used just now by somebody else")
    removed = (await provider.notes(REMOVED + token.name)).get(REMOVED + token.name)
    if removed is not None:
        await provider.set_note(REMOVED + token.name, None, removed)
    return invitation


# -- the files ----------------------------------------------------------------------------------


def _values(
    name: str, place: Place, provided: Provided, *, encrypted: bool | None = None
) -> dict[str, Any]:
    """Return the content of a config file."""
    values: dict[str, Any] = {"name": name, "brick": str(place.brick.absolute())}
    if not place.storage:
        values["storage"] = False
    values["listen"] = place.listen
    if place.advertise:
        values["advertise"] = place.advertise
    values |= provided.values()
    if place.encrypted if encrypted is None else encrypted:
        files = {"ca": "ca.pem", "certificate": f"{name}.pem", "key": f"{name}.key"}
        values["tls"] = {key: f"tls/{file}" for key, file in files.items()}
    elif place.tls is False:
        values["tls"] = {"off": True}
    return values


def _checked(place: Place, name: str, values: Mapping[str, Any]) -> Config:
    """Return the config as a daemon will read it. Raises SetupError."""
    host = place.listen.rpartition(":")[0]
    if host in _UNSPECIFIED and not place.advertise:
        raise SetupError(f"--listen {place.listen}: tell the others an address with --advertise")
    return config.checked(place.config(name), values)


def _check_place(place: Place, name: str) -> None:
    """Refuse what is there already, and an address that cannot be had; make the empty brick."""
    papers = [place.folder / "tls" / f"{name}.{kind}" for kind in ("pem", "key")]
    for path in [place.config(name), *(papers if place.encrypted else [])]:
        if path.exists():
            raise SetupError(f"{path} is there already; nothing was changed")
    check_address(place.listen)
    _make_folder(place.folder)
    _make_folder(place.brick)
    if any(entry.name != "lost+found" for entry in place.brick.iterdir()):
        raise SetupError(f"brick {place.brick} is not empty: give the new node an empty directory")


def _write(place: Place, name: str, values: Mapping[str, Any]) -> Path:
    path = place.config(name)
    staged = path.with_suffix(".new")
    try:
        staged.write_text(_toml(values), encoding="utf-8")
        os.replace(staged, path)  # noqa: PTH105  (on the same line of thought as rename(2))
    except OSError as failure:
        raise SetupError(f"cannot write {path}: {failure.strerror}") from failure
    return path


def _toml(values: Mapping[str, Any]) -> str:
    """Return values and sections as TOML; a string of JSON is one of TOML."""
    lines = [f"{k} = {json.dumps(v)}" for k, v in values.items() if not isinstance(v, dict)]
    for section, keys in values.items():
        if isinstance(keys, dict):
            lines += ["", f"[{section}]", *(f"{k} = {json.dumps(v)}" for k, v in keys.items())]
    return "\n".join(lines) + "\n"


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as failure:
        raise SetupError(f"cannot make {path}: {failure.strerror}") from failure
