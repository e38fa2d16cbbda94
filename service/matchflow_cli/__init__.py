"""The command `matchflow`. One module per group of commands; heavy packages are imported by the command that runs."""
