"""Whether the far end of a device's link can be reached."""

import asyncio
import ssl
from typing import Final

from agents import tls
from supervisor.core.entities import Device

_LIMIT_S: Final = 3.0


class LinkProbe:
    """Shakes hands with a far end and leaves; that disturbs nobody."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context

    async def __call__(self, device: Device) -> bool:
        """True as well for a device without a far end: nothing is to be reached there."""
        if not device.link_port:
            return True
        writer = None
        try:
            async with asyncio.timeout(_LIMIT_S):
                _, writer = await asyncio.open_connection(
                    device.link_address,
                    device.link_port,
                    ssl=self._context,
                    server_hostname=tls.agent_name(device.id),
                )
        except (OSError, TimeoutError):
            return False
        finally:
            if writer is not None:
                writer.transport.abort()
        return True
