"""The commands: each composes its settings, checks them, runs and exits."""
