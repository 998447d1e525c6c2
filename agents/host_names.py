"""What kind of host this is and what it is called. Needs the standard library alone."""

import os
import re
import socket
import sys

from agents import short_commands


def platform_name() -> str:
    """``android`` (Termux), ``macos`` or ``linux``. Python before 3.13 says linux on Android."""
    if hasattr(sys, "getandroidapilevel") or "com.termux" in os.environ.get("PREFIX", ""):
        return "android"
    return {"darwin": "macos", "android": "android"}.get(sys.platform, "linux")


def is_phone() -> bool:
    """Whether this is Android: slow cores, a battery, and a system that ends programs."""
    return platform_name() == "android"


def device_name() -> str:
    """Host name; on phones, where that is ``localhost``, the model."""
    name = socket.gethostname().removesuffix(".local")
    if not is_phone():
        return name
    model = short_commands.output(["getprop", "ro.product.model"])
    safe = re.sub(r"\W+", "-", model.strip()).strip("-").lower()
    return safe or (name if name not in ("", "localhost") else "phone")
