"""Which certificates count after a node was removed, with the local provider."""

import datetime as dt
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography import x509

from clusterfs import certificates
from clusterfs.cluster.providers.local import LocalProvider
from clusterfs.cluster.revocation import Revoked, read, revoke


@pytest.fixture
async def provider(tmp_path: Path) -> AsyncIterator[LocalProvider]:
    provider = LocalProvider(tmp_path / "cluster.db")
    await provider.identity(5.0)
    yield provider
    await provider.close()


def begin(papers: certificates.Papers) -> float:
    return x509.load_pem_x509_certificate(papers.certificate).not_valid_before_utc.timestamp()


async def test_what_was_made_before_a_removal_counts_no_more_and_what_is_made_later_does(
    provider: LocalProvider, tmp_path: Path
) -> None:
    now = dt.datetime.now(dt.UTC)
    certificates.make_authority(tmp_path, now)
    old = begin(certificates.made(tmp_path, "n2", now))
    revoked = Revoked(provider)
    await revoked.load()
    assert revoked.refusal({"n2"}, old) is None
    await revoke(provider, "n2", now.timestamp())
    assert revoked.refusal({"n2"}, old) is None, "it has not heard of it yet"
    await revoked.load()
    assert "n2 was revoked" in str(revoked.refusal({"n2", "other"}, old))
    assert revoked.refusal({"n1"}, old) is None
    at_s = (await read(provider))["n2"]
    new = begin(certificates.made(tmp_path, "n2", now, after_s=at_s))
    assert revoked.refusal({"n2"}, new) is None
    behind = now - dt.timedelta(days=1)
    new = begin(certificates.made(tmp_path, "n2", behind, after_s=at_s))
    assert revoked.refusal({"n2"}, new) is None, "the authority's clock is late"


async def test_an_earlier_removal_makes_nothing_valid_again(provider: LocalProvider) -> None:
    await revoke(provider, "n2", 1000.0)
    await revoke(provider, "n2", 500.0)
    await revoke(provider, "n3", 2000.5)
    assert await read(provider) == {"n2": 1000, "n3": 2000}
