"""What each command does once its settings are composed: one file per command, named after it."""
