"""PostgreSQL: one database for the servers of many hosts."""

from amelia_flask.postgres.engine import PostgresEngine

__all__ = ["PostgresEngine"]
