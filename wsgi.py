"""The application for `gunicorn wsgi:app`; gunicorn.conf.py beside it holds the server's settings."""

from amelia_flask import create_app

app = create_app()
