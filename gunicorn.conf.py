"""What `gunicorn wsgi:app` reads: the same options as `amelia-flask serve`."""

from amelia_flask.server import options, or_exit
from amelia_flask.settings import from_environment

globals().update(or_exit(lambda: options(from_environment())))
