"""The `worldvla` command: its command line, the handler of each command, help and the demo."""
