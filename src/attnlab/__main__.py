"""python -m attnlab: the program `attnlab`."""

from attnlab.commands import main

main()
