"""The tables themselves. A step is (least RSSI in dBm, physical rate in bit/s), the lowest first.

802.11: the receiver's minimum input sensitivity and the data rate of one spatial stream with the long guard interval:
IEEE Std 802.11-2020, table 19-23 and clause 19.5 (HT, 802.11n); table 21-25 and clause 21.5 (VHT, 802.11ac). Receivers
are usually some dB better than the standard asks; the paper's [15] lists the same steps by signal-to-noise ratio.

LTE: 3GPP TS 36.213 table 7.2.3-1 gives each CQI its efficiency in bits per symbol. The RSSI of a step is the noise of
the carrier (-174 dBm/Hz over its occupied 9 MHz, 9 dB noise figure) and the signal-to-noise ratio at which that CQI has
a block error rate of 10 % (link-level simulation, as commonly used in system simulators); nothing is taken off for
interference. Of 14 symbols in 12 x 50 subcarriers each millisecond a quarter is control and reference signals.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log10


@dataclass(frozen=True)
class RateTable:
    """`source`: where the steps are from."""

    technology: str
    steps: tuple[tuple[float, float], ...]
    source: str


def _mbits(dbm: tuple[float, ...], mbits: tuple[float, ...]) -> tuple[tuple[float, float], ...]:
    return tuple((least, rate * 1e6) for least, rate in zip(dbm, mbits, strict=True))


_HT, _VHT = "IEEE 802.11-2020, table 19-23, clause 19.5", "IEEE 802.11-2020, table 21-25, clause 21.5"
_MCS_20 = (-82.0, -79.0, -77.0, -74.0, -70.0, -66.0, -65.0, -64.0)
_MCS_40 = tuple(dbm + 3 for dbm in _MCS_20)
_MCS_80 = tuple(dbm + 6 for dbm in _MCS_20)
_RATE_20 = (6.5, 13.0, 19.5, 26.0, 39.0, 52.0, 58.5, 65.0)
_RATE_40 = (13.5, 27.0, 40.5, 54.0, 81.0, 108.0, 121.5, 135.0)
_RATE_80 = (29.3, 58.5, 87.8, 117.0, 175.5, 234.0, 263.3, 292.5)

_CQI_SNR_DB = (-6.7, -4.7, -2.3, 0.2, 2.4, 4.3, 5.9, 8.1, 10.3, 11.7, 14.1, 16.3, 18.7, 21.0, 22.7)
_CQI_BITS = (0.1523, 0.2344, 0.3770, 0.6016, 0.8770, 1.1758, 1.4766, 1.9141, 2.4063, 2.7305, 3.3223, 3.9023, 4.5234,
             5.1152, 5.5547)  # fmt: skip
_LTE_NOISE_DBM = -174 + 10 * log10(9e6) + 9
_LTE_SYMBOLS_PER_S = 12 * 50 * 14 * 1000 * 0.75

TABLES = {
    table.technology: table
    for table in (
        RateTable("802.11n-20MHz", _mbits(_MCS_20, _RATE_20), _HT),
        RateTable("802.11n-40MHz", _mbits(_MCS_40, _RATE_40), _HT),
        RateTable("802.11ac-20MHz", _mbits((*_MCS_20, -59.0), (*_RATE_20, 78.0)), _VHT),
        RateTable("802.11ac-40MHz", _mbits((*_MCS_40, -56.0, -54.0), (*_RATE_40, 162.0, 180.0)), _VHT),
        RateTable("802.11ac-80MHz", _mbits((*_MCS_80, -53.0, -51.0), (*_RATE_80, 351.0, 390.0)), _VHT),
        RateTable(
            "lte-10MHz",
            tuple(
                (round(_LTE_NOISE_DBM + snr_db, 1), bits * _LTE_SYMBOLS_PER_S)
                for snr_db, bits in zip(_CQI_SNR_DB, _CQI_BITS, strict=True)
            ),
            "3GPP TS 36.213, table 7.2.3-1",
        ),
    )
}
