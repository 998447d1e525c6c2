"""The cluster's authority: certificates that real TLS accepts, keys that only we can read."""

import asyncio
import re
import ssl
import stat
from pathlib import Path

import pytest

from agents import tls
from agents.errors import FolderNotWritable
from supervisor.adapters.authority import Authority
from supervisor.ports import Issued


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


def stored(folder: Path, issued: Issued) -> tuple[Path, Path]:
    certificate, key = folder / "some.crt", folder / "some.key"
    certificate.write_text(issued.certificate_pem)
    key.write_text(issued.key_pem)
    return certificate, key


def server_context(authority: Authority, folder: Path, name: str) -> ssl.SSLContext:
    """What an agent serves with: its certificate, and only callers of this cluster."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*stored(folder, authority.issue(name)))
    context.load_verify_locations(cadata=authority.certificate_pem)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


async def names_seen(
    serving: ssl.SSLContext, calling: ssl.SSLContext, server_name: str
) -> tuple[str, str]:
    """Connect over loopback; the names that server and client saw of each other."""
    seen: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.set_result(common_name(writer))
        writer.write(await reader.readexactly(2))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=serving)
    async with server:
        port = server.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=calling, server_hostname=server_name
        )
        try:
            writer.write(b"hi")
            assert await reader.readexactly(2) == b"hi"
            return await seen, common_name(writer)
        finally:
            writer.transport.abort()


def common_name(writer: asyncio.StreamWriter) -> str:
    subject = writer.get_extra_info("peercert")["subject"]
    return str(dict(pair for group in subject for pair in group)["commonName"])


async def test_supervisor_and_agent_know_each_other_by_name(
    authority: Authority, tmp_path: Path
) -> None:
    calling = tls.client_context(
        authority.certificate_pem, authority.supervisor_certificate, authority.supervisor_key
    )
    serving = server_context(authority, tmp_path, "agent-x")
    assert await names_seen(serving, calling, "agent-x") == ("supervisor", "agent-x")


async def test_another_agents_certificate_does_not_pass_for_this_agent(
    authority: Authority, tmp_path: Path
) -> None:
    calling = tls.client_context(
        authority.certificate_pem, authority.supervisor_certificate, authority.supervisor_key
    )
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        await names_seen(server_context(authority, tmp_path, "agent-x"), calling, "agent-y")


async def test_a_certificate_of_another_cluster_does_not_verify(
    authority: Authority, tmp_path: Path
) -> None:
    other = Authority(tmp_path / "other")
    calling = tls.client_context(
        authority.certificate_pem, authority.supervisor_certificate, authority.supervisor_key
    )
    with pytest.raises(ssl.SSLCertVerificationError, match="certificate verify failed"):
        await names_seen(server_context(other, tmp_path, "agent-x"), calling, "agent-x")


def test_every_certificate_has_a_serial_and_key_of_its_own(authority: Authority) -> None:
    first, second = authority.issue("agent-x"), authority.issue("agent-x")
    assert int(first.serial, 16) != int(second.serial, 16)
    assert first.key_pem != second.key_pem


def test_the_serial_is_the_one_that_tls_reports(authority: Authority, tmp_path: Path) -> None:
    issued = authority.issue("agent-x")
    certificate, _ = stored(tmp_path, issued)
    seen = ssl._ssl._test_decode_cert(str(certificate))  # type: ignore[attr-defined]
    assert int(seen["serialNumber"], 16) == int(issued.serial, 16)
    assert seen["subjectAltName"] == (("DNS", "agent-x"),)


def test_keys_are_readable_by_their_user_alone(tmp_path: Path) -> None:
    Authority(tmp_path / "keys")
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "keys").iterdir()}
    assert set(modes) == {"authority.crt", "authority.key", "supervisor.crt", "supervisor.key"}
    assert modes["authority.key"] == modes["supervisor.key"] == 0o600
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o700


def test_the_authority_stays_the_same_over_restarts(tmp_path: Path) -> None:
    first = Authority(tmp_path)
    again = Authority(tmp_path)
    assert again.fingerprint == first.fingerprint
    assert again.server_pin() == first.server_pin()
    assert again.certificate_pem == first.certificate_pem


@pytest.mark.parametrize("lost", ["supervisor.key", "supervisor.new"])
def test_a_start_that_was_cut_short_is_made_up_for(tmp_path: Path, lost: str) -> None:
    before = Authority(tmp_path).fingerprint
    (tmp_path / "supervisor.key").unlink()
    if lost == "supervisor.new":
        (tmp_path / "supervisor.new").write_text("half a k")
    again = Authority(tmp_path)
    assert again.fingerprint == before
    context = tls.client_context(
        again.certificate_pem, again.supervisor_certificate, again.supervisor_key
    )
    assert context.verify_mode is ssl.CERT_REQUIRED


def test_fingerprint_and_pin_have_the_form_that_others_expect(authority: Authority) -> None:
    assert re.fullmatch(r"[A-Za-z0-9_-]{43}", authority.fingerprint)
    assert re.fullmatch(r"sha256//[A-Za-z0-9+/]{43}=", authority.server_pin())


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FolderNotWritable, match="cannot keep keys in"):
        Authority(tmp_path / "file" / "keys")
