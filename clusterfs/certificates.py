"""The cluster's certificate authority and the certificates of its nodes, as PEM files.

An authority is a folder with `ca.pem` (public) and `ca.key` (whoever has it can admit nodes; keep
it off the nodes). A node gets NAME.pem, NAME.key and a copy of ca.pem. Keys are P-256, files with
keys have mode 0600 from their first byte. Certificates are made by the package `cryptography`.
"""

import datetime as dt
import ipaddress
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from clusterfs.errors import SetupError

AUTHORITY_DAYS = 20 * 365
NODE_DAYS = 5 * 365

_SKEW = dt.timedelta(hours=1)  # clocks of nodes differ


def make_authority(folder: Path, now: dt.datetime, *, days: int = AUTHORITY_DAYS) -> None:
    """Make a new authority. Raises SetupError: there is one, or the folder cannot be written."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "clusterfs authority")])
    usage = _usage(sign=True)
    certificate = (
        _builder(name, name, key.public_key(), now, days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    _write(folder / "ca.key", _encoded(key), 0o600)
    _write(folder / "ca.pem", certificate.public_bytes(serialization.Encoding.PEM), 0o644)


class Papers(NamedTuple):
    """What a node needs to prove who it is, as PEM."""

    ca: bytes
    certificate: bytes
    key: bytes


def issue(
    authority: Path,
    name: str,
    folder: Path,
    now: dt.datetime,
    *,
    days: int = NODE_DAYS,
    addresses: Iterable[str] = (),
) -> None:
    """Make NAME.pem, NAME.key and ca.pem in `folder`. Raises SetupError.

    Nodes go by the name alone. `addresses` (IP addresses) are for other servers, like etcd, whose
    clients compare the certificate with the address that they connected to.
    """
    install(folder, name, made(authority, name, now, days=days, addresses=addresses))


def install(folder: Path, name: str, papers: Papers) -> None:
    """Write a node's papers. Raises SetupError: they are there, or those of another cluster."""
    ca = folder / "ca.pem"
    if ca.exists() and ca.read_bytes() != papers.ca:
        raise SetupError(f"{ca} is that of another authority; nothing was changed")
    _write(folder / f"{name}.key", papers.key, 0o600)
    _write(folder / f"{name}.pem", papers.certificate, 0o644)
    if not ca.exists():
        _write(ca, papers.ca, 0o644)


def fingerprint(ca: bytes) -> str:
    """Return the SHA-256 of a certificate (PEM), hexadecimal. Raises ValueError."""
    return x509.load_pem_x509_certificate(ca).fingerprint(hashes.SHA256()).hex()


def made(
    authority: Path,
    name: str,
    now: dt.datetime,
    *,
    days: int = NODE_DAYS,
    addresses: Iterable[str] = (),
    after_s: float = 0.0,
) -> Papers:
    """Make a key and its certificate for a node, valid from later than `after_s`.

    Raises SetupError.
    """
    names: list[x509.GeneralName] = [x509.DNSName(name)]
    names += [x509.IPAddress(_parsed(address)) for address in addresses]
    ca_key, ca = _load_authority(authority)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    both = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    issuer_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    certificate = (
        _builder(subject, ca.subject, key.public_key(), now, days, after_s)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(sign=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(both), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(issuer_id, critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    return Papers(ca.public_bytes(pem), certificate.public_bytes(pem), _encoded(key))


def _parsed(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    try:
        return ipaddress.ip_address(address)
    except ValueError:
        raise SetupError(f"{address!r} is no IP address") from None


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    now: dt.datetime,
    days: int,
    after_s: float = 0.0,
) -> x509.CertificateBuilder:
    begins = max(now - _SKEW, dt.datetime.fromtimestamp(int(after_s) + 1, dt.UTC))
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(now + dt.timedelta(days=days))
    )


def _usage(*, sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign,
        crl_sign=sign,
        encipher_only=False,
        decipher_only=False,
    )


def _load_authority(folder: Path) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    try:
        key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), None)
        certificate = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
    except OSError as failure:
        raise SetupError(
            f"{failure.filename}: {failure.strerror}; `clusterfs tls authority` makes one"
        ) from failure
    except ValueError as failure:
        raise SetupError(f"{folder}: ca.key and ca.pem are no authority: {failure}") from failure
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise SetupError(f"{folder}/ca.key is not an elliptic curve's key")
    return key, certificate


def _encoded(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _write(path: Path, content: bytes, mode: int) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with open(descriptor, "wb") as file:  # noqa: PTH123  (a descriptor)
            file.write(content)
    except FileExistsError as failure:
        raise SetupError(f"{path} is there already; nothing was changed") from failure
    except OSError as failure:
        raise SetupError(f"cannot write {path}: {failure.strerror}") from failure
