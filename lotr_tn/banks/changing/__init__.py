"""How banks are changed in place."""
