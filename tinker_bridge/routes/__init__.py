"""Every route, grouped by subject. Each file has one router; this is the list."""

from . import (
    account,
    catalog,
    checkpoints,
    exports,
    founding,
    futures,
    health,
    runs,
    sampling,
    sessions,
    settings,
    training,
    usage,
)

# What starts the work of a request, by its path: when it comes, and again after a restart.
STARTS = {
    **runs.STARTS,
    **training.STARTS,
    **sampling.STARTS,
    **exports.STARTS,
    **checkpoints.STARTS,
    **founding.STARTS,
}

ROUTERS = (
    health.router,
    settings.router,
    sessions.router,
    runs.router,
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
