from live_controller import client, live, region

__all__ = ["client", "live", "region"]
