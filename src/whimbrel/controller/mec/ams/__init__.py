"""ETSI GS MEC 021 v2.2.1, the Application Mobility Service: ``/amsi/v1``."""
