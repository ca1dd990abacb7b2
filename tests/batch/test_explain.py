"""The message of a failed job names the cause, and not what Ray says about it."""

from __future__ import annotations

import pickle
import traceback

import pytest
from ray.data._internal.util import iterate_with_retry
from ray.data.exceptions import RayDataUserCodeException
from ray.exceptions import RayTaskError, UserCodeException

from hfray.batch.job import explain


def in_ray_data(error: Exception) -> RayTaskError:
    """The error as the driver sees it after a function of Ray Data raised it: annotated, in a task error, pickled."""

    def rows():
        raise error
        yield

    try:
        list(iterate_with_retry(rows, "apply UDF transform", max_attempts=1))
    except Exception as annotated:
        return task_error(annotated)
    raise AssertionError


def task_error(cause: Exception) -> RayTaskError:
    """What the driver gets from a task that raised this error."""
    text = "".join(traceback.format_exception(cause))
    error = RayTaskError("read_pending", text, cause, proctitle="ray::Map", pid=1, ip="127.0.0.1")
    return pickle.loads(pickle.dumps(error)).as_instanceof_cause()


class NoWordsError(Exception):
    pass


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("the value 7 is not a text"), "the value 7 is not a text"),
        (ValueError("two\nlines"), "two lines"),
        (NoWordsError(), "NoWordsError"),
        (KeyError("question"), "'question'"),
        (FileNotFoundError(2, "Failed to open local file 'in.csv'"), "[Errno 2] Failed to open local file 'in.csv'"),
        (OSError(28, "No space left on device"), "[Errno 28] No space left on device"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), "invalid start byte"),
        (ValueError(3, "things"), "(3, 'things'"),
    ],
)
def test_the_cause_below_ray_data(error, message):
    shown = explain(in_ray_data(error))
    assert message in shown
    for word in ("UDF", "DataContext", "attempts", "RayTaskError", "Traceback"):
        assert word not in shown


@pytest.mark.parametrize("wrapper", [UserCodeException, RayDataUserCodeException])
def test_the_cause_below_a_user_code_error(wrapper):
    error = wrapper("UDF failed to process a data block.")
    error.__cause__ = ValueError("the value 7 is not a text")
    assert explain(error) == "the value 7 is not a text"


@pytest.mark.parametrize("wrapper", [UserCodeException, RayDataUserCodeException])
def test_the_cause_is_in_the_traceback_after_pickling(wrapper):
    """Pickle drops `__cause__`: only the text of the traceback still names the cause."""
    try:
        try:
            raise ValueError("the value 7 is not a text")
        except ValueError as cause:
            raise wrapper("UDF failed to process a data block.") from cause
    except UserCodeException as error:
        shown = explain(task_error(error))
    assert shown == "ValueError: the value 7 is not a text"


def test_a_plain_error_keeps_its_words():
    assert explain(RuntimeError("a worker returned 3 rows\nfor a block of 4 rows")) == (
        "a worker returned 3 rows for a block of 4 rows"
    )
