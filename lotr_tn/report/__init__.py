"""Records to text and JSON; nothing is computed here."""
