"""What stands around the loop: command line, launch checks, models, the run directory, reports."""
