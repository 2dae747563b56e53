"""`report.html`: one self-contained page about a run, or several runs compared."""
