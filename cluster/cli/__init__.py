"""The `worldvla` command: its command line, its settings, help, and one handler per command."""
