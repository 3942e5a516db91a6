"""`python -m amelia_flask` is the command `amelia-flask`."""

from amelia_flask.cli import main

main(prog_name="amelia-flask")
