"""How strongly a base station is heard somewhere: log-distance path loss with log-normal shadowing.

    RSSI(d) = P - PL(d0) - 10 n log10(d / d0) + S(x, y) + noise,   d0 = 1 m

Rappaport, *Wireless Communications*, 2nd ed., eq. (4.69), the model that paper `coordinated` takes (its reference 7).
S is Gaussian in dB, and alike at places that lie close together: its correlation falls as exp(-d / D) with the
distance d (Gudmundson, Electronics Letters 27(23), 1991; 3GPP TR 38.901 clause 7.4.4).
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Mapping

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from whimbrel.model.errors import BadInput

SPEED_OF_LIGHT_M_PER_S = 299_792_458.0
REFERENCE_DISTANCE_M = 1.0
WAVES = 512

Floats = NDArray[np.float64]


class PathLoss(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The defaults are a Wi-Fi access point at 5 GHz, as the paper's. `exponent`: 2 in free space, 2.7 to 3.5 in a
    city, 1.6 to 3.3 in buildings (Rappaport, table 4.2); TR 38.901, table 7.4.1-1 (UMi): 2.1 in sight, 3.19 out of
    sight. `shadowing_db`: standard deviation; UMi 4 in sight, 8.2 out of sight. `correlation_m`: D above; UMi 10 and 13
    (TR 38.901, table 7.5-6). `noise_db`: what one measurement errs. `reference_loss_db`: at 1 m; unset means free
    space at `frequency_mhz`. Below `floor_dbm` a station is not heard; below `sensitivity_dbm` it is heard but nothing
    can be decoded (-82: IEEE 802.11, 20 MHz, lowest rate)."""

    transmit_power_dbm: float = 20.0
    exponent: float = 3.0
    frequency_mhz: float = 5180.0
    reference_loss_db: float | None = None
    shadowing_db: float = 4.0
    correlation_m: float = 10.0
    noise_db: float = 1.0
    floor_dbm: float = -95.0
    sensitivity_dbm: float = -82.0

    def check(self, what: str) -> None:
        """Raises BadInput, naming `what` and the field."""
        limits = {
            "transmit_power_dbm": (-30.0, 80.0),
            "exponent": (1.0, 8.0),
            "frequency_mhz": (30.0, 300_000.0),
            "reference_loss_db": (0.0, 200.0),
            "shadowing_db": (0.0, 20.0),
            "correlation_m": (0.1, 10_000.0),
            "noise_db": (0.0, 20.0),
            "floor_dbm": (-150.0, 0.0),
            "sensitivity_dbm": (-150.0, 0.0),
        }
        for field, (low, high) in limits.items():
            value = getattr(self, field)
            if value is not None and not low <= value <= high:  # also refuses NaN
                raise BadInput(f"{what}: {field} {value:g} is not possible: use {low:g} to {high:g}")
        if self.sensitivity_dbm < self.floor_dbm:
            raise BadInput(
                f"{what}: sensitivity_dbm {self.sensitivity_dbm:g} lies below floor_dbm {self.floor_dbm:g}: "
                "what is not heard cannot be decoded; lower the floor"
            )

    @property
    def loss_at_reference_db(self) -> float:
        """At 1 m: as told, or free space (Friis): 20 log10(4 pi d0 f / c)."""
        if self.reference_loss_db is not None:
            return self.reference_loss_db
        return 20 * math.log10(4 * math.pi * REFERENCE_DISTANCE_M * self.frequency_mhz * 1e6 / SPEED_OF_LIGHT_M_PER_S)

    def mean_dbm(self, distance_m: ArrayLike) -> Floats:
        """Without shadowing and noise. Closer than 1 m counts as 1 m."""
        distance = np.maximum(np.asarray(distance_m, dtype=np.float64), REFERENCE_DISTANCE_M)
        loss = self.loss_at_reference_db + 10 * self.exponent * np.log10(distance / REFERENCE_DISTANCE_M)
        return np.asarray(self.transmit_power_dbm - loss)

    def reach_m(self, height_m: float = 0.0) -> float:
        """How far away, on the ground, what a station of that height sends is decoded by distance alone."""
        margin_db = self.transmit_power_dbm - self.loss_at_reference_db - self.sensitivity_dbm
        distance_m = REFERENCE_DISTANCE_M * 10 ** (margin_db / (10 * self.exponent))
        return math.sqrt(max(distance_m**2 - height_m**2, REFERENCE_DISTANCE_M**2))


