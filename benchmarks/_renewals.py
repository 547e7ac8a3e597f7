"""Renewals over real TLS as an agent makes them: each request on a connection of its own, with its certificate."""

from __future__ import annotations

import json
import socket
import ssl
from dataclasses import dataclass
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from enroll import keys
from fleet import est
from fleet.identity import DeviceId
from fleet.layout import AdminHome, IdentityFiles

_PATIENCE_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class Renewer:
    """One device, its certificate, and its service."""

    home: AdminHome
    port: int
    device: DeviceId
    files: IdentityFiles

    def wait_seconds(self) -> float:
        """How long the service wants it to wait."""
        answer: dict[str, Any] = json.loads(self._ask(self.files, "GET", est.RENEWAL_INFO))
        return float(answer["wait_seconds"])

    def renew(self) -> None:
        """A new key, its certificate, the proof that the service takes it, the confirmation: what an agent asks for."""
        key = ec.generate_private_key(ec.SECP256R1())
        answer = self._ask(self.files, "POST", est.SIMPLE_REENROLL, est.encode_body(est.build_csr(key, self.device)))
        self._ask(self.files, "GET", est.CACERTS)
        successor = self._stored(answer, key)
        self._ask(successor, "GET", est.CONFIG)
        self._ask(successor, "POST", est.CONFIRM)

    def _stored(self, answer: bytes, key: ec.EllipticCurvePrivateKey) -> IdentityFiles:
        (leaf,) = est.decode_certificates(answer)
        _, issuer = self.files.certificate.read_bytes().split(b"-----END CERTIFICATE-----\n", 1)
        folder = self.files.certificate.parent / "next"
        folder.mkdir()
        found = IdentityFiles(folder / "cert.pem", folder / "key.pem")
        found.certificate.write_bytes(leaf.public_bytes(Encoding.PEM) + issuer)
        found.key.write_bytes(keys.encode_key(key))
        return found

    def _ask(self, files: IdentityFiles, method: str, path: str, body: bytes = b"") -> bytes:
        """The body of an answer. Raises: RuntimeError unless it is 200."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(self.home.root.certificate)
        context.load_cert_chain(files.certificate, files.key)
        kind = f"Content-Type: {est.PKCS10}\r\n" if path == est.SIMPLE_REENROLL else ""
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{kind}"
        with (
            socket.create_connection(("127.0.0.1", self.port), _PATIENCE_SECONDS) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as tls,
        ):
            tls.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            answer = b""
            while chunk := tls.recv(16_384):
                answer += chunk
        if not answer.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"the service answered {answer[:200]!r} to {self.device}")
        return answer.partition(b"\r\n\r\n")[2]
