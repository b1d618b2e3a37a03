"""Is a server there? Asked before libraries that would otherwise retry for minutes."""

import os
import socket
import urllib.request
from urllib.parse import urlsplit

HUB = "https://huggingface.co"


def reachable(url: str, timeout: float = 3.0) -> bool:
    """Whether the host of `url`, or the proxy for it, accepts a TCP connection within `timeout`
    s.
    """
    wanted = urlsplit(url)
    proxy = urllib.request.getproxies().get(wanted.scheme)
    target = urlsplit(proxy) if proxy else wanted
    port = target.port or (443 if target.scheme == "https" else 80)
    try:
        with socket.create_connection((target.hostname, port), timeout):
            return True
    except OSError:
        return False


def prepare_hub() -> None:
    """Without a connection, let the hub's libraries answer from their cache at once.

    Must come before huggingface_hub is first imported: it reads its settings then.
    """
    if not reachable(os.environ.get("HF_ENDPOINT", HUB)):
        os.environ["HF_HUB_OFFLINE"] = "1"
