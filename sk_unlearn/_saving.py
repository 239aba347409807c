"""``save`` and ``load``: a net as numbers and names, without a pickle."""

from __future__ import annotations

import os
import re
from typing import Any, Self

import numpy as np
import torch
from torch import nn

from ._net_file import as_path, read, write
from ._plain_values import NotPlainError, decode, encode
from ._rows import TrainingRows
from ._saved_ledger import ledger_record, restored_ledger
from ._saved_parameters import check_given, described_parameters, merged
from .certificate import Certificate
from .exceptions import DeletionRequestError, SavedNetError, SkUnlearnError

# Held in tensors, rebuilt from the parameters, or not to be kept: no weight of before, no row.
_APART = frozenset(
    "module_ criterion_ reference_ rows_ certificate_ fit_config_ ledger_ queue_ method_state_ "
    "optimizer_ history_ callbacks_ rng_state_ virtual_params_ init_context_ initialized_".split()
)
_ATTRIBUTE = re.compile(r"[a-zA-Z]\w*(?<!_)_")


class SavingMixin:
    """``save`` and ``load`` for a net with ``unlearn``."""

    def save(self, path: str | os.PathLike[str], *, include_data: bool = False) -> Self:
        """Write the fitted net to one file, from which :meth:`load` needs no pickle.

        The file is in the safetensors format: weights, buffers and, if asked for, the training
        rows; and one JSON record with the parameters, what fit found out, the certificate and
        the entries of a ledger in memory (of a ledger in a file, its path and head; its key
        stays where it is). Left out, and rebuilt when they are needed: optimizer state, history,
        generator state and what a method prepared from un-noised weights.

        It is written to a temporary file, synchronised and renamed (mode 0600): a crash leaves
        the older file or the new one. Its SHA-256 shows damage. It is no signature: who can
        write the file can write the checksum.
        The file is for the operator: it holds the operator's copy of the certificate, the entries
        of a ledger in memory, and ``noise_seed``. For everybody else there are the weights,
        ``module_.state_dict()``, and ``certificate_.to_json("public")``.

        Parameters
        ----------
        path : str or path-like
            File to write; an older one is replaced.
        include_data : bool
            Store the training rows and sample ids too. Without them the loaded net has
            ``store_data=False``: the next deletion asks for ``X_r, y_r``.

        Returns
        -------
        self

        Raises
        ------
        sklearn.exceptions.NotFittedError
            Before fit.
        DeletionRequestError
            If rows are to be included and this net keeps none; if requests are queued and rows
            are not to be included, or some are permanent.
        SavedNetError
            If something that a subclass or module added has no plain form.
        OSError
            If the file cannot be written.

        Examples
        --------
        >>> from tempfile import TemporaryDirectory
        >>> from sklearn.datasets import load_iris
        >>> from sk_unlearn import CertifiedNeuralClassifier
        >>> from sk_unlearn.modules import LinearHead
        >>> X, y = load_iris(return_X_y=True)
        >>> clf = CertifiedNeuralClassifier(LinearHead, C=100.0).fit(X, y).unlearn(X[:2], y[:2])
        >>> with TemporaryDirectory() as folder:
        ...     path = f"{folder}/net.safetensors"
        ...     loaded = CertifiedNeuralClassifier.load(clf.save(path) and path)
        >>> loaded.unlearn(X[2:4], y[2:4], X_r=X[4:], y_r=y[4:]).certificate_.n_retained
        146
        """
        self.check_is_fitted()
        if include_data and self.rows_ is None:
            raise DeletionRequestError("this net keeps no training rows: include_data=False")
        if self.queue_ and not include_data:
            raise DeletionRequestError(
                f"requests {list(self.queue_)[:5]} wait, and a net without its rows cannot tell "
                "which they name: call process_deletions() first, or save with include_data=True"
            )
        permanent = None if self.rows_ is None else self.rows_.permanent
        if permanent is not None and not include_data:
            raise DeletionRequestError(
                "some rows of this net are permanent, and a net without its rows cannot tell "
                "which: save with include_data=True"
            )
        tensors = _named("module", self.module_.state_dict())
        tensors |= _named("criterion", self.criterion_.state_dict())
        tensors |= _named("reference", dict(enumerate(self.reference_ or ())))
        record = {
            "class": type(self).__name__,
            "configuration": described_parameters(self.fit_config_),
            "parameters": described_parameters(self.get_params(deep=False)),
            "attributes": self._plain_attributes(),
            "trainable": [n for n, p in self.module_.named_parameters() if p.requires_grad],
            "centred": self.reference_ is not None,
            "certificate": self.certificate_.to_json() if hasattr(self, "certificate_") else None,
            "state": self.method_state_ if type(self.method_state_) is int else None,
            "ledger": ledger_record(self.ledger_),
            "queue": self.queue_ if include_data else {},
            "rows": None,
        }
        if include_data:
            rows = self.rows_
            tensors |= {"rows.X": torch.as_tensor(rows.X), "rows.y": torch.as_tensor(rows.y)}
            if permanent is not None:
                tensors["rows.permanent"] = torch.as_tensor(permanent)
            record["rows"] = {"sample_ids": encode(rows.sample_ids)}
        write(as_path(path), tensors, record)
        return self

    def _plain_attributes(self) -> dict[str, Any]:
        out = {}
        for name, value in vars(self).items():
            if name.endswith("_") and name not in _APART:
                try:
                    out[name] = encode(value)
                except NotPlainError as error:
                    raise SavedNetError(
                        f"the attribute {name} cannot be saved: it is {error}"
                    ) from error
        return out

    @classmethod
    def load(cls, path: str | os.PathLike[str], **given: Any) -> Self:
        """Read a net that :meth:`save` wrote.

        Nothing in the file is executed or imported. Classes are known by name if they are of
        sk_unlearn, torch.nn, torch.optim, torch.utils.data or skorch, and are loaded; anything
        else, such as a module of your own, or an instance, is to be given again.

        Parameters
        ----------
        path : str or path-like
            The file.
        **given
            Parameters that the file only describes, such as ``module=MyNet``; and, to change
            them on the way, ``device``, ``ledger`` or ``verbose``.

        Returns
        -------
        CertifiedNeuralClassifier
            Predicts what the saved net predicted, to the last bit.

        Raises
        ------
        OSError
            If the file cannot be read.
        SavedNetError
            If it is damaged, cut off, of another class or format, or a parameter is missing or
            does not fit the weights.
        LedgerError
            If the ledger's file is missing or does not contain what it did.
        """
        path = as_path(path)
        tensors, record = read(path)
        try:
            if record["class"] != cls.__name__:
                raise SavedNetError(f"{path!r} holds a {record['class']}; use its load")
            return cls._restored(tensors, record, given)
        except SkUnlearnError:
            raise
        except Exception as error:  # whatever a file that nobody has checked brings about
            raise SavedNetError(f"{path!r} holds no net that can be built: {error}") from error

    @classmethod
    def _restored(
        cls, tensors: dict[str, torch.Tensor], record: dict[str, Any], given: dict[str, Any]
    ) -> Self:
        check_given(given, record["configuration"], record["parameters"])
        configuration = merged(record["configuration"], given)
        net = cls(**(configuration | {"verbose": 0}))
        attributes = {name: decode(value) for name, value in record["attributes"].items()}
        strange = [n for n in attributes if not _ATTRIBUTE.fullmatch(n) or n in _APART]
        if strange:
            raise SavedNetError(f"{strange[:5]} are no fitted attributes")
        vars(net).update(attributes, fit_config_=configuration)
        net._rebuild(tensors, record)
        net._set_parameters(record, configuration, given)
        net._set_rows(tensors, record)
        net.ledger_ = restored_ledger(record["ledger"], given)
        if record["certificate"] is not None:
            net.certificate_ = Certificate.from_json(record["certificate"]).verify()
        return net

    def _rebuild(self, tensors: dict[str, torch.Tensor], record: dict[str, Any]) -> None:
        """Build module, criterion and optimizer as fit does, with the weights of the file."""
        weights = _under("module", tensors)
        if not isinstance(self.module, nn.Module):
            _check_size(self, weights)
        with torch.random.fork_rng():
            self.initialize()
        trainable = [n for n, p in self.module_.named_parameters() if p.requires_grad]
        if trainable != record["trainable"]:
            raise SavedNetError(
                f"{type(self.module_).__name__} trains {trainable}, the saved net trained "
                f"{record['trainable']}: give the module= that was fitted"
            )
        _load(self.module_, weights)
        _load(self.criterion_, _under("criterion", tensors))
        reference = _under("reference", tensors)
        parameters = self._trainable()
        self.reference_ = None
        if record["centred"]:
            self.reference_ = [reference[str(i)] for i in range(len(parameters))]
            if [r.shape for r in self.reference_] != [p.shape for p in parameters]:
                raise SavedNetError("the anchor has other shapes than the weights")
        self._initialize_optimizer()
        self.rng_state_, self.method_state_ = None, record["state"]
        self._check_method()
        self.module_.eval()

    def _set_parameters(
        self, record: dict[str, Any], configuration: dict[str, Any], given: dict[str, Any]
    ) -> None:
        now = record["parameters"]
        changed = {n: v for n, v in now.items() if v != record["configuration"].get(n)}
        for name in configuration.keys() - now.keys():
            vars(self).pop(name)
        vars(self).update(merged(changed, given))
        self.verbose = given.get("verbose", decode(now["verbose"]))

    def _set_rows(self, tensors: dict[str, torch.Tensor], record: dict[str, Any]) -> None:
        self.rows_, self.queue_ = None, {}
        if record["rows"] is None:
            self.store_data = False
            return
        X, y = tensors["rows.X"].numpy(), tensors["rows.y"].numpy()
        ids = decode(record["rows"]["sample_ids"])
        shapes = (X.shape[1:], len(X), len(X) if ids is None else len(ids))
        if shapes != (self.input_shape_, len(y), self.n_rows_) or X.dtype != np.float32:
            raise SavedNetError(f"rows {X.shape}, {y.shape} are not the {self.n_rows_} rows")
        permanent = tensors.get("rows.permanent")
        if permanent is not None:
            permanent = permanent.numpy()
            if permanent.shape != y.shape[:1] or permanent.dtype != bool:
                raise SavedNetError(f"a mask {permanent.shape} is not one of {len(y)} rows")
        positions = [p for queued in record["queue"].values() for p in queued]
        if not all(type(p) is int and 0 <= p < len(y) for p in positions):
            raise SavedNetError("the queue names rows that are not there")
        self.queue_ = record["queue"]
        rows = TrainingRows(X, y, ids, permanent)
        self.rows_ = self._with_features(rows).hashed()


