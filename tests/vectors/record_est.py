"""Records what EST clients send into tests/vectors/est: run by hand, `python -m tests.vectors.record_est`.

Needs curl and openssl. Each case has a key of its own, because a key is certified once; the token is that of TOKEN.
"""

from __future__ import annotations

import socket
import ssl
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from fleet import est
from fleet.join import Token, new_token
from tests.fleets import new_home

HERE: Final = Path(__file__).parent / "est"
TOKEN: Final[Token] = new_token(bytes(range(21)))
_PKCS10 = ("-H", f"Content-Type: {est.PKCS10}")
_USER = ("-u", f"estuser:{TOKEN}")

# name: curl's arguments, the path, and how openssl and a filter write the body
CASES: Final[dict[str, tuple[tuple[str, ...], str, str]]] = {
    "curl-wrapped": ((*_PKCS10, *_USER), est.SIMPLE_ENROLL, "openssl base64"),
    "curl-one-line": ((*_PKCS10, *_USER), est.SIMPLE_ENROLL, "openssl base64 -A"),
    "curl-crlf": ((*_PKCS10, *_USER), est.SIMPLE_ENROLL, "openssl base64 | sed 's/$/\\r/'"),
    "curl-pem": ((*_PKCS10, *_USER), est.SIMPLE_ENROLL, "openssl req -inform DER"),
    "curl-pem-with-text": ((*_PKCS10, *_USER), est.SIMPLE_ENROLL, "openssl req -inform DER -text"),
    "curl-http-1.0": (("--http1.0", *_PKCS10, *_USER), est.SIMPLE_ENROLL, "openssl base64"),
    "curl-without-host": (("-H", "Host:", "--http1.0", *_PKCS10, *_USER), est.SIMPLE_ENROLL, "openssl base64"),
    "curl-expect": (("-H", "Expect: 100-continue", *_PKCS10, *_USER), est.SIMPLE_ENROLL, "openssl base64"),
    "curl-chunked": (("-H", "Transfer-Encoding: chunked", *_PKCS10, *_USER), est.SIMPLE_ENROLL, "openssl base64"),
    "curl-type-with-parameters": (
        ("-H", f"Content-Type: {est.PKCS10}; charset=us-ascii", *_USER),
        est.SIMPLE_ENROLL,
        "openssl base64",
    ),
    "curl-transfer-encoding": (
        ("-H", "Content-Transfer-Encoding: base64", *_PKCS10, *_USER),
        est.SIMPLE_ENROLL,
        "openssl base64",
    ),
    "curl-label": ((*_PKCS10, *_USER), f"{est.BASE}/Factory-1/simpleenroll", "openssl base64"),
    "curl-no-credentials": (_PKCS10, est.SIMPLE_ENROLL, "openssl base64"),
    "curl-form-type": (_USER, est.SIMPLE_ENROLL, "openssl base64"),
    "curl-der": ((*_PKCS10, *_USER), est.SIMPLE_ENROLL, "cat"),
}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        home = new_home(Path(folder) / "fleet")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(home.enroll_server.certificate, home.enroll_server.key)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            for name, (arguments, path, writes) in CASES.items():
                body = _body(name, writes)
                port = listener.getsockname()[1]
                url = f"https://localhost:{port}{path}"
                trust = ("--cacert", str(home.root.certificate), "--resolve", f"localhost:{port}:127.0.0.1")
                command = ["curl", "-sS", *trust, *arguments, "--data-binary", "@-", url]
                with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as curl:
                    assert curl.stdin is not None
                    curl.stdin.write(body)
                    curl.stdin.close()
                    (HERE / f"{name}.http").write_bytes(_received(listener, context))


def _body(name: str, writes: str) -> bytes:
    device = name.replace(".", "-")
    make = f"openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout /dev/null -subj /CN={device}"
    return subprocess.run(
        ["sh", "-c", f"{make} -outform DER 2>/dev/null | {writes}"], check=True, capture_output=True
    ).stdout


def _received(listener: socket.socket, context: ssl.SSLContext) -> bytes:
    """One request, whole."""
    connection, _ = listener.accept()
    with context.wrap_socket(connection, server_side=True) as tls:
        tls.settimeout(5)
        data = b""
        while not _is_whole(data):
            more = tls.recv(65_536)
            assert more
            data += more
            if data.endswith(b"\r\n\r\n") and b"100-continue" in data:
                tls.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        tls.sendall(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
        return data


def _is_whole(data: bytes) -> bool:
    head, blank, body = data.partition(b"\r\n\r\n")
    if not blank:
        return False
    fields = dict(line.split(b": ", 1) for line in head.lower().split(b"\r\n")[1:])
    if b"transfer-encoding" in fields:
        return body.endswith(b"0\r\n\r\n")
    return len(body) >= int(fields[b"content-length"])


if __name__ == "__main__":
    main()
