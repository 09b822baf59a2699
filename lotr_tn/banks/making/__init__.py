"""How banks are made from adapters."""
