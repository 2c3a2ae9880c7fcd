"""One command for each claim: it prints what it compared with what, and writes the figures as JSON."""
