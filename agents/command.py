"""The command line of an rpc-server: run by the agent, shown by the supervisor."""

from collections.abc import Sequence


def rpc_server_argv(
    program: str, host: str, port: int, threads: int, devices: Sequence[str]
) -> list[str]:
    """The command of an rpc-server; without ``devices`` it offers all that it finds."""
    argv = [program, "-H", host, "-p", str(port), "-t", str(threads)]
    return [*argv, "-d", ",".join(devices)] if devices else argv
