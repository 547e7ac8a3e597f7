"""Core statements compiled once, then run on the driver's own cursor.

An enrolment is a dozen statements of a few microseconds each; SQLAlchemy's execution, made for statements that differ
every time, takes ten times as long around each. What a statement says stays Core's, and so does its SQL per database.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from sqlalchemy import Connection, Dialect, Table, bindparam, insert
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.expression import ClauseElement
from sqlalchemy.types import TypeEngine

_Processor = Callable[[Any], Any]
Row = tuple[Any, ...]


class Statement:
    """One statement, with its parameters by name."""

    def __init__(self, clause: ClauseElement) -> None:
        self._clause = clause
        self._compiled: dict[str, _Compiled] = {}

    def run(self, connection: Connection, **parameters: object) -> int:
        """Run it in the connection's transaction; how many rows it changed."""
        return int(self._cursor(connection, parameters)[0].rowcount)

    def first(self, connection: Connection, **parameters: object) -> Row | None:
        """The first row of its result."""
        cursor, compiled = self._cursor(connection, parameters)
        row = cursor.fetchone()
        cursor.close()
        return None if row is None else compiled.result(row)

    def all(self, connection: Connection, **parameters: object) -> list[Row]:
        """Every row of its result."""
        cursor, compiled = self._cursor(connection, parameters)
        return [compiled.result(row) for row in cursor.fetchall()]

    def each(self, connection: Connection, **parameters: object) -> Iterator[Row]:
        """Every row, as they are asked for."""
        cursor, compiled = self._cursor(connection, parameters)
        for row in cursor:
            yield compiled.result(row)

    def _cursor(self, connection: Connection, parameters: dict[str, object]) -> tuple[Any, _Compiled]:
        dialect = connection.dialect
        compiled = self._compiled.get(dialect.name)
        if compiled is None:
            compiled = self._compiled[dialect.name] = _Compiled(self._clause, dialect)
        cursor = connection.connection.cursor()
        cursor.execute(compiled.sql, compiled.arguments(parameters))
        return cursor, compiled


def insert_into(table: Table, *columns: str) -> Statement:
    """A statement that adds a row of these columns, each a parameter."""
    return Statement(insert(table).values({name: bindparam(name) for name in columns}))


class _Compiled:
    """A statement for one database, whose driver takes parameters by name."""

    def __init__(self, clause: ClauseElement, dialect: Dialect) -> None:
        compiled = clause.compile(dialect=dialect)
        assert isinstance(compiled, SQLCompiler)
        assert not compiled.positional
        assert not compiled.post_compile_params, "an IN of a list has no SQL of its own: write == and |"
        self.sql = str(compiled)
        self._constants = {name: bind.value for name, bind in compiled.binds.items() if not bind.required}
        found = ((name, _bind_processor(bind.type, dialect)) for name, bind in compiled.binds.items())
        self._processors = [(name, process) for name, process in found if process is not None]
        columns = _result_columns(clause)
        self._results = [_result_processor(column, dialect) for column in columns]
        self._has_results = any(self._results)

    def arguments(self, parameters: dict[str, object]) -> Mapping[str, object]:
        """`parameters`, which is used up, as the driver takes them; a constant of the statement is its own."""
        arguments = self._constants | parameters if self._constants else parameters
        for name, process in self._processors:
            arguments[name] = process(arguments[name])
        return arguments

    def result(self, row: Row) -> Row:
        """A row of the driver's as Python values."""
        if not self._has_results:
            return row
        return tuple(
            value if process is None else process(value) for value, process in zip(row, self._results, strict=True)
        )


def _bind_processor(kind: TypeEngine[Any], dialect: Dialect) -> _Processor | None:
    return kind.dialect_impl(dialect).bind_processor(dialect)


def _result_processor(kind: TypeEngine[Any], dialect: Dialect) -> _Processor | None:
    return kind.dialect_impl(dialect).result_processor(dialect, None)


def _result_columns(clause: ClauseElement) -> list[TypeEngine[Any]]:
    described = getattr(clause, "exported_columns", None)
    return [] if described is None else [column.type for column in described]
