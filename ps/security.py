"""Who may talk to a shard, in what privacy, and how much at once: options, and the files that they name.

Options hold paths and never a secret, so they may stand in YAML, on a command line and in a run's config.json; each
process reads the files itself when its server or client starts. The same options serve both ends: shards read
`certificate` and `key`, clients `client_certificate` and `client_key`. docs/security.md says what each protects from.
"""

from __future__ import annotations

import hmac
import ipaddress
import logging
import os
import socket
import ssl
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import Field, model_validator

from ps.byte_sizes import ByteSize
from ps.errors import RequestError
from ps.strict import Spec

TOKEN_KEY = "authorization"  # of a call's metadata; its value is "Bearer TOKEN"
_SCHEME = b"Bearer "
_MAX_TOKEN_BYTES = 4096
_MAX_PEM_BYTES = 1 << 20
_OTHERS = 0o007  # mode bits; the group may have access, for mounted secrets come as 0440
_log = logging.getLogger("weir.security")


class TlsOptions(Spec):
    """Certificates, all PEM files. authority: who must have signed the other end's; default: the roots that gRPC
    brings. certificate, key: of the shards. server_name: what the shards' certificates name; default: the host by which
    a shard is reached, which on clusters is an IP address.
    """

    authority: str | None = None
    certificate: str | None = None
    key: str | None = None
    require_client_certificate: bool = False  # signed by the authority: mutual TLS
    client_certificate: str | None = None
    client_key: str | None = None
    server_name: str | None = None

    @model_validator(mode="after")
    def _belong_together(self) -> TlsOptions:
        for certificate, key in (("certificate", "key"), ("client_certificate", "client_key")):
            if (getattr(self, certificate) is None) != (getattr(self, key) is None):
                raise ValueError(f"{certificate} and {key} belong together; give both or neither")
        if self.require_client_certificate and self.authority is None:
            raise ValueError("require_client_certificate needs 'authority', who signs the clients' certificates")
        return self


class Limits(Spec):
    """What one message to a shard may ask for. max_message_bytes: of the message, and of the rows that its reply would
    hold. max_keys_per_request: over all its calls.
    """

    max_message_bytes: ByteSize = Field(default=1 << 30, ge=1 << 16, lt=1 << 31)  # gRPC counts in int32
    max_keys_per_request: int = Field(default=1 << 24, ge=1)


class SecurityOptions(Spec):
    """token_file: one line, the same for shards and clients; None: whoever reaches a shard's port may use it. tls:
    None: nothing is encrypted.
    """

    token_file: str | None = None
    tls: TlsOptions | None = None
    limits: Limits = Limits()

    @property
    def authenticates(self) -> bool:
        """Whether a shard can tell its own clients from others."""
        return self.token_file is not None or (self.tls is not None and self.tls.require_client_certificate)

    def absolute(self) -> SecurityOptions:
        """The same files by their paths from the root, for a process with another working folder."""
        tls = self.tls
        if tls is not None:
            names = ("authority", "certificate", "key", "client_certificate", "client_key")
            tls = tls.model_copy(update={name: _absolute(getattr(tls, name)) for name in names})
        return self.model_copy(update={"token_file": _absolute(self.token_file), "tls": tls})


@dataclass(frozen=True)
class Identity:
    """PEM texts that one end shows and trusts; None: it has none."""

    authority: bytes | None
    certificate: bytes | None
    key: bytes | None = field(repr=False)


def read_token(options: SecurityOptions) -> bytes | None:
    """The token, or None without a file. Raises RequestError for a file that cannot be read, is empty, is no single
    line of visible ASCII, or that other users may read.
    """
    if options.token_file is None:
        return None
    what = f"security.token_file {options.token_file}"
    token = _read(options.token_file, what, _MAX_TOKEN_BYTES, is_secret=True).strip()
    if not token:
        raise RequestError(f"{what} on {socket.gethostname()} is empty; write one line: openssl rand -hex 32")
    if not all(0x21 <= byte <= 0x7E for byte in token):
        raise RequestError(f"{what} on {socket.gethostname()} must hold one line of visible ASCII without spaces")
    return token


def token_metadata(token: bytes | None) -> tuple[tuple[str, str], ...]:
    """What a client sends along with every call."""
    return () if token is None else ((TOKEN_KEY, (_SCHEME + token).decode()),)


def is_token(given: str | bytes | None, token: bytes) -> bool:
    """Whether the metadata value of a call is the token's, in a time that does not tell how much of it is right."""
    sent = given.encode() if isinstance(given, str) else given or b""
    return hmac.compare_digest(sent, _SCHEME + token)


def server_identity(options: SecurityOptions) -> Identity | None:
    """What a shard shows and trusts; None without TLS. Raises RequestError."""
    tls = options.tls
    if tls is None:
        return None
    if tls.certificate is None or tls.key is None:
        raise RequestError("security.tls: shards need 'certificate' and 'key'")
    return _identity(tls.authority, tls.certificate, tls.key, "")


def client_identity(options: SecurityOptions) -> Identity | None:
    """What a client shows and trusts; None without TLS. Raises RequestError."""
    tls = options.tls
    if tls is None:
        return None
    return _identity(tls.authority, tls.client_certificate, tls.client_key, "client_")


def warn_if_open(
    host: str,
    options: SecurityOptions,
    *,
    who: str = "shards listen",
    risk: str = "read and change rows",
    remedy: str = "set cluster.security.token_file",
) -> None:
    """One line where a server lets other machines in and asks them for nothing. Defaults: of shards."""
    if not (options.authenticates or _is_loopback(host)):
        _log.warning(
            "warning: %s on %s without a token: whoever reaches that port can %s; %s (docs/security.md)",
            who,
            host,
            risk,
            remedy,
        )


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _identity(authority: str | None, certificate: str | None, key: str | None, prefix: str) -> Identity:
    """The files of one end, found to fit before gRPC gets them, which says little."""

    def read(name: str, path: str | None, *, is_secret: bool = False) -> bytes | None:
        what = f"security.tls.{name} {path}"
        return None if path is None else _read(path, what, _MAX_PEM_BYTES, is_secret=is_secret)

    found = Identity(
        read("authority", authority),
        read(f"{prefix}certificate", certificate),
        read(f"{prefix}key", key, is_secret=True),
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        if authority is not None:
            context.load_verify_locations(authority)
    except ssl.SSLError as error:
        raise RequestError(f"security.tls.authority {authority} is no PEM certificate: {error.reason}") from error
    try:
        if certificate is not None:
            context.load_cert_chain(certificate, key, password="")  # never ask at the terminal
    except (ssl.SSLError, ValueError) as error:
        raise RequestError(
            f"security.tls: {prefix}certificate {certificate} and {prefix}key {key} are no PEM certificate and its "
            f"unencrypted key: {getattr(error, 'reason', None) or error}"
        ) from error
    return found


def _read(path: str, what: str, max_bytes: int, *, is_secret: bool) -> bytes:
    node = socket.gethostname()
    try:
        with Path(path).open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read(max_bytes + 1)
    except OSError as error:
        raise RequestError(
            f"{what} cannot be read on {node}: {error.strerror}; every node with a shard or a worker needs the file"
        ) from error
    if is_secret and os.name == "posix" and mode & _OTHERS:
        raise RequestError(f"{what} on {node} is open to every user (mode {mode & 0o777:03o}); run: chmod 600 {path}")
    if len(content) > max_bytes:
        raise RequestError(f"{what} on {node} is longer than {max_bytes} bytes; is it the right file?")
    return content


def _absolute(path: str | None) -> str | None:
    return None if path is None else str(Path(path).absolute())
