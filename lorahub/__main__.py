"""``python -m lorahub`` is the ``lorahub`` command."""

from lorahub.cli.main import run

if __name__ == "__main__":
    run()
