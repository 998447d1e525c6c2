"""How llama-server reaches the workers, and what a way without links exposes."""

from typing import Final

from supervisor.core.entities import DeploymentSpec

DIRECT_WARNING: Final = (
    "without links rpc-server itself listens on the address of each device, and it asks nobody for "
    "a key: whoever reaches that address can run code on the device. Use this only on a cable or a "
    "network of your own"
)


def warnings_of(spec: DeploymentSpec) -> tuple[str, ...]:
    """What somebody who asks for this has to know."""
    return (DIRECT_WARNING,) if spec.transport == "direct" else ()
