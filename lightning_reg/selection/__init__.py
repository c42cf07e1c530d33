"""Which weights and which modules a callback acts on, under the names that the user wrote."""

from lightning_reg.selection.select import Select, as_select
from lightning_reg.selection.weights import Selection, Weight, clean_name, named_weights, select_weights

__all__ = ["Select", "Selection", "Weight", "as_select", "clean_name", "named_weights", "select_weights"]
