"""HTTP: one blueprint a noun, and what they share: the gate, bodies, errors, and operations with their description.

The only rooms, beside `app.py`, that know Flask. Blueprints never import one another.
"""
