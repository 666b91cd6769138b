"""Where the sidecar is, and how a channel to it is made."""

from __future__ import annotations

import ipaddress
import os
import re
import ssl
from dataclasses import dataclass
from urllib.parse import quote

import grpc

from consentd._verdict import ConsentdError, Failure

DEFAULT_ADDRESS = "127.0.0.1:50051"


@dataclass(frozen=True)
class Target:
    """An address as gRPC writes it."""

    name: str
    options: tuple[tuple[str, object], ...]
    credentials: grpc.ChannelCredentials | None

    @classmethod
    def of(
        cls,
        address: str | None,
        *,
        tls: bool = False,
        ca_file: str | os.PathLike[str] | None = None,
        cert_file: str | os.PathLike[str] | None = None,
        key_file: str | os.PathLike[str] | None = None,
    ) -> Target:
        """Reads an address as consentd writes it, and the files of TLS.

        Raises:
            ValueError: The address is malformed, or one of `cert_file` and `key_file` is missing.
            OSError: A file cannot be read.
        """
        name, socket = _target_name(address or os.environ.get("CONSENTD_ADDR") or DEFAULT_ADDRESS)
        options: list[tuple[str, object]] = [
            # gRPC core would reach even loopback through the proxy in http_proxy, and a sidecar is never behind one.
            ("grpc.enable_http_proxy", 0),
            # Each client has a connection of its own, and not the back-off of one that was made before it.
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.initial_reconnect_backoff_ms", 20),
            ("grpc.max_reconnect_backoff_ms", 1_000),
            # How long one attempt to connect may take: a sidecar that is stopped accepts, and never answers.
            ("grpc.min_reconnect_backoff_ms", 1_000),
            ("grpc.dns_min_time_between_resolutions_ms", 1_000),
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.max_pings_without_data", 0),
            # A connection is kept however long no call was made: by default it is closed after half an hour.
            ("grpc.client_idle_timeout_ms", 2**31 - 1),
        ]
        if socket:
            # gRPC core would send the socket's path as the authority, which HTTP/2 servers refuse.
            options.append(("grpc.default_authority", "localhost"))
        if bool(cert_file) != bool(key_file):
            raise ValueError("cert_file and key_file belong together")
        credentials = None
        if not socket and (tls or ca_file or cert_file):
            credentials = grpc.ssl_channel_credentials(
                _read(ca_file) or _system_certificates(), _read(key_file), _read(cert_file)
            )
        return cls(name, tuple(options), credentials)


def _target_name(address: str) -> tuple[str, bool]:
    """The address in gRPC's notation, and whether it is a Unix socket."""
    if address.startswith("unix:"):
        path = address.removeprefix("unix:")
        scheme = "unix-abstract" if path.startswith("@") else "unix"
        path = path.removeprefix("@")
        if not path or "\0" in path:
            raise ValueError(f"{address!r} is no address: unix:PATH or unix:@NAME")
        return f"{scheme}:{quote(path)}", True
    match = re.fullmatch(r"(?:\[([^\]]+)\]|([^\s:/\[\]@]+)):([0-9]{1,5})", address)
    if not match or not 0 < int(match[3]) < 65_536:
        raise ValueError(f"{address!r} is no address: HOST:PORT, [IPV6]:PORT, unix:PATH or unix:@NAME")
    host, port = match[1] or match[2], match[3]
    # Written so, gRPC does not ask the resolver of names about what is an IP address.
    try:
        version = ipaddress.ip_address(host).version
    except ValueError:
        return f"dns:{host}:{port}", False
    return (f"ipv4:{host}:{port}" if version == 4 else f"ipv6:[{host}]:{port}"), False


def _read(file: str | os.PathLike[str] | None) -> bytes | None:
    if not file:
        return None
    with open(file, "rb") as opened:
        return opened.read()


def _system_certificates() -> bytes | None:
    """The system's CA certificates, where Python knows them. None: those that come with gRPC."""
    paths = ssl.get_default_verify_paths()
    return _read(paths.cafile)


def bearer_token(file: str | os.PathLike[str]) -> str:
    """The token in a file, which is read at each call that needs it, so that the token can be replaced.

    It is the first line that is neither blank nor begins with #, without the white space around it. The sidecar reads
    its own files of tokens alike.

    Raises:
        ConsentdError: The file cannot be read, or has no token. The words never hold what is in it.
    """
    try:
        text = (_read(file) or b"").decode()
    except OSError as error:
        raise _no_token(f"the token file cannot be read: {error}") from error
    except UnicodeDecodeError:
        raise _no_token("the token file is not text") from None
    lines = (line.strip() for line in text.split("\n"))
    token = next((line for line in lines if line and not line.startswith("#")), "")
    if not token:
        raise _no_token("the token file has no token: a line that is not blank and does not begin with #")
    if not (token.isascii() and token.isprintable()):
        raise _no_token("the token in the token file is not printable ASCII")
    return token


def _no_token(cause: str) -> ConsentdError:
    return ConsentdError(Failure("UNAUTHENTICATED", cause))
