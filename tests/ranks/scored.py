"""The command of evaluation, where the smallest encoder is known."""

import runs  # noqa: F401  # for its encoder

from reid_fast.evaluate import main

if __name__ == "__main__":
    main()
