# ruff: noqa: ARG005  (an attempt is a line: it aims at others' things, or works with one's own, or both)
"""Every route over HTTP, tried with what belongs to somebody else.

`ATTEMPTS` has an entry for each route of the application. An attempt is made twice, with another's ids and
with ids that nobody has, and the two answers have to be the same. `OPEN` are routes that name nothing of
anybody's; `LISTS` are those whose answers must hold nothing of the owner's.
"""

from . import founding_routes, kept_routes, work_routes
from .belongings import API, Ask, Attempts

ATTEMPTS: Attempts = {**work_routes.ATTEMPTS, **kept_routes.ATTEMPTS, **founding_routes.ATTEMPTS}
# They answer without naming anything of anybody's, some of them without a key.
OPEN = frozenset(
    {
        ("GET", "/healthz"),
        ("GET", f"{API}/healthz"),
        ("GET", "/docs"),
        ("GET", "/docs/oauth2-redirect"),
        ("GET", "/redoc"),
        ("GET", "/openapi.json"),
        ("POST", f"{API}/client/config"),
        ("POST", f"{API}/client/dynamic_config"),
        ("GET", f"{API}/get_server_capabilities"),
        ("GET", f"{API}/capabilities"),
        ("GET", "/get_server_capabilities"),
        ("GET", "/loss_functions"),
        ("POST", f"{API}/telemetry"),
        ("POST", f"{API}/create_session"),
        ("POST", "/add_lora"),
        ("GET", f"{API}/auth/apikey/me"),
        # Ends the caller's own key, whatever else the request says.
        ("DELETE", f"{API}/auth/apikey/me"),
        # Answered as not supported, whatever they name.
        ("POST", f"{API}/auth/token"),
        ("POST", f"{API}/create_custom_loss"),
        ("GET", f"{API}/audit"),
        ("GET", f"{API}/billing/usage/events"),
    }
)
LISTS: Attempts = {
    ("GET", f"{API}/training_runs"): (
        lambda it, mine: Ask(f"{API}/training_runs", query={"limit": 1000, "access_scope": "accessible"}),
        lambda it, mine: Ask(f"{API}/training_runs", query={"project_id": it.project}),
    ),
    ("GET", f"{API}/checkpoints"): (lambda it, mine: Ask(f"{API}/checkpoints"),),
    ("GET", f"{API}/sessions"): (
        lambda it, mine: Ask(f"{API}/sessions", query={"access_scope": "accessible"}),
    ),
    ("POST", f"{API}/sessions/search"): (
        lambda it, mine: Ask(f"{API}/sessions/search", {"session_id": it.session}),
        lambda it, mine: Ask(f"{API}/sessions/search", {"project_ids": [it.project]}),
        lambda it, mine: Ask(f"{API}/sessions/search", {"owner": {"type": "user", "owner_urns": ["owner"]}}),
        lambda it, mine: Ask(f"{API}/sessions/search", {"owner": {"type": "accessible"}}),
    ),
    ("GET", f"{API}/billing/usage/checkpoints/current"): (
        lambda it, mine: Ask(f"{API}/billing/usage/checkpoints/current", query={"project_id": it.project}),
    ),
    ("GET", "/adapters"): (lambda it, mine: Ask("/adapters"),),
    ("GET", "/usage"): (lambda it, mine: Ask("/usage"),),
}
