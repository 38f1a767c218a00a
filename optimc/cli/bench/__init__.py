"""`optimc bench`.  Begin with command.py."""
