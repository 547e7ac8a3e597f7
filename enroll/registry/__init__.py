"""The registry: principals, keys, certificates, tokens, requests, outbox, audit (SQLAlchemy Core; SQLite).

`Registry.read()` and `.write()` give a transaction; the functions of the modules here take it as first argument:
`identity` (principals, keys, certificates), `tokens` (with their requests), `feed` (outbox), `log` (audit).
"""

from sqlalchemy import Connection as Transaction

from enroll.registry.database import Begun, Registry, RegistryFull, RegistryUnavailable

__all__ = ["Begun", "Registry", "RegistryFull", "RegistryUnavailable", "Transaction"]
