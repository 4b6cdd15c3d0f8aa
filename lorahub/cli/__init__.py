"""The ``lorahub`` command: `main` wires, one module per family of verbs, `sink` prints."""
