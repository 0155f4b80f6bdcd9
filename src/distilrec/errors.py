"""Every error a user can cause or meet, with a stable code and a way out.

    DistilrecError
    ├── DataError                the interaction log or the feature tables
    │   ├── FileMissingError     a named file is not there
    │   ├── ColumnMissingError   a declared column is not in the table
    │   ├── ColumnTypeError      a column holds the wrong kind of value
    │   ├── InvalidValueError    a value no model can take (NaN, infinite)
    │   ├── CheckFailedError     a declared check of the data does not hold
    │   ├── NotEnoughDataError   an empty log, one user, one item
    │   ├── NothingToEvaluateError   no test row that a model could get right
    │   ├── SourceUnavailableError   where data or events come from does not answer, or refuses
    │   └── DownloadError        a data set could not be fetched or is not the expected one
    ├── ConfigError              a parameter or a configuration file
    ├── MissingExtraError        an optional dependency is not installed
    ├── ClusterError             a Ray cluster cannot be reached, or lost its workers
    ├── TrainingError            training cannot continue (loss not finite, other checkpoint)
    ├── TeacherError             a teacher's scores cannot be used (NaN, other users, other items)
    ├── LabelStoreError          stored teacher labels do not fit
    ├── BundleError              a bundle cannot be used
    │   ├── BundleMissingError   there is no bundle at this path
    │   ├── BundleCorruptedError truncated, edited or inconsistent
    │   └── BundleVersionError   written by a newer distilrec
    ├── StorageError             the file system says no (disk full, no permission)
    │   └── FolderHeldError      another process works in this folder
    ├── StoreError               the event store of a service
    │   ├── StoreUnavailableError    cannot be reached, locked by another process, full
    │   ├── StoreCorruptedError      what is in it cannot be read
    │   └── StoreVersionError        written by a newer distilrec
    ├── RequestError             a request to the service that cannot be answered as it is
    │   ├── MalformedRequestError    the body is not JSON
    │   ├── UnauthorizedError        no valid API key
    │   ├── ForbiddenError           the key lacks the scope
    │   ├── OriginError              sent by another site's web page, or to another host name
    │   ├── NotFoundError            no such path
    │   ├── MethodNotAllowedError    the path exists, not for this method
    │   ├── BodyTooLargeError        more bytes than allowed
    │   ├── HeadersTooLargeError     a longer path, or more or longer headers than allowed
    │   ├── RequestTimeoutError      not sent within the time allowed
    │   ├── MediaTypeError           the body is not declared as JSON
    │   ├── RateLimitedError         too many requests
    │   ├── SwapConflictError        another model is being loaded, or there is none to go back to
    │   └── ExperimentConflictError  an experiment is running, or none of this name is
    ├── ServiceError             the service cannot answer now
    │   ├── NotReadyError            still warming up, or shutting down
    │   └── OverloadedError          more events are waiting than it can hold
    ├── InvalidIdError           what cannot be the id of a user or an item
    ├── UnknownUserError         an unknown user
    └── UnknownItemError         an item id that the bundle does not know

Each class names its `code` (stable, documented in docs/errors.md) and the `http_status` a service
answers with. `context` carries the facts (file, column, row, parameter) for programs; `fix` says
what to do.
"""

from __future__ import annotations

from typing import ClassVar


class DistilrecError(Exception):
    """Base of all errors raised on purpose; `str()` gives the message and the way to fix it."""

    code: ClassVar[str] = "error"
    http_status: ClassVar[int] = 500

    def __init__(self, message: str, *, fix: str = "", **context: object) -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix
        self.context = context

    def __str__(self) -> str:
        return f"{self.message}\n  how to fix: {self.fix}" if self.fix else self.message


class DataError(DistilrecError):
    code = "data_invalid"
    http_status = 422


class FileMissingError(DataError):
    code = "file_missing"


class ColumnMissingError(DataError):
    code = "column_missing"


class ColumnTypeError(DataError):
    code = "column_type"


class InvalidValueError(DataError):
    code = "value_invalid"


