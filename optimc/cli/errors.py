"""Errors of the commands, all of one kind: what the user can put right."""


class InputError(ValueError):
    """Something the user can put right, said in one line."""
