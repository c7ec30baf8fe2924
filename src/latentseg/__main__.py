"""`python -m latentseg`: the command line, where no script is on the path."""

from latentseg.cli import main

main()
