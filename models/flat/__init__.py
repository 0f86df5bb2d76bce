"""The fast way from records to columns; see `reader`."""

from models.flat.reader import FlatEvents, FlatReader

__all__ = ["FlatEvents", "FlatReader"]
