"""python -m musicgpt, so that `torchrun -m musicgpt train …` works."""

from musicgpt.cli import main

if __name__ == "__main__":
    main()
