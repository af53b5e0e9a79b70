"""Every route, grouped by subject. Each file has one router; this is the list."""

from . import (
    account,
    catalog,
    checkpoints,
    exports,
    founding,
    futures,
    health,
    sampling,
    sessions,
    settings,
    training,
    usage,
)

ROUTERS = (
    health.router,
    settings.router,
    sessions.router,
    training.router,
    sampling.router,
    futures.router,
    catalog.router,
    checkpoints.router,
    exports.router,
    account.router,
    usage.router,
    founding.router,
)