def _named(prefix: str, tensors: dict[Any, Any]) -> dict[str, torch.Tensor]:
    for name, value in tensors.items():
        if not isinstance(value, torch.Tensor):
            raise SavedNetError(f"the {prefix}'s state {name!r} is no tensor and cannot be saved")
    return {f"{prefix}.{name}": value for name, value in tensors.items()}


def _under(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    start = f"{prefix}."
    return {n.removeprefix(start): t for n, t in tensors.items() if n.startswith(start)}


def _forms(tensors: dict[str, torch.Tensor]) -> dict[str, tuple[Any, ...]]:
    return {name: (tuple(t.shape), t.dtype) for name, t in tensors.items()}


def _check_size(net: Any, weights: dict[str, torch.Tensor]) -> None:
    """Compare the shapes before memory is taken for them, where a module can be built so."""
    try:
        with torch.device("meta"):
            net.initialize_module()
        forms, kind = _forms(net.module_.state_dict()), type(net.module_)
    except Exception:
        return
    finally:
        vars(net).pop("module_", None)
    _compare(forms, weights, kind)


def _load(module: nn.Module, state: dict[str, torch.Tensor]) -> None:
    _compare(_forms(module.state_dict()), state, type(module))
    module.load_state_dict(state)


def _compare(forms: dict[str, tuple[Any, ...]], state: dict[str, torch.Tensor], kind: Any) -> None:
    saved = _forms(state)
    for name in sorted(forms.keys() | saved.keys()):
        if forms.get(name) != saved.get(name):
            raise SavedNetError(
                f"{kind.__name__} has {name!r} as {forms.get(name)}, the file as "
                f"{saved.get(name)}: give the module= that was fitted"
            )
