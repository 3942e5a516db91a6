"""The record, moved from database to database: as lines, or whole.

`lines.py` has the format of the lines; `writing.py` exports, `reading.py` imports, `placing.py` is what one
transaction of an import does, `pruned.py` moves what retention left. `copying.py` makes a database the copy of
another, by tables (`tables.py`); `backups.py` does so with files, for a record on a server.
"""
