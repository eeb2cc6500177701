"""`python -m speechssl`, and so `torchrun -m speechssl`: the command line."""

from speechssl.cli import main

if __name__ == "__main__":
    main()
