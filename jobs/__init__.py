"""Launchers: compose the settings, check them, run, close."""
