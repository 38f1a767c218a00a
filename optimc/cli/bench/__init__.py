"""`python -m optimc bench`.  Begin with command.py."""
