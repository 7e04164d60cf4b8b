"""The search for every star's optima: starts, the batched second-order solver."""
