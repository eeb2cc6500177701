"""The formats that BEST-RQ comes in: no published checkpoint is known, so there is our own alone."""

from speechssl.formats import Formats

FORMATS = Formats()
