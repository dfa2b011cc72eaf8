"""What a service stands on before it serves: its tokens, its certificate, the limits of its listener."""

from hybrid.hosting.auth import Tokens, ensure_admin_token
from hybrid.hosting.listener import ListenerSettings
from hybrid.hosting.service_settings import ServiceSettings
from hybrid.hosting.tls import ServerCertificate, ensure_certificate, load_certificate


def open_tokens(settings: ServiceSettings) -> Tokens:
    """The service's tokens, followed from now on; at its first start an administrator's one is left in its folder.

    Raises:
        StorageError: the file cannot be used.
    """
    tokens = Tokens(settings.data)
    ensure_admin_token(settings.data, tokens)
    tokens.watch()
    return tokens


def certificate_of(settings: ServiceSettings) -> ServerCertificate:
    """The certificate that the service was given, or its own. Raises `StorageError`."""
    if settings.tls_cert is not None and settings.tls_key is not None:
        return load_certificate(settings.tls_cert, settings.tls_key)
    return ensure_certificate(settings.data)


def listener_settings(settings: ServiceSettings) -> ListenerSettings:
    """The limits of its connections."""
    return ListenerSettings(
        header_timeout_s=settings.header_timeout_s,
        keepalive_s=settings.keepalive_s,
        max_connections=settings.max_connections,
    )
