"""A small trained LoRA adapter that ships with the package, and the script that trains it."""
