"""The errors that are part of the contract: what each means for a run, a row or a request."""

from __future__ import annotations

from enum import IntEnum


class TooManyErrorsError(RuntimeError):
    """More rows failed than `errors.max_fraction` allows."""


class JobError(RuntimeError):
    """The job cannot go on; what is done is kept. The message is the cause, for a person."""


class SettingsError(ValueError):
    """Settings or input that cannot be used: exit code 2, nothing started."""


class EngineDiedError(RuntimeError):
    """The engine itself failed: no request's fault, and nothing more will come out of it."""


class RequestError(ValueError):
    """A request's own fault (its prompt is too long, empty, not text): an error row, never a dead worker."""


class WriteError(RuntimeError):
    """Output could not be written: the job fails, and what was written before stays."""


class SupersededError(WriteError):
    """Another run has taken the output folder over."""


class ExitCode(IntEnum):
    """How a command ends.

    UNUSABLE: the settings or the input cannot be used. TOO_MANY_ERRORS: more rows failed than `errors.max_fraction`
    allows.
    """

    OK = 0
    FAILED = 1
    UNUSABLE = 2
    TOO_MANY_ERRORS = 3
    INTERRUPTED = 130
