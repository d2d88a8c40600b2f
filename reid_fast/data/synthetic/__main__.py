"""`python -m reid_fast.data.synthetic`."""

from reid_fast.data.synthetic.draw import main

main()
