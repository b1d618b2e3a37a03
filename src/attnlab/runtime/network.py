"""Whether a server can be reached, to know before libraries retry for minutes."""

import http.client
import os
import ssl
import threading
import urllib.error
import urllib.request
from urllib.parse import urlsplit

HUB = "https://huggingface.co"


def reachable(url: str, timeout: float = 3.0) -> bool:
    """Whether a server answers a request at `url`, through the proxy if one is set.

    A server that accepts a connection and stays silent does not count. The whole check takes at
    most `timeout` seconds: resolving a name or trying many addresses could take minutes.
    """
    answers = []

    def ask() -> None:
        answers.append(_answers(url, timeout))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout)
    return any(answers)


def _answers(url: str, timeout: float) -> bool:
    proxy = urllib.request.getproxies().get(urlsplit(url).scheme, "")
    if proxy.startswith("socks"):
        return True  # cannot be asked from here; the libraries may be able to
    try:
        urllib.request.build_opener().open(url, timeout=timeout).close()
    except urllib.error.HTTPError as error:
        return error.code < 500  # 502 to 504: a proxy speaks for a server that is away
    except urllib.error.URLError as error:
        return isinstance(error.reason, ssl.SSLError)  # certificates are checked by the libraries
    except (OSError, http.client.HTTPException, ValueError):
        return False
    return True


def prepare_hub() -> None:
    """Without a connection, let the hub's libraries answer from their cache at once.

    Must come before huggingface_hub is first imported: it reads its settings then.
    """
    if not os.environ.get("HF_HUB_OFFLINE") and not reachable(os.environ.get("HF_ENDPOINT", HUB)):
        os.environ["HF_HUB_OFFLINE"] = "1"
