"""The cluster's certificate authority, made on first start and kept in the data folder."""

import base64
import datetime
import hashlib
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from agents import privatefile, tls
from agents.contract import SUPERVISOR_NAME
from agents.errors import FolderNotWritable
from supervisor.ports import Issued

_YEARS = 10
# Phones have wrong clocks; a certificate that begins tomorrow would lock them out.
_CLOCK_SLACK = datetime.timedelta(days=2)


class Authority:
    """Issues certificates that name a role: the supervisor, or one agent."""

    def __init__(self, folder: Path) -> None:
        """Load the authority, or make it.

        Raises:
            FolderNotWritable: The keys cannot be stored.
        """
        self.certificate_path = folder / "authority.crt"
        self._key_path = folder / "authority.key"
        self.supervisor_certificate = folder / "supervisor.crt"
        self.supervisor_key = folder / "supervisor.key"
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if not self._key_path.exists():
                self._create()
            self._load()
            if not self.supervisor_key.exists():
                issued = self.issue(SUPERVISOR_NAME)
                self.supervisor_certificate.write_text(issued.certificate_pem)
                privatefile.write(self.supervisor_key, issued.key_pem)
        except OSError as exc:
            raise FolderNotWritable(f"cannot keep keys in {folder}: {exc.strerror}") from exc

    @property
    def certificate_pem(self) -> str:
        return self.certificate_path.read_text()

    @property
    def fingerprint(self) -> str:
        """What a join code carries."""
        return tls.fingerprint(self.certificate_pem)

    def server_pin(self) -> str:
        """SHA-256 of the supervisor's public key, as ``curl --pinnedpubkey`` takes it."""
        certificate = x509.load_pem_x509_certificate(self.supervisor_certificate.read_bytes())
        der = certificate.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        return "sha256//" + base64.b64encode(hashlib.sha256(der).digest()).decode()

    def issue(self, name: str) -> Issued:
        """A certificate for ``name``, usable as TLS client and server."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = (
            _builder(name, self._certificate.subject, key.public_key())
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
            .add_extension(
                x509.ExtendedKeyUsage(
                    [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
                ),
                critical=False,
            )
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
            .sign(self._key, hashes.SHA256())
        )
        return Issued(_pem(certificate), _key_pem(key), f"{certificate.serial_number:X}")

    def _create(self) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name(
            [x509.NameAttribute(NameOID.COMMON_NAME, "llama-rpc-supervisor authority")]
        )
        certificate = (
            _builder(None, subject, key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(
                x509.KeyUsage(
                    digital_signature=True,
                    key_cert_sign=True,
                    crl_sign=True,
                    content_commitment=False,
                    key_encipherment=False,
                    data_encipherment=False,
                    key_agreement=False,
                    encipher_only=False,
                    decipher_only=False,
                ),
                critical=True,
            )
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
            )
            .sign(key, hashes.SHA256())
        )
        self.certificate_path.write_text(_pem(certificate))
        # The key goes last: it is what decides whether an authority exists.
        privatefile.write(self._key_path, _key_pem(key))

    def _load(self) -> None:
        key = serialization.load_pem_private_key(self._key_path.read_bytes(), password=None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise FolderNotWritable(f"{self._key_path} holds a key that is not ours")
        self._key = key
        self._certificate = x509.load_pem_x509_certificate(self.certificate_path.read_bytes())


def _builder(
    name: str | None, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]) if name else issuer
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SLACK)
        .not_valid_after(now + datetime.timedelta(days=365 * _YEARS))
    )


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode()
