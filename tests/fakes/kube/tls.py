"""A certificate authority for the fake's HTTPS: a CA, the server's certificate, and clients'."""

from __future__ import annotations

import base64
import datetime
import ipaddress
import ssl
import tempfile
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


class Authority:
    """Signs; everything is made anew for each cluster."""

    def __init__(
        self, names: tuple[str, ...] = ("localhost",), *, days: int = 1, addresses: tuple[str, ...] = ()
    ) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fake-ca")])
        self.days = days
        self.names = names
        self.addresses = ("127.0.0.1", *addresses)
        self._ca = self._certificate(self._name, self._key, ca=True)
        self._serving = self.issue("kube-apiserver", server=True)

    def _certificate(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, *, ca: bool = False, server: bool = False
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        begin = now - datetime.timedelta(days=2)
        builder = (
            x509.CertificateBuilder().subject_name(subject).issuer_name(self._name).public_key(key.public_key())
            .serial_number(x509.random_serial_number()).not_valid_before(begin)
            .not_valid_after(now + datetime.timedelta(days=1 if ca else self.days))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )  # fmt: skip
        if server:
            names: list[x509.GeneralName] = [x509.DNSName(name) for name in self.names]
            names += [x509.IPAddress(ipaddress.ip_address(address)) for address in self.addresses]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self._key, hashes.SHA256())

    def issue(self, name: str, *, server: bool = False) -> tuple[bytes, bytes]:
        """A certificate and its key, in PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        pem = self._certificate(subject, key, server=server).public_bytes(serialization.Encoding.PEM)
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return pem, private

    def ca_pem(self) -> bytes:
        return self._ca.public_bytes(serialization.Encoding.PEM)

    def ca_data(self) -> str:
        return base64.b64encode(self.ca_pem()).decode()

    def server_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with tempfile.TemporaryDirectory() as folder:
            for name, text in zip(("cert", "key"), self._serving, strict=True):
                (Path(folder) / name).write_bytes(text)
            context.load_cert_chain(f"{folder}/cert", f"{folder}/key")
        context.load_verify_locations(cadata=self.ca_pem().decode())
        context.verify_mode = ssl.CERT_OPTIONAL
        return context

    def client_context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cadata=self.ca_pem().decode())
