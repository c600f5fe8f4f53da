"""How the memory of a service crosses: one module per way, all with the interface of `base.Carrier`."""
