"""The no-model control: the same release, from weights that know nothing (T20)."""

from __future__ import annotations

from copy import deepcopy
from typing import Any


class ControlMixin:
    """``control`` for a net with ``unlearn``."""

    def control(self, *args: Any, **kwargs: Any) -> ControlMixin:
        """Return the no-model control of a deletion: the same steps, started at the anchor.

        A certificate that holds for every start in a ball holds for its centre, which has
        learnt nothing. What a method gains over its control is what it gains from the fitted
        model; (T20) bounds it. Report both. This net is not changed, and the rows named stay
        in it.

        Parameters
        ----------
        *args, **kwargs
            As for ``unlearn``: the rows, epsilon and delta.

        Returns
        -------
        CertifiedNeuralClassifier
            A new net, released with the same method, noise level, steps and fine-tuning, with
            its own certificate. Its noise comes from the operating system, whatever
            ``noise_seed`` says: a seed is for one release. For methods that do not start from
            the present weights (``Retrain``, ``Residual``) it is another release of the same
            model.

        Raises
        ------
        DeletionRequestError, CalibrationError, NotApplicableError
            As ``unlearn``.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from sk_unlearn import CertifiedNeuralClassifier
        >>> from sk_unlearn.methods import OutputPerturbation
        >>> X, y = load_iris(return_X_y=True)
        >>> clf = CertifiedNeuralClassifier(method=OutputPerturbation(), max_epochs=1).fit(X, y)
        >>> control = clf.control(X[:3], y[:3], epsilon=1.0, delta=1e-5)
        >>> control.certificate_.n_deleted, hasattr(clf, "certificate_")
        (3, False)
        """
        self.check_is_fitted()
        twin = self._trial_copy()
        vars(twin)["method_state_"] = None
        twin._set_weights(self._reference_vector())
        return twin.unlearn(*args, **kwargs)

    def _trial_copy(self) -> ControlMixin:
        """Return a net with the same rows and weights of its own, for releases that do not count.

        Its noise comes from the operating system: a seed is for one release.
        """
        twin = object.__new__(type(self))
        vars(twin).update(vars(self))
        module, criterion = deepcopy((self.module_, self.criterion_))
        vars(twin).update(module_=module, criterion_=criterion, noise_seed=None)
        twin._leave_ledger()
        return twin
