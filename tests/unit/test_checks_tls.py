"""The https check against real TLS servers on loopback: names, certificates, peers that speak it badly."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.unit.checks_rig import (
    LOOPBACK,
    OK_RESPONSE,
    Handler,
    answers,
    answers_endlessly,
    check_of,
    probe_against,
    read_request,
    resets,
    serving,
)
from vc5py.checks import ProbeResult, Reason, probe
from vc5py.checks.https import server_name, trust_of
from vc5py.checks.tls import Trust
from vc5py.model import Check, CheckType, HttpRequest

NEW_KEY = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"


def openssl(folder: Path, command: str) -> None:
    subprocess.run(["openssl", *command.split()], cwd=folder, check=True, capture_output=True)


class Authority:
    """A certificate authority of the tests' own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "ca.pem"
        openssl(folder, f"req -x509 {NEW_KEY} -days 2 -subj /CN=tests -keyout ca.key -out ca.pem")

    def serve(self, names: str, days: int = 2, usage: str = "serverAuth") -> ssl.SSLContext:
        """A server's context with a certificate for `names` (subjectAltName) that ends in so many days."""
        extensions = f"-addext subjectAltName={names} -addext extendedKeyUsage={usage}"
        openssl(self.folder, f"req {NEW_KEY} -subj /CN=server {extensions} -keyout key.pem -out request.pem")
        openssl(
            self.folder,
            "x509 -req -in request.pem -CA ca.pem -CAkey ca.key -CAcreateserial -copy_extensions copy"
            f" -days {days} -out cert.pem",
        )
        return context_of(self.folder)


