"""`python -m modeling_cnnrnn VERB ...`: the command `cnnrnn`."""

from .cli.main import main


if __name__ == "__main__":
    main()