class CheckFailedError(DataError):
    code = "check_failed"


class NotEnoughDataError(DataError):
    code = "not_enough_data"


class NothingToEvaluateError(DataError):
    code = "nothing_to_evaluate"


class SourceUnavailableError(DataError):
    code = "source_unavailable"
    http_status = 503


class DownloadError(DataError):
    code = "download_failed"


class ConfigError(DistilrecError):
    code = "config_invalid"
    http_status = 422


class MissingExtraError(DistilrecError):
    code = "extra_missing"


class ClusterError(DistilrecError):
    code = "cluster_failed"
    http_status = 503


class TrainingError(DistilrecError):
    code = "training_failed"


class TeacherError(DistilrecError):
    code = "teacher_invalid"


class LabelStoreError(DistilrecError):
    code = "labels_invalid"


class BundleError(DistilrecError):
    code = "bundle_invalid"
    http_status = 422


class BundleMissingError(BundleError):
    code = "bundle_missing"


class BundleCorruptedError(BundleError):
    code = "bundle_corrupted"


class BundleVersionError(BundleError):
    code = "bundle_version"


class StorageError(DistilrecError):
    code = "storage_failed"
    http_status = 503


class FolderHeldError(StorageError):
    code = "folder_held"


class StoreError(DistilrecError):
    code = "store_failed"
    http_status = 503


class StoreUnavailableError(StoreError):
    code = "store_unavailable"


class StoreCorruptedError(StoreError):
    code = "store_corrupted"


class StoreVersionError(StoreError):
    code = "store_version"


class RequestError(DistilrecError):
    code = "request_invalid"
    http_status = 422


class MalformedRequestError(RequestError):
    code = "request_malformed"
    http_status = 400


class UnauthorizedError(RequestError):
    code = "unauthorized"
    http_status = 401


class ForbiddenError(RequestError):
    code = "forbidden"
    http_status = 403


class OriginError(RequestError):
    code = "origin_refused"
    http_status = 403


class NotFoundError(RequestError):
    code = "not_found"
    http_status = 404


class MethodNotAllowedError(RequestError):
    code = "method_not_allowed"
    http_status = 405


class BodyTooLargeError(RequestError):
    code = "body_too_large"
    http_status = 413


class HeadersTooLargeError(RequestError):
    code = "headers_too_large"
    http_status = 431


class RequestTimeoutError(RequestError):
    code = "request_timeout"
    http_status = 408


class MediaTypeError(RequestError):
    code = "media_type"
    http_status = 415


class RateLimitedError(RequestError):
    code = "rate_limited"
    http_status = 429


class SwapConflictError(RequestError):
    code = "swap_conflict"
    http_status = 409


class ExperimentConflictError(RequestError):
    code = "experiment_conflict"
    http_status = 409


class ServiceError(DistilrecError):
    code = "service_failed"
    http_status = 503


class NotReadyError(ServiceError):
    code = "not_ready"


class OverloadedError(ServiceError):
    code = "overloaded"


class InvalidIdError(DistilrecError):
    code = "id_invalid"
    http_status = 422


class UnknownUserError(DistilrecError):
    code = "user_unknown"
    http_status = 404


class UnknownItemError(DistilrecError):
    code = "item_unknown"
    http_status = 404


def missing_extra(package: str, extra: str) -> MissingExtraError:
    """Return the error for an optional dependency that is not installed, with the exact command to
    install it.
    """
    return MissingExtraError(
        f"this command needs the package {package!r}, which is not installed",
        fix=f"pip install 'distilrec[{extra}]'",
        package=package,
        extra=extra,
    )


def unknown_user(user_id: str, where: str, fix: str) -> UnknownUserError:
    """Return the error for a user that is to be forgotten and is not there."""
    return UnknownUserError(
        f"{where} holds nothing about the user {user_id!r}", fix=fix, parameter="user_id"
    )


def first_line(problem: Exception) -> str:
    """Return the first line of what another library says; the kind of its error where it says
    nothing.
    """
    return (str(problem).strip() or type(problem).__name__).splitlines()[0]
