"""The routes of the Open Inference Protocol v2 over HTTP, for every service that speaks it."""

from aiohttp import web

from hybrid.serving.rest.infer import InferHandler
from hybrid.serving.rest.models import ModelHandlers
from hybrid.serving.rest.repository import RepositoryHandlers
from hybrid.serving.rest.service import InferenceService
from hybrid.serving.rest.settings import SettingsHandlers
from hybrid.serving.rest.shared_memory_calls import SharedMemoryHandlers


def add_routes(app: web.Application, service: InferenceService) -> None:
    """Add every call of the protocol and of its extensions to an application.

    The application needs a middleware that turns `HybridError` into JSON (`http_replies.error_reply`).
    """
    _add_models(app.router, service)
    _add_repository(app.router, service)
    _add_settings(app.router, service)
    _add_shared_memory(app.router, service)


def _add_models(router: web.UrlDispatcher, service: InferenceService) -> None:
    models = ModelHandlers(service)
    infer = InferHandler(service)
    # The router tries resources in this order, so what is asked for most comes first.
    for path in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
        router.add_post(f"{path}/infer", infer.handle)
    router.add_get("/v2/health/live", models.live)
    router.add_get("/v2/health/ready", models.ready)
    router.add_get("/v2", models.server)
    router.add_get("/v2/", models.server)
    router.add_get("/v2/models", models.models)
    router.add_get("/v2/models/stats", models.statistics)
    for path in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
        router.add_get(path, models.metadata)
        router.add_get(f"{path}/ready", models.model_ready)
        router.add_get(f"{path}/config", models.config)
        router.add_get(f"{path}/stats", models.statistics)


def _add_repository(router: web.UrlDispatcher, service: InferenceService) -> None:
    repository = RepositoryHandlers(service)
    router.add_post("/v2/repository/index", repository.index)
    router.add_post("/v2/repository/models/{name}/load", repository.load)
    router.add_post("/v2/repository/models/{name}/unload", repository.unload)


def _add_settings(router: web.UrlDispatcher, service: InferenceService) -> None:
    settings = SettingsHandlers(service)
    for path in ("/v2/trace/setting", "/v2/models/{name}/trace/setting"):
        router.add_get(path, settings.trace)
        router.add_post(path, settings.change_trace)
    router.add_get("/v2/logging", settings.logging)
    router.add_post("/v2/logging", settings.change_logging)


def _add_shared_memory(router: web.UrlDispatcher, service: InferenceService) -> None:
    memory = SharedMemoryHandlers(service)
    system, cuda = "/v2/systemsharedmemory", "/v2/cudasharedmemory"
    for root in ("", "/region/{region}"):
        router.add_get(f"{system}{root}/status", memory.status)
        router.add_post(f"{system}{root}/unregister", memory.unregister)
        router.add_get(f"{cuda}{root}/status", memory.cuda_status)
        router.add_post(f"{cuda}{root}/unregister", memory.cuda_unregister)
    router.add_post(f"{system}/region/{{region}}/register", memory.register)
    router.add_post(f"{cuda}/region/{{region}}/register", memory.cuda_register)
