"""ETSI GS MEC 013 v2.2.1, the Location Service: ``/location/v2``."""
