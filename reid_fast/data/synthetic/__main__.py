"""`python -m reid_fast.data.synthetic` is `reid-fast data synthetic`."""

from reid_fast.data.synthetic.command import main

if __name__ == "__main__":
    main()
