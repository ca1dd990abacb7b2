"""The errors of the public API, and the exit codes of the commands."""

from __future__ import annotations

from enum import IntEnum


class TooManyErrorsError(RuntimeError):
    """More rows failed than `errors.max_fraction` allows."""


class JobError(RuntimeError):
    """The job cannot continue; finished rows are kept. The message names the cause."""


class SettingsError(ValueError):
    """The settings or the input cannot be used: exit code 2, and nothing was started."""


class EngineDiedError(RuntimeError):
    """The engine itself failed. No request caused this, and the engine answers no further request."""


class RequestError(ValueError):
    """A request is at fault (its prompt is too long, empty or not text): it becomes an error row; the worker continues."""


class WriteError(RuntimeError):
    """Output could not be written: the job fails, and the files written before stay."""


class SupersededError(WriteError):
    """Another run has taken over the output folder."""


class ExitCode(IntEnum):
    """The exit code of a command.

    UNUSABLE: the settings or the input cannot be used. TOO_MANY_ERRORS: more rows failed than `errors.max_fraction`
    allows.
    """

    OK = 0
    FAILED = 1
    UNUSABLE = 2
    TOO_MANY_ERRORS = 3
    INTERRUPTED = 130
