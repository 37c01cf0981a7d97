"""One node's configuration: a TOML file as a checked struct.

Every key has a default but `name` and `brick`. Whatever is wrong becomes a SetupError of one line
that names the file and the key. Relative paths are taken from the folder of the file, so that a
configuration and its brick can move together.
"""

import difflib
import ipaddress
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import msgspec

from clusterfs.errors import SetupError

T = TypeVar("T", bound=msgspec.Struct)

_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$"
_ADDRESS = r"^(\[[0-9A-Fa-f:.]+\]|[^:\[\]\s]+):[0-9]{1,5}$"
_URL = r"https?://[^\s,/]+"
_PROVIDER = rf"^(local:.+|etcd:{_URL}(,{_URL})*)$"
_SHAPES = {  # what a pattern asks for, in words
    _NAME: "letters, digits, '_', '.' and '-', a letter or digit first, at most 63",
    _ADDRESS: "HOST:PORT, an IPv6 address in brackets",
    _PROVIDER: "local:FILE, or etcd:URL,URL,... with http: or https:",
}

Name = Annotated[str, msgspec.Meta(pattern=_NAME)]
Address = Annotated[str, msgspec.Meta(pattern=_ADDRESS)]
Provider = Annotated[str, msgspec.Meta(pattern=_PROVIDER)]


