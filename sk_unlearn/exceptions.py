"""Every error and warning that sk_unlearn raises on its own account."""

from __future__ import annotations


class SkUnlearnError(Exception):
    """Base class of the errors of this package."""


class DeletionRequestError(SkUnlearnError, ValueError):
    """A deletion request cannot be served as it was made; nothing was changed."""


class UnknownRowError(DeletionRequestError):
    """A row that was asked to be deleted is not among the training rows."""


class NotApplicableError(SkUnlearnError, ValueError):
    """A method's theorem does not cover this module, criterion or setting."""


class CalibrationError(SkUnlearnError, ValueError):
    """No noise (or tolerance) gives the requested guarantee."""


class BudgetExceededError(SkUnlearnError, RuntimeError):
    """A release would spend more than what was set aside for all releases since fit."""


class ToleranceNotReachedError(SkUnlearnError, RuntimeError):
    """A solver could not reach the tolerance that the certificate was computed for."""


class UnknownEventError(SkUnlearnError, TypeError):
    """An accountant met an event whose guarantee it does not know."""


class CertificateError(SkUnlearnError, ValueError):
    """A certificate says more than the event it records can prove, or cannot be read."""


class LedgerError(SkUnlearnError, RuntimeError):
    """The deletion ledger refused an entry or could not be opened."""


class LedgerCorruptError(LedgerError):
    """The deletion ledger is not what was written to it."""


class LedgerLockedError(LedgerError):
    """Another process holds the deletion ledger."""


class SavedNetError(SkUnlearnError, ValueError):
    """A net cannot be saved, or a file is not the saved net that was asked for."""


class UnlearningWarning(UserWarning):
    """Something that the reader of a certificate should know, and that is not an error."""
