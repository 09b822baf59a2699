"""`python -m lotr_tn`: the program `lotr`."""

from lotr_tn.cli import main

if __name__ == "__main__":
    main()
