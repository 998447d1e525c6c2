"""What the hub says of the content of a repository's files."""

from collections.abc import Mapping


def etags_of(repo: str) -> Mapping[str, str]:
    """By file: its sha256, of those that are large enough. Asks the hub; blocks.

    Raises:
        ModelMissing, ModelForbidden, HubOffline, HubUnreachable
    """
    from supervisor.adapters.hub_http import Hub, Patience  # half a second, and seldom needed

    return Hub(Patience(connect_s=5.0, silence_s=10.0, tries=2)).listing(repo).etags
