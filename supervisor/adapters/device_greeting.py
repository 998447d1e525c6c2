"""TLS handshakes with a device, timed; they disturb nobody and prove who is there."""

import asyncio
import ssl
import statistics
import time
from typing import Final

from agents import tls
from supervisor.core.doctor import Greeting

_LIMIT_S: Final = 6.0
_CONNECTIONS: Final = 3


class DeviceGreeter:
    """Greets one port of a device, as the supervisor."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context

    async def __call__(self, agent_id: str, address: str, port: int) -> Greeting:
        """The middle of a few connections; one way of failing is enough to tell."""
        host = f"[{address}]" if ":" in address else address
        endpoint, not_after_s = f"{host}:{port}", None
        trips_ms: list[float] = []
        try:
            async with asyncio.timeout(_LIMIT_S):
                for _ in range(_CONNECTIONS):
                    trip_ms, not_after_s = await self._greet(agent_id, address, port)
                    trips_ms.append(trip_ms)
        except ssl.SSLCertVerificationError as exc:
            return Greeting(endpoint, f"another device is there ({exc.verify_message})")
        except ssl.SSLError as exc:
            return Greeting(endpoint, f"what is there is no agent of ours ({exc.reason})")
        except TimeoutError:
            if not trips_ms:
                return Greeting(endpoint, f"no answer within {_LIMIT_S:g} s")
        except OSError as exc:
            return Greeting(endpoint, exc.strerror or str(exc))
        return Greeting(endpoint, "", statistics.median(trips_ms), not_after_s)

    async def _greet(self, agent_id: str, address: str, port: int) -> tuple[float, float | None]:
        """Milliseconds of the connection before TLS, and when the certificate ends."""
        began_s = time.perf_counter()
        reader, writer = await asyncio.open_connection(address, port)
        trip_ms = (time.perf_counter() - began_s) * 1e3
        try:
            await writer.start_tls(self._context, server_hostname=tls.agent_name(agent_id))
            shown = writer.get_extra_info("peercert") or {}
            ends = shown.get("notAfter")
            return trip_ms, None if ends is None else ssl.cert_time_to_seconds(ends)
        finally:
            del reader
            writer.transport.abort()