class Tls(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """This node's certificate, and whom it trusts. Needed unless nodes talk over loopback only."""

    ca: str | None = None  # PEM: the cluster's own authority
    certificate: str | None = None  # PEM: this node's, in its name
    key: str | None = None
    crl: str | None = None  # PEM: certificates that are not to be trusted any more
    off: bool = False  # let nodes talk in the clear, whoever may listen


_LAST_PORT = 65535


class Etcd(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to log in to etcd; with the provider `etcd:` only."""

    volume: Name = "default"  # the keys are below /clusterfs/VOLUME/
    user: str = ""
    password_file: str | None = None
    ca: str | None = None  # PEM; None: whom the machine trusts
    certificate: str | None = None  # PEM, where etcd wants its clients to have one
    key: str | None = None


class Exports(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What some nodes may not do; must be the same in the files of all nodes."""

    read_only: tuple[Name, ...] = ()  # they may read, and nothing else
    root_squash: tuple[Name, ...] = ()  # root of theirs is user 65534, on their mounts


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a daemon has to know before it can ask the cluster."""

    name: Name
    brick: Annotated[str, msgspec.Meta(min_length=1)]
    storage: bool = True  # False: a client only; the brick's folder just has the admin socket
    weight: Annotated[int, msgspec.Meta(ge=1, le=1 << 20)] | None = None  # None: GiB of the brick
    provider: Provider = "local:/var/lib/clusterfs/cluster.db"
    etcd: Etcd = Etcd()
    tls: Tls = Tls()
    exports: Exports = Exports()
    metrics: Address | None = None  # where Prometheus may ask; None: nowhere
    admin_group: str | None = None  # whose members may use the admin socket, beside root
    listen: Address = "127.0.0.1:7400"
    advertise: Address | None = None  # what peers connect to; None: `listen`
    replicas: Annotated[int, msgspec.Meta(ge=1, le=16)] = 3  # for a new volume only
    groups: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 256  # for a new volume only
    lease_s: Annotated[float, msgspec.Meta(ge=1, le=300)] = 5.0
    after_crash: Literal["restart", "unmount"] = "restart"  # of the daemon: what its mount does
    on_lost: Literal["stall", "eio"] = "stall"
    access_times: Literal["relatime", "noatime"] = "relatime"
    access_time_delay_s: Annotated[float, msgspec.Meta(ge=0.1, le=86400)] = 30.0
    segment_mib: Annotated[int, msgspec.Meta(ge=4, le=1024)] = 64
    flush_executors: Annotated[int, msgspec.Meta(ge=1, le=64)] = 2
    chunk_cache_mib: Annotated[int, msgspec.Meta(ge=0, le=1 << 20)] = 64
    dedup_window_gib: Annotated[int, msgspec.Meta(ge=0, le=1 << 16)] = 32
    compression: Literal["off", "lz4", "zstd"] = "lz4"  # of cold data
    cache_mib: Annotated[int, msgspec.Meta(ge=16, le=1 << 20)] = 256
    resync_mib_s: Annotated[int, msgspec.Meta(ge=0, le=1 << 20)] = 0  # 0: as fast as it goes
    grace_s: Annotated[float, msgspec.Meta(ge=0, le=1 << 20)] = 600.0
    trim_after_s: Annotated[float, msgspec.Meta(ge=0, le=1 << 20)] = 60.0
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @property
    def provider_path(self) -> Path | None:
        """Return the SQLite file of a `local:` provider, None for another."""
        kind, _, rest = self.provider.partition(":")
        return Path(rest) if kind == "local" else None

    @property
    def etcd_endpoints(self) -> tuple[str, ...]:
        """Return the URLs of an `etcd:` provider, none for another."""
        kind, _, rest = self.provider.partition(":")
        return tuple(rest.split(",")) if kind == "etcd" else ()

    @property
    def control_socket(self) -> Path:
        """Return where the daemon answers administrators."""
        return Path(self.brick) / "control.sock"

    @property
    def is_read_only(self) -> bool:
        """Whether this node may not change the volume."""
        return self.name in self.exports.read_only

    @property
    def squashes_root(self) -> bool:
        """Whether root is nobody special on this node's mount."""
        return self.name in self.exports.root_squash

    @property
    def access_times_kept_s(self) -> float | None:
        """Return how long access times stay in memory; None: reads change none."""
        return self.access_time_delay_s if self.access_times == "relatime" else None

    @property
    def public_address(self) -> str:
        """Return the host:port that peers connect to."""
        return self.advertise or self.listen


def load(path: Path, overrides: Mapping[str, Any] | None = None) -> Config:
    """Read and check a node's file; `overrides` (mount options) win. Raises SetupError."""
    try:
        with path.open("rb") as file:
            values = tomllib.load(file)
    except OSError as failure:
        raise SetupError(f"cannot read config {path}: {failure.strerror}") from failure
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as failure:
        raise SetupError(f"{path}: not a TOML file: {_one_line(failure)}") from failure
    values.update(overrides or {})
    return checked(path, values)


def check_name(name: str) -> None:
    """Raise SetupError if that cannot be a node's name."""
    try:
        msgspec.convert(name, Name)
    except msgspec.ValidationError as failure:
        raise SetupError(f"node name {name!r}: letters, digits, '_', '.' and '-' only") from failure


def checked(path: Path, values: Mapping[str, Any]) -> Config:
    """Return what `path` means if it has these values. Raises SetupError."""
    try:
        config = msgspec.convert(values, Config)
    except msgspec.ValidationError as failure:
        raise SetupError(f"{path}: {_explain(str(failure))}") from failure
    _check_port(path, "listen", config.listen)
    _check_port(path, "advertise", config.public_address)
    if config.metrics is not None:
        _check_port(path, "metrics", config.metrics)
    _check_tls(path, config)
    return _absolute(config, path.absolute().parent)


def _check_port(path: Path, key: str, address: str) -> None:
    if not 1 <= int(address.rpartition(":")[2]) <= _LAST_PORT:
        raise SetupError(f"{path}: {key}: the port in {address!r} is not between 1 and 65535")


def _absolute(config: Config, folder: Path) -> Config:
    provider, path = config.provider, config.provider_path
    return msgspec.structs.replace(
        config,
        brick=str(folder / config.brick),
        provider=provider if path is None else f"local:{folder / path}",
        etcd=_with_files(config.etcd, folder, "password_file", "ca", "certificate", "key"),
        tls=_with_files(config.tls, folder, "ca", "certificate", "key", "crl"),
    )


def _with_files(part: T, folder: Path, *names: str) -> T:
    """Return the part with its files' paths taken from the config's folder."""
    files = {
        name: str(folder / value) for name in names if (value := getattr(part, name)) is not None
    }
    return msgspec.structs.replace(part, **files)


def _check_tls(path: Path, config: Config) -> None:
    tls = config.tls
    files = (tls.ca, tls.certificate, tls.key)
    given = any(file is not None for file in files)
    if given and None in files:
        raise SetupError(f"{path}: tls: ca, certificate and key must be given together")
    if given and tls.off:
        raise SetupError(f"{path}: tls.off: there is a certificate; leave one of them out")
    host = config.listen.rpartition(":")[0]
    if not given and not tls.off and not is_loopback(host):
        raise SetupError(
            f"{path}: listen: {host} can be reached from other machines, so nodes need "
            "certificates: `clusterfs tls authority` and `clusterfs tls certificate` make them, "
            "the keys tls.ca, tls.certificate and tls.key name them (or set tls.off = true)"
        )


def is_loopback(host: str) -> bool:
    """Tell whether a host is reached from this machine only."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _explain(message: str) -> str:
    """Turn a validation message into `key: what is wrong`."""
    text, _, where = message.partition(" - at `$.")
    key = where.rstrip("`") or "config"
    if unknown := re.search(r"unknown field `([^`]*)`", text):
        return _unknown(unknown[1], where.rstrip("`"))
    if missing := re.search(r"missing required field `([^`]*)`", text):
        return f"{missing[1]}: must be given"
    if text.startswith("Invalid enum value"):
        known = ", ".join(get_args(_kind(Config, key)))
        return f"{key}: {text.rpartition(' ')[2]} is none of: {known}"
    for pattern, shape in _SHAPES.items():
        text = text.replace(f"`str` matching regex {pattern!r}", shape)
    return f"{key}: {text[:1].lower()}{text[1:].replace('`', '')}"


def _unknown(key: str, section: str) -> str:
    """Say that there is no such key, and which one may be meant."""
    part = _kind(Config, section) if section else Config
    known = [field.name for field in msgspec.structs.fields(part)]
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"; is {near[0]} meant?" if near else ""
    return f"{section + '.' if section else ''}{key}: no such key{hint}"


def _kind(part: type[msgspec.Struct], key: str) -> Any:
    """Return the type of a key of a section."""
    return next(field.type for field in msgspec.structs.fields(part) if field.name == key)


def _one_line(failure: Exception) -> str:
    return " ".join(str(failure).split())
