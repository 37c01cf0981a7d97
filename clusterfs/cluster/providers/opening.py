"""Opens the provider that a node's configuration names."""

from pathlib import Path

import trio

from clusterfs.cluster.providers import Provider
from clusterfs.cluster.providers.etcd import EtcdProvider
from clusterfs.cluster.providers.etcd_gateway import Login
from clusterfs.cluster.providers.local import LocalProvider
from clusterfs.cluster.providers.local_file import report_caches_dropped as report_to_file
from clusterfs.config import Config
from clusterfs.errors import ProviderAway, SetupError

_REPORT_S = 5.0


def open_provider(config: Config) -> Provider:
    """Return this node's access to the cluster's views. Raises SetupError."""
    if config.provider_path is not None:
        return LocalProvider(config.provider_path)
    return EtcdProvider(_login(config), config.etcd.volume, config.lease_s)


def report_caches_dropped(config: Config, node: int, incarnation: int) -> None:
    """Say for a daemon that has ended that no process and no kernel cache of its serves any more.

    For the supervisor: synchronous, waits at most 5 s. Only for an incarnation whose daemon process
    is gone, or that has stopped serving: others may take its locks at once.

    Raises:
        ProviderAway: nobody could be told; the others wait for the end of the lease.
    """
    if config.provider_path is not None:
        report_to_file(config.provider_path, node, incarnation)
    else:
        trio.run(_report, config, node, incarnation)


async def _report(config: Config, node: int, incarnation: int) -> None:
    provider = open_provider(config)
    with trio.move_on_after(_REPORT_S) as waiting:
        try:
            await provider.caches_dropped(node, incarnation)
        finally:
            with trio.CancelScope(shield=True):
                await provider.close()
    if waiting.cancelled_caught:
        raise ProviderAway("etcd did not answer in time")


def _login(config: Config) -> Login:
    etcd = config.etcd
    if etcd.user and etcd.password_file is None:
        raise SetupError("etcd.password_file: must be given with etcd.user")
    return Login(
        config.etcd_endpoints,
        etcd.user,
        _password(etcd.password_file) if etcd.password_file else "",
        Path(etcd.ca) if etcd.ca else None,
        Path(etcd.certificate) if etcd.certificate else None,
        Path(etcd.key) if etcd.key else None,
    )


def _password(path: str) -> str:
    try:
        mode = Path(path).stat().st_mode & 0o777
        password = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as failure:
        raise SetupError(f"etcd.password_file: cannot read {path}: {failure}") from failure
    if mode & 0o077:
        raise SetupError(f"etcd.password_file: {path} has mode {mode:04o}: chmod 600")
    return password
