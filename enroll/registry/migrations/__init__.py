"""The registry's schema, step by step (Alembic); run at open, see `enroll.registry.database`."""
