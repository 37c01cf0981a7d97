"""How nodes talk to each other: in the clear over loopback, else inside mutual TLS."""

import datetime as dt
import ssl
from collections.abc import Callable
from pathlib import Path

import trio
from cryptography import x509

from clusterfs.config import Config
from clusterfs.errors import SetupError
from dlm.net import Mesh, Timing
from dlm.net.tls import Tls

_UNREACHABLE_S = 10.0


def certificate_days(config: Config, now: dt.datetime) -> float | None:
    """Return for how many days this node's certificate is good; None: there is none to read."""
    if config.tls.certificate is None:
        return None
    try:
        certificate = x509.load_pem_x509_certificate(Path(config.tls.certificate).read_bytes())
    except (OSError, ValueError):
        return None
    return (certificate.not_valid_after_utc - now) / dt.timedelta(days=1)


def mesh_tls(
    config: Config,
    name_of: Callable[[int], str | None],
    refusal: Callable[[set[str], float], str | None] = lambda _names, _begins_s: None,
) -> Tls | None:
    """Return this node's certificate and trust; None: in the clear. Raises SetupError.

    name_of: the name that the view gives a node number, None if it is not in the view.
    refusal: why a genuine certificate (its names, since when it is valid) does not count.
    """
    tls = config.tls
    if tls.ca is None or tls.certificate is None or tls.key is None:
        return None
    key = Path(tls.key)
    try:
        mode = key.stat().st_mode & 0o777
        if mode & 0o077:
            raise SetupError(f"tls.key: {key} has mode {mode:04o}, others may read it: chmod 600")
        crl = Path(tls.crl) if tls.crl else None
        return Tls(Path(tls.ca), Path(tls.certificate), key, name_of, crl, refusal)
    except ssl.SSLError as failure:
        raise SetupError(f"tls: the files do not fit together: {failure}") from failure
    except OSError as failure:
        name = failure.filename or "the files of the section tls"
        raise SetupError(f"tls: cannot read {name}: {failure.strerror}") from failure


def mesh_timing(lease_s: float) -> Timing:
    """Return how long the mesh waits: members that lost each other part after two leases."""
    return Timing(unreachable_s=max(_UNREACHABLE_S, 2 * lease_s))


async def listen(nursery: trio.Nursery, mesh: Mesh, address: str) -> None:
    """Let the mesh serve at the key `listen`. Raises SetupError."""
    host, _, port = address.rpartition(":")
    try:
        await nursery.start(mesh.serve, host.strip("[]"), int(port))
    except OSError as failure:
        raise SetupError(
            f"cannot listen on {address}: {failure.strerror or failure}; "
            "choose another address with the key 'listen'"
        ) from failure
