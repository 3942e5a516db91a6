"""The record as lines, moved from database to database: `lines.py` has the format.

`writing.py` exports, `reading.py` imports, `placing.py` is what one transaction of an import does, `pruned.py` moves
what retention left.
"""
