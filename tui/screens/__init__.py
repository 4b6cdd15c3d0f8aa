"""The screens and dialogs, one per file."""
