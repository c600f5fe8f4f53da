"""The experiments, one module each: a value ``EXPERIMENT`` made of cells, quantities and figures."""
