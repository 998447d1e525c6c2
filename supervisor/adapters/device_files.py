"""The files that devices fetch from the join port: the agent, and the scripts that install it."""

import threading
from pathlib import Path

from supervisor import files
from supervisor.adapters import agent_archive


class DeviceFiles:
    """Finds a file by the name that devices ask for."""

    def __init__(self, folder: Path) -> None:
        """``folder``: where ``agent.pyz`` is built, once, when it is first asked for."""
        self._folder = folder
        self._archive: Path | None = None
        self._one_at_a_time = threading.Lock()
        phones = files.termux()
        self._scripts = {n: phones / n for n in ("install.sh", "uninstall.sh", "doctor.sh")}
        self._scripts |= {"boot-agent": phones / "boot" / "agent", "join.sh": files.join_script()}

    def __call__(self, name: str) -> Path | None:
        """Path of a file; None: there is none of that name. Building takes a moment: not in a loop.

        Raises:
            BadSettings, FolderNotWritable: The agent could not be packed.
        """
        if name == "agent.pyz":
            return self._agent()
        script = self._scripts.get(name)
        return script if script is not None and script.is_file() else None

    def _agent(self) -> Path:
        # Two devices may ask at once; replacing the file under a download would break it.
        with self._one_at_a_time:
            if self._archive is None:
                self._archive = agent_archive.build(self._folder)
            return self._archive