class Shadowing:
    """A Gaussian field over the plane with standard deviation `sigma_db` and correlation exp(-d / `correlation_m`).

    A sum of plane waves whose lengths and directions are drawn from the spectrum of that correlation (Cai and
    Giannakis, IEEE Trans. Veh. Technol. 52(6), 2003): in two dimensions its density is (1 + (kD)^2)^(-3/2), so the
    share of waves below k is 1 - 1 / sqrt(1 + (kD)^2). The same place has the same value whenever and however often it
    is asked for, which a filter along the path would not give.
    """

    def __init__(self, sigma_db: float, correlation_m: float, seed: Iterable[int]) -> None:
        rng = np.random.default_rng(list(seed))
        share = (np.arange(WAVES) + rng.random(WAVES)) / WAVES
        wave_numbers = np.sqrt(1 / (1 - share) ** 2 - 1) / correlation_m
        direction = rng.uniform(0, 2 * np.pi, WAVES)
        self._kx, self._ky = wave_numbers * np.cos(direction), wave_numbers * np.sin(direction)
        self._phase = rng.uniform(0, 2 * np.pi, WAVES)
        self._scale = sigma_db * math.sqrt(2 / WAVES)

    def at(self, x_m: ArrayLike, y_m: ArrayLike) -> Floats:
        """dB at places (any shape)."""
        x, y = (np.asarray(value, dtype=np.float64)[..., None] for value in (x_m, y_m))
        return np.asarray(self._scale * np.cos(x * self._kx + y * self._ky + self._phase).sum(axis=-1))


class Station(msgspec.Struct, frozen=True, kw_only=True):
    """A base station in the plane; `height_m` above the users."""

    name: str
    x_m: float
    y_m: float
    height_m: float
    loss: PathLoss


class Air:
    """All base stations and what is heard of them where. Two with the same stations and seed agree everywhere. TR
    38.901 takes the shadowing of different sites as independent (clause 7.5); so do we."""

    def __init__(self, stations: Iterable[Station], seed: int = 1) -> None:
        self.stations: Mapping[str, Station] = {station.name: station for station in stations}
        self._seed = seed
        self._shadows = {
            name: Shadowing(station.loss.shadowing_db, station.loss.correlation_m, self._seed_of(name, 0))
            for name, station in self.stations.items()
        }

    def _seed_of(self, name: str, purpose: int, number: int = 0) -> tuple[int, ...]:
        return self._seed, zlib.crc32(name.encode()), purpose, number

    def mean_dbm(self, name: str, x_m: ArrayLike, y_m: ArrayLike) -> Floats:
        """By distance alone."""
        station = self.stations[name]
        across, along = np.asarray(x_m) - station.x_m, np.asarray(y_m) - station.y_m
        return station.loss.mean_dbm(np.sqrt(across**2 + along**2 + station.height_m**2))

    def local_dbm(self, name: str, x_m: ArrayLike, y_m: ArrayLike) -> Floats:
        """With shadowing: what a perfect receiver would measure there."""
        return self.mean_dbm(name, x_m, y_m) + self._shadows[name].at(x_m, y_m)

    def measure(self, x_m: float, y_m: float, number: int) -> dict[str, float]:
        """The `number`-th measurement: RSSI in dBm of all stations that are heard, in whole hundredths."""
        heard = {}
        for name, station in self.stations.items():
            noise = np.random.default_rng(self._seed_of(name, 1, number)).normal(0, station.loss.noise_db)
            rssi_dbm = float(self.local_dbm(name, x_m, y_m)) + noise
            if rssi_dbm >= station.loss.floor_dbm:
                heard[name] = round(rssi_dbm, 2)
        return heard
