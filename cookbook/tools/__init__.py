"""Commands beside the run itself: each is a program of its own, called by the Makefile."""
