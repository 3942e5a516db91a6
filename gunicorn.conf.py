"""What `gunicorn wsgi:app` reads: the same options as `amelia-flask serve`."""

from amelia_flask.server import options
from amelia_flask.settings import from_environment

globals().update(options(from_environment()))
