"""Bytes as a person reads them."""

GIB = 2**30
GB = 10**9


def gib(nbytes: float, digits: int = 2) -> str:
    """``12.34 GiB``."""
    return f"{nbytes / GIB:,.{digits}f} GiB"


def gb(nbytes: float, digits: int = 2) -> str:
    """``13.25 GB`` (1e9), as textbooks print it."""
    return f"{nbytes / GB:,.{digits}f} GB"


def signed_gib(nbytes: float, digits: int = 2) -> str:
    """``+1.20 GiB`` or ``-1.20 GiB`` with a true minus sign."""
    sign = "+" if nbytes >= 0 else "−"
    return f"{sign}{abs(nbytes) / GIB:,.{digits}f} GiB"


def count(number: int) -> str:
    """``7.00 B``, ``560 M``: parameters."""
    if number >= 10**9:
        return f"{number / 10**9:,.2f} B"
    if number >= 10**6:
        return f"{number / 10**6:,.1f} M"
    return f"{number:,}"
