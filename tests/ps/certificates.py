"""Makes certificates for tests: an authority, and what it signs."""

import datetime
import ipaddress

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

_NOW = datetime.datetime.now(datetime.UTC)


class Authority:
    """Signs certificates into a folder of its own."""

    def __init__(self, folder, name="authority"):
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._name = folder, _subject(name)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = self._write("authority.pem", self._signed(self._name, self._key, is_authority=True))

    def sign(self, name, *, hosts=(), days=1):
        """Paths of a certificate and its key. hosts: names and IP addresses that it is for."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._write(f"{name}.pem", self._signed(_subject(name), key, hosts=hosts, days=days))
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return certificate, self._write(f"{name}.key", private)

    def _signed(self, subject, key, *, hosts=(), days=1, is_authority=False):
        made = x509.CertificateBuilder().subject_name(subject).issuer_name(self._name).public_key(key.public_key())
        made = made.serial_number(x509.random_serial_number())
        made = made.not_valid_before(_NOW - datetime.timedelta(days=30))
        made = made.not_valid_after(_NOW + datetime.timedelta(days=days))
        made = made.add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        if hosts:
            made = made.add_extension(x509.SubjectAlternativeName([_host(host) for host in hosts]), critical=False)
        return made.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def _write(self, name, content):
        path = self._folder / name
        path.write_bytes(content)
        path.chmod(0o600)
        return str(path)


def _subject(name):
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])


def _host(host):
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
