"""`python -m lotr_tn`: the program `lotr`."""

from lotr_tn.cli import main

main()
