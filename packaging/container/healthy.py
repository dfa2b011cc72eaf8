"""Whether the service in this container is ready: exit code 0 or 1."""

import http.client
import ssl
import sys

PORTS = (8710, 8700)


def is_ready(port: int) -> bool:
    """Ask the health endpoint, over TLS and without; who it is does not matter on loopback inside the container."""
    trusting = ssl.create_default_context()
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    for connection in (
        http.client.HTTPSConnection("127.0.0.1", port, timeout=2, context=trusting),
        http.client.HTTPConnection("127.0.0.1", port, timeout=2),
    ):
        try:
            connection.request("GET", "/v2/health/ready")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            continue
        finally:
            connection.close()
    return False


if __name__ == "__main__":
    sys.exit(0 if any(is_ready(port) for port in PORTS) else 1)