def context_of(folder: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return context


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def self_signed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    subject = "-subj /CN=nobody.invalid"
    openssl(folder, f"req -x509 {NEW_KEY} -days 2 {subject} -keyout key.pem -out cert.pem")
    return folder


@pytest.fixture
def server_tls(self_signed: Path) -> ssl.SSLContext:
    return context_of(self_signed)


def https_check(port: int, **changes: Any) -> Check:
    return check_of(CheckType.HTTPS, port, **changes)


# --- without a look at the certificate ---


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_https_takes_a_self_signed_certificate_and_sends_the_name(
    server_tls: ssl.SSLContext, version: ssl.TLSVersion
) -> None:
    names: list[str | None] = []
    server_tls.minimum_version = server_tls.maximum_version = version
    server_tls.sni_callback = lambda _socket, name, _context: names.append(name)
    async with serving(answers(OK_RESPONSE), server_tls) as server:
        named = https_check(server.port, host="www.example.com:8443")
        assert (await probe(LOOPBACK, named, 0, None)).detail == "status 200"
        assert (await probe(LOOPBACK, https_check(server.port), 0, None)).ok
    assert names == ["www.example.com", None]


@pytest.mark.parametrize(
    ("host", "name"),
    [
        (None, None),
        ("", None),
        ("www.example.com", "www.example.com"),
        ("www.example.com.:443", "www.example.com"),
        ("192.0.2.1", None),
        ("192.0.2.1:443", None),
        ("[2001:db8::1]:443", None),
        ("2001:db8::1", None),
    ],
)
def test_server_name_is_a_name_without_a_port(host: str | None, name: str | None) -> None:
    assert server_name(host) == name
    assert trust_of(HttpRequest(host=host), LOOPBACK) == Trust(name)


@pytest.mark.parametrize(
    ("host", "name"),
    [
        (None, "127.0.0.1"),
        ("www.example.com.:443", "www.example.com"),
        ("192.0.2.1:443", "192.0.2.1"),
        ("[2001:db8::1]:443", "2001:db8::1"),
        ("2001:db8::1", "2001:db8::1"),
    ],
)
def test_the_certificate_must_be_for_the_host_or_else_the_vip(host: str | None, name: str) -> None:
    request = HttpRequest(host=host, verify=True, ca_file="/ca.pem")
    assert trust_of(request, LOOPBACK) == Trust(name, True, "/ca.pem")


async def close_at_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(4096)
    writer.write_eof()


async def talk_plainly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(4096)
    writer.write(b"HTTP/1.1 400 Plain request to a TLS port\r\n\r\n")


@pytest.mark.parametrize("handler", [close_at_once, talk_plainly])
async def test_https_to_what_does_not_speak_tls(handler: Handler) -> None:
    result = await probe_against(handler, CheckType.HTTPS)
    assert (result.ok, result.reason) == (False, Reason.TLS_FAILURE)


async def test_https_to_a_server_that_wants_a_client_certificate(
    server_tls: ssl.SSLContext, self_signed: Path
) -> None:
    server_tls.verify_mode = ssl.CERT_REQUIRED
    server_tls.load_verify_locations(self_signed / "cert.pem")
    server_tls.maximum_version = ssl.TLSVersion.TLSv1_2
    async with serving(answers(OK_RESPONSE), server_tls) as server:
        result = await probe(LOOPBACK, https_check(server.port), 0, None)
    assert result.reason is Reason.TLS_FAILURE


async def test_https_failures_within_the_session(server_tls: ssl.SSLContext) -> None:
    garbage, header = b"garbage\r\n", b"HTTP/1.1 200 OK\r\n"
    for handler, reason in [
        (answers(garbage), Reason.BAD_STATUS_LINE),
        (answers_endlessly(header, b"A: b\r\n" * 100), Reason.HEADER_TOO_LARGE),
        (resets, Reason.RESET),
        (answers_endlessly(header, b"A", 0.01), Reason.TOO_SLOW),
    ]:
        async with serving(handler, server_tls) as server:
            timeout_s = 0.5 if reason is Reason.TOO_SLOW else 5.0
            result = await probe(LOOPBACK, https_check(server.port, timeout_s=timeout_s), 0, None)
        assert (result.ok, result.reason) == (False, reason)


async def test_https_session_closed_before_the_answer(server_tls: ssl.SSLContext) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.close()

    async with serving(handler, server_tls) as server:
        result = await probe(LOOPBACK, https_check(server.port), 0, None)
    assert result.reason is Reason.SHORT_READ


async def test_https_deadline_covers_a_dripping_handshake() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\x16\x03\x03\x40\x00\x02\x00\x3f\xfc\x03\x03")  # a ServerHello of 16 KiB begins
        while True:
            writer.write(b"\x00")
            await asyncio.sleep(0.01)

    result = await probe_against(handler, CheckType.HTTPS, timeout_s=0.15)
    assert result.detail.startswith("no handshake in time")
    assert 0.15 <= result.duration_s < 1.5


# --- with one ---


async def verify(server_side: ssl.SSLContext, **changes: Any) -> ProbeResult:
    async with serving(answers(OK_RESPONSE), server_side) as server:
        return await probe(LOOPBACK, https_check(server.port, verify=True, **changes), 0, None)


async def test_a_good_certificate_is_verified_by_name_and_by_address(authority: Authority) -> None:
    context = authority.serve("DNS:www.example.com,IP:127.0.0.1")
    for host in ("www.example.com", "www.example.com:8443", "127.0.0.1", None):
        result = await verify(context, host=host, ca_file=str(authority.file))
        assert (result.ok, result.detail) == (True, "status 200")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize(
    ("certificate", "host", "reason"),
    [
        ({"names": "DNS:www.example.com"}, "mail.example.com", Reason.CERTIFICATE_NAME),
        ({"names": "DNS:www.example.com"}, None, Reason.CERTIFICATE_NAME),
        ({"names": "DNS:www.example.com", "days": -1}, "www.example.com", Reason.CERTIFICATE_EXPIRED),
        ({"names": "DNS:www.example.com", "usage": "clientAuth"}, "www.example.com", Reason.CERTIFICATE_BAD),
    ],
    ids=["another name", "another address", "expired", "not for servers"],
)
async def test_each_fault_of_a_certificate_has_its_reason(
    authority: Authority,
    certificate: dict[str, Any],
    host: str | None,
    reason: Reason,
    version: ssl.TLSVersion,
) -> None:
    context = authority.serve(**certificate)
    context.minimum_version = context.maximum_version = version
    result = await verify(context, host=host, ca_file=str(authority.file))
    assert (result.ok, result.reason) == (False, reason)
    assert result.detail.isprintable()
    assert (await verify_nothing(context, host)).ok


async def verify_nothing(server_side: ssl.SSLContext, host: str | None) -> ProbeResult:
    async with serving(answers(OK_RESPONSE), server_side) as server:
        return await probe(LOOPBACK, https_check(server.port, host=host), 0, None)


@pytest.mark.parametrize("ca", [None, "ca.pem"])
async def test_self_signed_is_untrusted(
    authority: Authority, server_tls: ssl.SSLContext, ca: str | None
) -> None:
    ca_file = str(authority.folder / ca) if ca else None
    result = await verify(server_tls, host="nobody.invalid", ca_file=ca_file)
    assert (result.ok, result.reason) == (False, Reason.CERTIFICATE_UNTRUSTED)


async def test_an_unknown_authority_is_untrusted(authority: Authority, tmp_path: Path) -> None:
    other = Authority(tmp_path)
    result = await verify(
        authority.serve("DNS:www.example.com"), host="www.example.com", ca_file=str(other.file)
    )
    assert (result.ok, result.reason) == (False, Reason.CERTIFICATE_UNTRUSTED)


async def test_nothing_is_said_to_a_peer_that_fails(server_tls: ssl.SSLContext) -> None:
    requests: list[bytes] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await reader.read(4096))

    async with serving(handler, server_tls) as server:
        check = https_check(server.port, verify=True, host="nobody.invalid")
        assert (await probe(LOOPBACK, check, 0, None)).reason is Reason.CERTIFICATE_UNTRUSTED
    assert not any(requests)


async def test_the_authorities_file_is_read_anew_when_it_changes(
    authority: Authority, tmp_path: Path
) -> None:
    context = authority.serve("DNS:www.example.com")
    ca_file = tmp_path / "authorities.pem"
    arguments: dict[str, Any] = {"host": "www.example.com", "ca_file": str(ca_file)}
    missing = await verify(context, **arguments)
    assert (missing.reason, missing.detail) == (
        Reason.LOCAL,
        "can't load the authorities: No such file or directory",
    )
    ca_file.write_text("nothing")
    assert (await verify(context, **arguments)).reason is Reason.LOCAL
    shutil.copy(authority.file, ca_file)
    assert (await verify(context, **arguments)).ok
    shutil.copy(Authority(make_folder(tmp_path)).file, ca_file)
    assert (await verify(context, **arguments)).reason is Reason.CERTIFICATE_UNTRUSTED


def make_folder(inside: Path) -> Path:
    folder = inside / "other"
    folder.mkdir()
    return folder
