"""Optimisers: each writes one update of the flat parameter vector p from the flat gradient vector g."""

from nnlite.optim.adam import Adam as Adam
from nnlite.optim.adam import AdamW as AdamW
from nnlite.optim.groups import ParameterGroups as ParameterGroups
from nnlite.optim.muon import Muon as Muon
from nnlite.optim.optimizer import Optimizer as Optimizer
from nnlite.optim.rmsprop import RMSProp as RMSProp
from nnlite.optim.sgd import SGD as SGD
