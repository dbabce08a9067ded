"""The command line: thin commands over `Pool`; nothing heavy is imported before a command runs."""
